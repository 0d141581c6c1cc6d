"""RunFolder: one process at a time writes a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from balancer import files
from balancer.errors import CorruptFileError, InputError, MissingFileError
from balancer.runs.run_folder import RunFolder


def test_a_held_run_is_locked_and_refuses_a_second_writer(tmp_path: Path) -> None:
    one, two = RunFolder(tmp_path, {}), RunFolder(tmp_path, {})
    assert not two.is_locked()
    with one.locked():
        assert two.is_locked()
        with pytest.raises(InputError, match="is being written by another balancer process"), two.locked():
            pass
    assert not two.is_locked()


def test_without_file_locks_a_warning_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "is_installed", lambda name: name != "fcntl")
    with pytest.warns(UserWarning, match="has no file locks"), RunFolder(tmp_path, {}).locked():
        pass


def test_what_is_missing_is_told_from_what_is_damaged(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(MissingFileError):
            RunFolder.open(path)
    for content in ("{", "[]", "{}"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(CorruptFileError, match=r"run\.json"):
            RunFolder.open(tmp_path)
