"""Part ``tests`` of ``benchmarks/gpu.sh``: the tests marked ``gpu``, with the outcome of each.

The outcome of every test is kept as soon as it is known. A dry run collects the tests and skips them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks.lib.gpu_part import NEEDS_CUDA, Part, main
from benchmarks.lib.recording import ROOT


class Outcomes:
    """A plugin of pytest that keeps the outcome of each test.

    Args:
        part: gets the outcomes.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.found = {"collected": 0, "passed": 0, "failed": 0, "skipped": 0}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the chosen tests; a dry run skips them all."""
        self.found["collected"] = len(session.items)
        if self.part.dry:
            for item in session.items:
                item.add_marker(pytest.mark.skip(reason=NEEDS_CUDA))
        self._keep()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file whose tests can't be collected, e.g. for lack of a library."""
        if report.failed:
            self._fail(report.nodeid, report)
        elif report.skipped:
            self.part.skipped[report.nodeid] = str(report.longrepr)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of one phase of a test."""
        if report.failed:
            self._fail(report.nodeid, report)
        elif report.skipped:
            self.found["skipped"] += 1
        elif report.when == "call":
            self.found["passed"] += 1
        else:
            return
        self._keep()

    def _fail(self, name: str, report: pytest.CollectReport | pytest.TestReport) -> None:
        self.found["failed"] += 1
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash is not None else report.longreprtext.strip().splitlines()[-1]
        self.part.fail(name, message.split("\n")[0][:200])

    def _keep(self) -> None:
        found = self.found
        self.part.keep(
            f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped of {found['collected']}", tests=found
        )


def marked(root: Path) -> list[str]:
    """Files below ``root`` with tests that are marked ``gpu``."""
    return [str(file) for file in sorted(root.rglob("test_*.py")) if "mark.gpu" in file.read_text(encoding="utf-8")]


def run(part: Part, files: Iterable[str]) -> None:
    """Run the tests marked ``gpu`` in these files."""
    options = ["-m", "gpu", "-q", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    pytest.main([*options, *files], plugins=[Outcomes(part)])


def measure(part: Part) -> None:
    """Run all tests marked ``gpu``."""
    run(part, marked(ROOT / "tests"))


if __name__ == "__main__":
    sys.exit(main("tests", measure, __doc__))
