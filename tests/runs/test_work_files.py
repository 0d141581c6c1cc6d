"""Files of finished steps are used again only where they are what the run wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from balancer.errors import CorruptFileError
from balancer.files import read_json
from balancer.runs.run_folder import RunFolder
from balancer.runs.work_files import DIGESTS_FILE, WorkFiles


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "work").mkdir()
    return RunFolder(tmp_path, {})


def written(folder: RunFolder, name: str, text: str = "{}") -> Path:
    (folder.work / name).write_text(text)
    return folder.work / name


def test_a_step_is_finished_where_its_files_are_as_they_were(folder: RunFolder) -> None:
    said: list[str] = []
    files = WorkFiles(folder, said.append)
    one, two = written(folder, "one.txt"), written(folder, "two.txt")
    files.keep(one, two)
    again = WorkFiles(folder, said.append)
    assert again.finished(one) and again.finished(one, two) and not again.finished(one, folder.work / "three.txt")
    two.write_text("another run's")
    assert not again.finished(one, two)
    assert said == [f"note: {two} is not what this run wrote: its step is done again"]
    assert not one.exists() and not two.exists()


@pytest.mark.parametrize("change", ["{", "", "[1]"])
def test_a_damaged_file_is_removed_with_a_note(change: str, folder: RunFolder) -> None:
    said: list[str] = []
    files, file = WorkFiles(folder, said.append), written(folder, "one.txt")
    files.keep(file)

    def read(path: Path) -> object:
        return read_json(path, what="it is a test")

    assert files.readable(file, read)
    file.write_text(change)
    assert not files.readable(file, read) and not file.exists() and len(said) == 1
    # Also where the damage is older than the digest.
    files.keep(written(folder, "one.txt", change))
    assert not files.readable(file, read) and "damaged" in said[1]
    assert not files.readable(file, read)


def test_a_file_that_this_run_has_not_finished_is_not_used(folder: RunFolder) -> None:
    files = WorkFiles(folder, lambda _: None)
    files.keep(written(folder, "one.txt"))
    assert not WorkFiles(folder, lambda _: None).finished(written(folder, "foreign.txt"))


def test_the_steps_of_a_version_without_digests_are_used(folder: RunFolder) -> None:
    old = written(folder, "first-0.txt")
    files = WorkFiles(folder, lambda _: None)
    assert files.finished(old)
    files.keep(written(folder, "first-1.txt"))
    assert WorkFiles(folder, lambda _: None).finished(old)
    old.write_text("another run's")
    assert not WorkFiles(folder, lambda _: None).finished(old)


def test_damaged_digests_name_the_file_to_delete(folder: RunFolder) -> None:
    (folder.work / DIGESTS_FILE).write_text(json.dumps([1]))
    with pytest.raises(CorruptFileError, match=f"{DIGESTS_FILE}.*delete it"):
        WorkFiles(folder, print)
