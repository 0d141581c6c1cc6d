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


@pytest.fixture
def places(tmp_path: Path) -> list[tuple[str, str]]:
    """Places where no file can be written, each with a part of the error."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.parquet").mkdir()
    found = [(str(tmp_path / "no"), "does not exist"), (str(tmp_path / "file"), "does not exist")]
    return found + ([("/proc", "can't be written")] if Path("/proc/self").exists() else [])  # not even root can write there


def no_work(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Let a function fail that begins the work of a command."""

    def begun(*_: object, **__: object) -> None:
        raise AssertionError(f"{target} was called before the output was checked")

    monkeypatch.setattr(target, begun)


def test_output_files_are_checked_before_the_work(
    places: list[tuple[str, str]],
    tiny_run: Path,
    tiny_table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for work in (
        "balancer.comparison.running.FoldedTable",
        "balancer.runs.tables.load_dataset",
        "balancer.data.simulation.stream.simulate",
        "balancer.deployment.export._write",
        "balancer.deployment.export.training_table",
    ):
        no_work(monkeypatch, work)
    compare = ["compare", "--dataset", str(tiny_table), "--treatments", "none", "--out", str(tmp_path / "c")]
    commands = {
        "--json": ([*compare, "--json"], "r.json"),
        "--chart": ([*compare, "--chart"], "c.svg"),
        "--output": (["score", str(tiny_run), "--input", str(tiny_table), "--output"], "s.csv"),
        "--out": (["simulate", "--out"], "t.parquet"),
        "--out ": (["export", str(tiny_run), "--out"], "m.onnx"),
        "--out  ": (["export", str(tiny_run), "--lite", "--out"], "m.onnx"),
    }
    for flag, (command, name) in commands.items():
        for folder, said in places:
            error = one_line(capsys, *command, f"{folder}/{name}")
            assert error.startswith(f"error: {flag.strip()} {folder}/{name}"), error
            assert said in error
    assert "is a folder: name a file" in one_line(capsys, "simulate", "--out", str(tmp_path / "folder.parquet"))
    assert not (tmp_path / "c").exists()


def test_output_folders_are_checked_before_the_work(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    no_work(monkeypatch, "balancer.comparison.running.FoldedTable")
    no_work(monkeypatch, "balancer.training.preparation.load_dataset")
    no_work(monkeypatch, "balancer.policy_learning.training.train_task_policy")
    commands = [["compare", "--treatments", "none", "--dataset", str(tiny_table)], ["policy", "train"]]
    commands += [[command, "--dataset", str(tiny_table)] for command in ("train", "pretrain")]
    for command in commands:
        assert "can't be made" in one_line(capsys, *command, "--out", str(tmp_path / "file" / "a" / "b"))
        if Path("/proc/self").exists():
            assert "can't be made" in one_line(capsys, *command, "--out", "/proc/a/b")


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
