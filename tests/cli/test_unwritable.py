"""Targets that can't be written end in one line and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from balancer.cli import main


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error of a command that must fail with exit code 2."""
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def test_a_policy_or_database_below_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Below a file nothing can be made, not even by root.
    (tmp_path / "file").write_text("")
    assert "can't be made" in one_line(capsys, "policy", "train", "--out", str(tmp_path / "file" / "policy"))
    url = f"sqlite:///{tmp_path / 'file' / 'x.db'}"
    for command in (["keys", "create", "--tenant", "a", "--database", url], ["keys", "list", "--database", url]):
        assert "--database" in one_line(capsys, *command)


def test_keys_are_not_listed_from_a_database_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["list"], ["revoke", "k"]):
        assert "does not exist" in one_line(capsys, "keys", *command, "--database", f"sqlite:///{tmp_path / 'no' / 'x.db'}")
    assert not (tmp_path / "no").exists()


def test_a_run_that_cannot_be_locked(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / ".lock").unlink(missing_ok=True)
    (run / ".lock").mkdir()  # a folder can't be opened for writing
    assert "can't be written" in one_line(capsys, "quantize", str(run))
