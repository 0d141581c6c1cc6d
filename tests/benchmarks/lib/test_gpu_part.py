"""What each part that needs CUDA keeps: figures, failures, skipped contenders, outcomes of tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from balancer.errors import UnsupportedError
from benchmarks.lib import gpu, gpu_tests
from benchmarks.lib.gpu_part import NEEDS_CUDA, Part

TESTS = """
import pytest
pytestmark = pytest.mark.gpu
def test_one(): pass
def test_two(): assert 1 == 2, "not equal"
@pytest.mark.skip(reason="no compiler")
def test_three(): pass
@pytest.fixture
def broken(): raise OSError("no disk")
def test_four(broken): pass
"""
SETTINGS = "[pytest]\nmarkers = gpu\naddopts = --import-mode=importlib\n"


@pytest.fixture
def part(tmp_path: Path) -> Part:
    """A part of a dry run."""
    return Part("training", tmp_path / "new" / "part.json", dry=True, limit=60)


def kept(part: Part) -> dict[str, Any]:
    """What a part has written."""
    content: dict[str, Any] = json.loads(part.out.read_text())
    return content


def fail_with(problem: Exception) -> None:
    raise problem


def test_figures_are_kept_with_device_versions_seed_and_date(part: Part) -> None:
    part.keep("fast", figures={"ratio": 1.23456789, "lost": math.nan, "all": [math.inf, 2.0]})
    content = kept(part)
    assert content["figures"] == {"ratio": 1.2346, "lost": None, "all": [None, 2.0]}
    assert (content["part"], content["seed"], content["complete"], content["dry"]) == ("training", 0, False, True)
    assert content["device"]["name"] == "cpu"
    assert {"machine", "versions", "date"} <= content.keys()
    assert content["headline"] == "", "a dry run has no figures of a GPU"
    assert part.finish() == 0
    assert kept(part)["complete"] is True
    assert gpu.result_of(part.out) == kept(part)


def test_what_needs_cuda_is_skipped_in_a_dry_run_and_everything_else_fails(part: Part) -> None:
    part.keep(figure=1)
    assert part.attempt("works", lambda: 5) == 5
    assert part.attempt("kernel", lambda: fail_with(UnsupportedError("it needs cuda")), needs_cuda=True) is None
    assert part.finish() == 0
    part.attempt("typo", lambda: fail_with(NameError("name 'x' is not defined")), needs_cuda=True)
    part.attempt("other", lambda: fail_with(RuntimeError("bad shape\nand more")))
    assert part.finish() == 1
    content = kept(part)
    assert content["skipped"] == {"kernel": f"{NEEDS_CUDA} (UnsupportedError: it needs cuda)"}
    assert content["failed"] == {"typo": "NameError: name 'x' is not defined", "other": "RuntimeError: bad shape"}


def test_a_part_without_any_figure_fails(part: Part) -> None:
    assert part.finish() == 1


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.filterwarnings("ignore")
def test_outcomes_of_tests_are_kept(part: Part, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "dry", False)
    monkeypatch.setattr(part, "strict", False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "test_good.py").write_text(TESTS)
    (tmp_path / "test_broken.py").write_text("# mark.gpu\nimport a_library_that_is_missing\n")
    (tmp_path / "test_other.py").write_text("def test_of_the_cpu(): assert False\n")
    files = gpu_tests.marked(tmp_path)
    assert [Path(file).name for file in files] == ["test_broken.py", "test_good.py"]
    gpu_tests.run(part, files, processes)
    content = kept(part)
    assert content["tests"] == {"collected": 4, "passed": 1, "failed": 3, "skipped": 1}
    assert content["headline"] == "1 passed, 3 failed, 1 skipped of 4"
    failed = {Path(name).name.partition("::")[2] or Path(name).name: reason for name, reason in content["failed"].items()}
    assert "not equal" in failed["test_two"]
    assert "no disk" in failed["test_four"]
    assert part.finish() == 0
    part.strict = True
    assert part.finish() == 1
    assert "No module named 'a_library_that_is_missing'" in failed["test_broken.py"]


@pytest.mark.filterwarnings("ignore")
def test_a_dry_run_skips_the_tests(part: Part, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "test_good.py").write_text(TESTS)
    gpu_tests.run(part, gpu_tests.marked(tmp_path), 1)
    assert kept(part)["tests"] == {"collected": 4, "passed": 0, "failed": 0, "skipped": 4}
    assert part.finish() == 0
