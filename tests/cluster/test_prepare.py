"""A store is prepared by tasks of a cluster, with the files that one process writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from balancer.cli import main

pytestmark = pytest.mark.xdist_group("ray")


def _files(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*") if file.is_file()}


def test_a_cluster_prepares_the_store_of_one_process(
    cluster: Any, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, where = ["prepare", "--dataset", str(tiny_table), "--shards", "3"], ["--cluster", cluster.address]
    assert main([*flags, "--out", str(tmp_path / "one")]) == 0
    assert main([*flags, "--out", str(tmp_path / "two [1]"), *where]) == 0
    assert _files(tmp_path / "one") == _files(tmp_path / "two [1]")
    bad = tmp_path / "bad.parquet"
    pl.read_parquet(tiny_table).with_columns(card_id=pl.lit(None, pl.String)).write_parquet(bad)
    capsys.readouterr()
    assert main(["prepare", "--dataset", str(bad), "--entity", "card_id", "--out", str(tmp_path / "three"), *where]) == 2
    assert "column 'card_id'" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()
