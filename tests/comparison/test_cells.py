"""Cells on disk: complete or absent, distinct, and one comparison per folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from balancer.comparison.cells import Cell, CellFolder, slug
from balancer.errors import InputError

FLAGS = {"dataset": "table.parquet", "epochs": 3, "treatments": ["none"], "gap": "1d"}


def test_written_cells_are_read_again(tmp_path: Path) -> None:
    folder = CellFolder.create(tmp_path / "c", FLAGS)
    cells = [Cell(name, 0, seed) for name in ("none", "constant:share=.2", "constant:share=,2") for seed in (0, 1)]
    assert folder.missing(cells) == cells
    assert folder.read(cells[0]) is None
    for place, cell in enumerate(cells):
        folder.write(cell, {"average_precision": place / 10})
    assert folder.missing([*cells, Cell("auto", 0, 0)]) == [Cell("auto", 0, 0)]
    assert [folder.read(cell)["average_precision"] for cell in cells] == [p / 10 for p in range(6)]  # type: ignore[index]
    assert len({slug(cell.treatment) for cell in cells}) == 3
    assert not {"/", ":", " "} & set(slug("../some folder/of: mine"))


def test_resume_with_the_same_flags_but_for_those_that_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CellFolder.create(tmp_path / "c", FLAGS).write(Cell("none", 0, 0), {})
    again = FLAGS | {"treatments": ["none", "auto"], "dataset": str(tmp_path / "table.parquet")}
    folder = CellFolder.resume(tmp_path / "c", again, may_differ={"treatments"})
    assert folder.read(Cell("none", 0, 0)) is not None
    assert CellFolder.flags(tmp_path / "c")["treatments"] == ["none", "auto"]
    for changed, message in (({"epochs": 4}, "--epochs 4 differs .* started with 3"), ({"label_delay": "2d"}, "--label-delay 2d differs")):
        with pytest.raises(InputError, match=message):
            CellFolder.resume(tmp_path / "c", again | changed, may_differ={"treatments"})
    assert CellFolder.flags(tmp_path / "c")["epochs"] == 3


def test_refuses_a_folder_in_use_a_missing_one_and_a_foreign_one(tmp_path: Path) -> None:
    CellFolder.create(tmp_path / "c", FLAGS)
    with pytest.raises(InputError, match="add --resume"):
        CellFolder.create(tmp_path / "c", FLAGS)
    with pytest.raises(InputError, match="is no folder"):
        CellFolder.resume(tmp_path / "d", FLAGS, may_differ=())
    (tmp_path / "e").mkdir()
    with pytest.raises(InputError, match="missing"):
        CellFolder.flags(tmp_path / "e")
    (tmp_path / "e" / "compare.json").write_text('{"format": 99, "flags": {}}')
    with pytest.raises(InputError, match="was not written by this version"):
        CellFolder.flags(tmp_path / "e")
    with pytest.raises(InputError, match="is not empty: name"):
        (tmp_path / "f").mkdir()
        (tmp_path / "f" / "letter.txt").write_text("x")
        CellFolder.create(tmp_path / "f", FLAGS)


def test_corrupt_or_moved_cells_are_named(tmp_path: Path) -> None:
    folder = CellFolder.create(tmp_path / "c", FLAGS)
    folder.write(Cell("none", 0, 0), {})
    file = next((tmp_path / "c" / "cells" / "none").iterdir())
    file.rename(file.with_name("fold-0-seed-1.json"))
    with pytest.raises(InputError, match="is of another cell: delete it"):
        folder.read(Cell("none", 0, 1))
    file.write_text('{"treatment": ')
    with pytest.raises(InputError, match="delete it to train it again"):
        folder.read(Cell("none", 0, 0))
