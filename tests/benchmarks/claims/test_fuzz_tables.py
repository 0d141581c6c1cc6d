"""The fuzz of tables repeats its tables, sees faults of messages, and finds none in a few tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from balancer.data.dataset import load_dataset
from balancer.data.roles import resolve_spec
from benchmarks.claims.fuzz_tables import SEED, fault_of, outcome
from benchmarks.lib.damage import KINDS, damaged, table, write


def files(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in ([path] if path.is_file() else sorted(path.iterdir()))]


def test_a_number_gives_the_same_file_again(tmp_path: Path) -> None:
    for number in range(30):
        found = []
        for folder in (tmp_path / f"{number}-a", tmp_path / f"{number}-b"):
            folder.mkdir()
            path, done = damaged(SEED, number, folder)
            found.append((files(path), done))
        assert found[0] == found[1]


@pytest.mark.parametrize("number", range(5_000_000, 5_000_040))
def test_a_damaged_table_is_read_or_refused_in_one_sentence(number: int, tmp_path: Path) -> None:
    path, done = damaged(SEED, number, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result, text = outcome(path)
    assert result in ("read", "refused"), (done, text)
    assert sorted(tmp_path.rglob("*")) == before


def test_every_kind_of_an_undamaged_table_gives_the_same_values(tmp_path: Path) -> None:
    stores = {}
    frame = table(np.random.default_rng(1))
    minutes = frame.with_columns(pl.col("time").dt.truncate("1m"))  # what the day-first dates can hold
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        path = write(minutes, kind, tmp_path / kind, np.random.default_rng(3)) if "folder" not in kind else None
        if path is not None:
            stores[kind] = load_dataset(path, resolve_spec(path)).store.values
    first = stores["parquet"]
    for kind, values in stores.items():
        np.testing.assert_array_equal(values, first, err_msg=kind)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("column 'amount': row 3 is text, not a number ('a'): write a number", None),
        ("TABLE is empty: it has no rows", None),
        ("column 'a'\nand more", "more than one line"),
        ("column 'x' is bad " * 60, "characters"),
        ("column 'a' has dtype Int64", "a word of a library"),
        ("nothing is named here", "names neither"),
    ],
)
def test_faults_of_messages(message: str, fault: str | None) -> None:
    found = fault_of(message.replace("TABLE", "/tmp/table.csv"), Path("/tmp/table.csv"))
    assert (found is None) == (fault is None)
    assert fault is None or fault in str(found)
