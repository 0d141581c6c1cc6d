"""A stream in blocks: the same rows in any number of files, exact counts, nothing shared between blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from balancer.cli import main
from balancer.data.simulation import sharded
from balancer.data.simulation.sharded import blocks_of, write_shards
from balancer.data.simulation.stream import simulate
from balancer.errors import InputError


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "BLOCK_ROWS", 5_000)


def test_rows_do_not_depend_on_the_number_of_files(tmp_path: Path) -> None:
    frames = []
    for shards in (1, 2, 4):
        totals = write_shards(tmp_path / str(shards), 20_001, shards, seed=3, fraud_rate=0.02)
        assert len([*(tmp_path / str(shards)).iterdir()]) == shards
        frames.append(pl.scan_parquet(tmp_path / str(shards) / "*.parquet").collect())
        assert (totals.rows, totals.fraud) == (20_001, 400)
    one = frames[0]
    assert all(one.equals(other) for other in frames[1:])
    assert one["transaction_id"].to_list() == [*range(1, 20_002)]
    assert one.schema == simulate(5_000, seed=1, fraud_rate=0.02).schema
    assert int(one["is_fraud"].sum()) == 400
    block = pl.Series([number for number, rows in enumerate(blocks_of(20_001, 0.02)) for _ in range(rows)])
    for name in ("card_id", "merchant_id"):
        assert one.with_columns(block.alias("block")).group_by(name).agg(pl.col("block").n_unique())["block"].max() == 1
    assert totals.cards == one["card_id"].n_unique()
    assert totals.merchants == one["merchant_id"].n_unique()


def test_blocks_differ_and_follow_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_shards(tmp_path / name, 10_000, 1, seed=seed, cards=101, labels="types")
    a, b = (pl.read_parquet(tmp_path / name / "part-00000.parquet") for name in ("a", "b"))
    assert a["card_id"].n_unique() == 101
    assert not a["amount"].equals(b["amount"])
    assert not a["amount"][:5_000].equals(a["amount"][5_000:])


def test_a_block_has_enough_frauds() -> None:
    assert len(blocks_of(50_000, 0.01)) == 10
    assert blocks_of(50_000, 0.0021) == [25_000, 25_000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 20_000, "shards": 5}, "--shards is 5: give a number from 1 to 4"),
        ({"rows": 20_000, "shards": 0}, "--shards is 0"),
        ({"rows": 20_000, "shards": 2, "cards": 3}, "--cards is 3"),
        ({"rows": 20_000, "shards": 2, "fraud_rate": 0.7}, "--fraud-rate is 0.7"),
        ({"rows": -1, "shards": 1}, "--rows is -1"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_shards(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_the_command_and_a_folder_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table"
    command = ["simulate", "--rows", "10000", "--shards", "2", "--out", str(out), "--json"]
    assert main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["fraud"], summary["columns"][0]) == (10_000, 100, "transaction_id")
    assert main(command) == 2
    assert "is not empty: name another folder, or add --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    (out / "notes.txt").touch()
    capsys.readouterr()
    assert main([*command, "--overwrite"]) == 2
    assert "has notes.txt, which balancer simulate did not write" in capsys.readouterr().err
