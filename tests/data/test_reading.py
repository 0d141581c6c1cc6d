"""Reading good and damaged files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import polars as pl
import pytest

from balancer.data.reading import read_columns, read_input
from balancer.errors import InputError
from balancer.tables import csv_text

TABLE = pl.DataFrame({"a": [1, 2, 3], "b": ["x", "y,z", 'q "r"\ns'], "c": [0.5, None, 2.5]})


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_parquet_csv_and_folder_agree(tmp_path: Path) -> None:
    TABLE.write_parquet(tmp_path / "t.parquet")
    TABLE.write_csv(tmp_path / "t.csv")
    folder = tmp_path / "parts" / "day=1"
    folder.mkdir(parents=True)
    TABLE[:1].write_parquet(folder / "0.parquet")
    TABLE[1:].write_parquet(folder / "1.parquet")
    assert read_input(tmp_path / "t.parquet").equals(TABLE)
    assert read_input(tmp_path / "parts").equals(TABLE.with_columns(day=pl.lit("1")))
    assert read_input(tmp_path / "t.csv").cast(TABLE.schema).equals(TABLE)
    assert read_columns(tmp_path / "t.parquet", ["c", "a"]).columns == ["c", "a"]


def test_other_separators_and_line_ends(tmp_path: Path) -> None:
    assert read_input(write(tmp_path / "t.csv", "a;b\r\n1;2\r\n3;4")).rows() == [("1", "2"), ("3", "4")]
    assert read_input(write(tmp_path / "t.tsv", "a\tb\n1\t2,5\n")).rows() == [("1", "2,5")]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1 << 20])
@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("a,b,c\n1,2,3\n4,5\n6,7,8\n", 2),
        ("a,b,c\n1,2,3\n4,5,6,7\n6,7,8\n", 2),
        ("a,b,c\n1,2,3\n4,5", 2),
        ('a,b,c\n1,"2\n,x",3\n4,"",6\n7,8\n', 3),
        ("a,b,c\n1,2,3\n4,5,6\n", None),
        ("a,b,c\n1,2,3\n4,5,6", None),
        ('a,b,c\n1,"2 ""x"",\n",3\n', None),
    ],
)
def test_a_row_with_another_number_of_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, text: str, row: int | None
) -> None:
    monkeypatch.setattr(csv_text, "_CHUNK_BYTES", chunk)
    path = write(tmp_path / "t.csv", text)
    if row is None:
        assert read_input(path).width == 3
    else:
        with pytest.raises(InputError, match=rf"t\.csv: row {row} \(line .* correct the row"):
            read_input(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "is empty"),
        ("t.csv", "a,b\n", "is empty: it has no rows"),
        ("t.csv", 'a,b\n1,"2\n', "quote is opened and never closed"),
        ("t.parquet", "", r"t\.parquet can't be read, it is damaged, truncated"),
        ("t.parquet", "PAR1 and then something else", "can't be read"),
        ("t.xlsx", "x", "a spreadsheet \\(.xlsx\\)"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_input(write(tmp_path / name, text))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_parquet(tmp_path: Path, share: float) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": range(10_000)}).write_parquet(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match="truncated"):
        read_input(path)


def test_absent_things(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_input(tmp_path / "no.parquet")
    with pytest.raises(InputError, match=r"has no \.parquet file"):
        read_input(tmp_path)
    with pytest.raises(InputError, match=r"no column 'd': .*known: a, b, c"):
        read_columns(TABLE, ["a", "d"])
    with pytest.raises(InputError, match="no rows"):
        read_input(TABLE.clear())


def test_delta_folder_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_delta_log").mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'balancer\[cluster\]'"):
        read_input(tmp_path)
