"""What the app finds in a folder of runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from balancer.app.browsing import TREES, find_comparisons, read_run
from balancer.app.loading import stamp
from balancer.errors import CorruptFileError
from balancer.inference.tree_stages import STAGES_FILE, TREES_FOLDER


def test_files_of_jobs_are_no_comparisons(tmp_path: Path) -> None:
    for folder in (".jobs", "mine"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "comparison.json").write_text("{}")
    assert find_comparisons(tmp_path) == [tmp_path / "mine" / "comparison.json"]


@pytest.mark.parametrize("name", ["model.safetensors", "epochs.parquet", "predictions.parquet", "report.json", "decision.json", TREES])
def test_a_missing_file_of_a_run_is_told_in_one_sentence(tiny_run: Path, tmp_path: Path, name: str) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / name).unlink()
    found = read_run(run)
    assert found.status == "broken"
    assert found.problem.startswith(f"{run / name} is missing: it ")
    assert found.problem.endswith("; give a complete run folder")


def test_a_run_of_both_kinds_says_its_members_and_its_size(tiny_run: Path) -> None:
    assert f"{TREES_FOLDER}/{STAGES_FILE}" == TREES
    found = read_run(tiny_run)
    assert (found.kind, found.has_network, found.has_trees) == ("hybrid", True, True)
    assert sum(found.members.values()) == pytest.approx(1)
    assert found.size == sum(path.stat().st_size for path in (tiny_run / "model.safetensors", *(tiny_run / "trees").iterdir()))


def test_a_run_without_permission_is_told_in_one_sentence(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    found = read_run(tiny_run)
    assert found.status == "broken"
    assert found.problem == f"a file of {tiny_run} can't be read (permission denied): check its permissions, or train the run again"


def test_a_file_that_vanished_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"gone.json can't be read \(no such file or directory\): the run is damaged"):
        stamp(tmp_path / "gone.json")
