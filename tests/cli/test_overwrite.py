"""A file that the user names is replaced only with --overwrite, and a table that is read never is."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from balancer.cli import main
from balancer.errors import InputError
from balancer.files import check_new_file


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must fail."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def names(place: Path, source: Path) -> dict[str, Path]:
    """Paths that lead to a file in other ways."""
    (place / "symlink.csv").symlink_to(source)
    os.link(source, place / "hardlink.csv")
    (place / "folder").symlink_to(source.parent)
    return {
        "itself": source,
        "relative": Path(os.path.relpath(source)),
        "dots": source.parent / "." / ".." / source.parent.name / source.name,
        "symlink": place / "symlink.csv",
        "hard link": place / "hardlink.csv",
        "folder": place / "folder" / source.name,
    }


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    source = tmp_path / "a" / "in.csv"
    source.write_text("a\n1\n")
    (tmp_path / "b").mkdir()
    for name, target in names(tmp_path / "b", source).items():
        for overwrite in (False, True):
            with pytest.raises(InputError, match="also --past"):
                check_new_file(target, "--output", overwrite=overwrite, inputs={"--input": None, "--past": source})
        with pytest.raises(InputError, match="in the folder of --input"):
            check_new_file(target, "--output", overwrite=True, inputs={"--input": source.parent})
        assert source.read_text() == "a\n1\n", name
    with pytest.raises(InputError, match="in the folder of --input"):
        check_new_file(source.parent / "new.csv", "--output", overwrite=False, inputs={"--input": source.parent})


def test_an_existing_file_needs_the_flag(tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    check_new_file(target, "--output", overwrite=False)
    target.write_text("old")
    with pytest.raises(InputError, match="exists: name another file, or add --overwrite"):
        check_new_file(target, "--output", overwrite=False)
    check_new_file(target, "--output", overwrite=True, inputs={"--input": tmp_path / "other.csv"})
    assert target.read_text() == "old"


def test_score(tiny_run: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, output = tmp_path / "in.parquet", tmp_path / "out.csv"
    pl.read_parquet(tiny_table).tail(300).write_parquet(table)
    content = table.read_bytes()
    score = ["score", str(tiny_run), "--input", str(table)]
    output.write_text("old")
    assert "--overwrite" in refused([*score, "--output", str(output)], capsys)
    assert output.read_text() == "old"
    for target in (table, tmp_path / ".." / tmp_path.name / "in.parquet"):
        assert "--input" in refused([*score, "--output", str(target), "--overwrite"], capsys)
    assert "--past" in refused([*score, "--past", str(tiny_table), "--output", str(tiny_table), "--overwrite"], capsys)
    assert table.read_bytes() == content
    assert main([*score, "--output", str(output), "--overwrite"]) == 0
    assert pl.read_csv(output).height == 300


def test_other_commands(tiny_run: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / name for name in ("t.csv", "m.onnx", "m2.first.onnx", "r.json", "c.svg")}
    for file in files.values():
        file.write_text("old")
    compare = ["compare", "--dataset", str(tiny_table), "--treatments", "none", "--out", str(tmp_path / "cells")]
    commands = {
        "t.csv": ["simulate", "--out", str(files["t.csv"])],
        "m.onnx": ["export", str(tiny_run), "--out", str(files["m.onnx"])],
        "m2.first.onnx": ["export", str(tiny_run), "--out", str(tmp_path / "m2.onnx")],
        "r.json": [*compare, "--json", str(files["r.json"])],
        "c.svg": [*compare, "--chart", str(files["c.svg"])],
    }
    for name, command in commands.items():
        error = refused(command, capsys)
        assert name in error and "--overwrite" in error
    assert all(file.read_text() == "old" for file in files.values())
    assert not (tmp_path / "cells").exists()
    assert main(["simulate", "--out", str(files["t.csv"]), "--rows", "4000", "--overwrite"]) == 0
    assert pl.read_csv(files["t.csv"]).height == 4000


def test_a_comparison_does_not_replace_its_table(tiny_table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--json", "--chart"):
        error = refused(["compare", "--dataset", str(tiny_table.parent), flag, str(tiny_table.with_suffix(".svg")), "--overwrite"], capsys)
        assert f"{flag} " in error and "--dataset" in error
