"""Part ``tests`` of ``benchmarks/gpu.sh``: the tests marked ``gpu``, with the outcome of each.

The outcome of every test is kept as soon as it is known. Several processes share the device, because most of
the time is that of compiling kernels. A dry run collects the tests and skips them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.lib.gpu_part import NEEDS_CUDA, Part, main
from benchmarks.lib.recording import ROOT

MOST_PROCESSES = 8


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
        if not hasattr(session, "items"):
            return  # other processes collect
        self.found["collected"] = len(session.items)
        if self.part.dry:
            for item in session.items:
                item.add_marker(pytest.mark.skip(reason=NEEDS_CUDA))
        self._keep()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:
        """Count the chosen tests where other processes run them."""
        self.found["collected"] = len(ids)
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
            return
        if report.skipped:
            self.found["skipped"] += 1
        elif report.when == "call":
            self.found["passed"] += 1
        else:
            return
        self._keep()

    def _fail(self, name: str, report: pytest.CollectReport | pytest.TestReport) -> None:
        self.found["failed"] += 1
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash is not None else report.longreprtext.strip().splitlines()[-1].removeprefix("E").strip()
        self.part.fail(name, message.split("\n")[0][:200])
        self._keep()

    def _keep(self) -> None:
        found = self.found
        self.part.keep(
            f"{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped of {found['collected']}", tests=found
        )


def marked(root: Path) -> list[str]:
    """Files below ``root`` with tests that are marked ``gpu``."""
    return [str(file) for file in sorted(root.rglob("test_*.py")) if "mark.gpu" in file.read_text(encoding="utf-8")]


def run(part: Part, files: Iterable[str], processes: int) -> None:
    """Run the tests marked ``gpu`` in these files, in other processes if there are several."""
    options = ["-m", "gpu", "-q", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    if processes > 1 and find_spec("xdist") is not None:
        options += ["-n", str(processes)]
    pytest.main([*options, *files], plugins=[Outcomes(part)])


def measure(part: Part) -> None:
    """Run all tests marked ``gpu``."""
    part.strict = True
    run(part, marked(ROOT / "tests"), 1 if part.dry else min(MOST_PROCESSES, (os.cpu_count() or 1) // 2))


if __name__ == "__main__":
    sys.exit(main("tests", measure, __doc__))
