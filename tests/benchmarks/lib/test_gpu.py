"""The checks that need CUDA: what is made of their outcome, and what happens without a CUDA device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.lib import gpu

ROOT = Path(__file__).resolve().parents[3]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_one"/>
<testcase classname="tests.a" name="test_two"><failure message="AssertionError: 1 is not 2&#10;more">long</failure></testcase>
<testcase classname="" name="tests.b"><error message="collection failure">long</error></testcase>
<testcase classname="tests.a" name="test_three"><skipped message="no compiler"/></testcase>
</testsuite></testsuites>"""


def test_outcomes_of_a_junit_report(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    found = gpu.outcomes(report)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert found["failures"] == {"tests.a::test_two": "AssertionError: 1 is not 2", "::tests.b": "collection failure"}


def test_a_module_is_stopped_at_the_time_limit() -> None:
    assert gpu.run(["timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"], 1.0)[0] == "stopped at the time limit"
    assert gpu.run(["platform"], 60.0)[0] == "ended with status 0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda_nothing_is_written(tmp_path: Path) -> None:
    environment = os.environ | {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable}
    done = subprocess.run([ROOT / "benchmarks" / "gpu.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no CUDA device" in done.stdout
    assert list(tmp_path.iterdir()) == []
