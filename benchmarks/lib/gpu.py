"""Run the tests marked ``gpu`` and the CUDA benchmark of sparse attention within a time limit.

``benchmarks/gpu.sh`` calls this module. Two files are written: ``gpu.json`` with the outcome of the tests and
of the benchmark, and ``attention_cuda.json`` with the measurements. The benchmark measures heads of 32
channels, which its claims are about, at a few lengths.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import torch

from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, ROOT, record, recorded

LIMIT = 460.0
"""Seconds for everything."""
TESTS_LIMIT = 200.0
"""Seconds for the tests."""
LAST_CELL = 60.0
"""Seconds before the end at which the benchmark starts its last combination."""
LENGTHS = ("2048", "8192", "512", "32768")
"""Numbers of tokens, in the order in which they are measured; the first two have claims."""


def run(arguments: list[str], seconds: float) -> tuple[str, float]:
    """Run a Python module in the root of the checkout for at most ``seconds``.

    Returns:
        ``ended with status N``, or ``stopped at the time limit``; and the seconds that it took.
    """
    started = time.monotonic()
    try:
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, timeout=seconds, check=False)
        status = f"ended with status {done.returncode}"
    except subprocess.TimeoutExpired:
        status = "stopped at the time limit"
    return status, round(time.monotonic() - started, 1)


def tests(seconds: float) -> dict[str, Any]:
    """Run the tests marked ``gpu``, and return their outcome."""
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text(encoding="utf-8")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        options = ["-m", "gpu", "-q", "--continue-on-collection-errors", f"--junitxml={report}"]
        status, taken = run(["pytest", *options, *(str(file) for file in files)], seconds)
        counts = outcomes(report) if report.is_file() else {}
    return {"status": status, "seconds": taken, **counts}


def outcomes(report: Path) -> dict[str, Any]:
    """Numbers of passed, failed and skipped tests of a JUnit report, and the first line of each failure."""
    cases = list(ET.parse(report).getroot().iter("testcase"))
    failures = {}
    for case in cases:
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        if problem is not None:
            failures[f"{case.get('classname')}::{case.get('name')}"] = (problem.get("message") or "").split("\n")[0][:200]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - len(failures) - skipped, "failed": len(failures), "skipped": skipped, "failures": failures}


def attention(out: Path, seconds: float) -> dict[str, Any]:
    """Run the CUDA benchmark of sparse attention, and return its outcome and its claims."""
    limit = max(seconds - LAST_CELL, 0.0)
    options = ["--device", "cuda", "--widths", "32", "--lengths", *LENGTHS, "--limit", f"{limit:.0f}", "--results", str(out)]
    status, taken = run(["benchmarks.claims.attention", *options], seconds)
    kernels = recorded(out / "attention_cuda.json").get("parts", {}).get("kernels", {}) if status.endswith(" 0") else {}
    return {"status": status, "seconds": taken, "claims": kernels.get("claims", [])}


def main() -> int:
    started = time.monotonic()
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    out = options.parse_args().out.absolute()
    device = {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    tested = tests(TESTS_LIMIT)
    measured = attention(out, LIMIT - (time.monotonic() - started))
    record({"device": device, "tests": tested, "attention": measured}, out / "gpu.json")
    return int(not all(part["status"].endswith(" 0") for part in (tested, measured)))


if __name__ == "__main__":
    sys.exit(main())
