"""balancer prepare, and the commands that take a store in place of the table: the same results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from balancer.cli import main
from balancer.comparison.folds import FoldedTable
from balancer.data.dataset import load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.sharded.folder import StoreFolder
from balancer.runs.tables import evaluate_file
from balancer.runs.trained_run import TrainedRun, training_table
from tests.conftest import TINY


@pytest.fixture(scope="module")
def store(tiny_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the tiny table, prepared by two processes; read it, don't write it."""
    out = tmp_path_factory.mktemp("prepared") / "store"
    assert main(["prepare", "--dataset", str(tiny_table), "--out", str(out), "--shards", "4", "--workers", "2"]) == 0
    return out


def test_a_store_made_by_several_processes(store: Path, tiny_table: Path) -> None:
    one, two = (load_dataset(path, resolve_spec(tiny_table)) for path in (tiny_table, store))
    np.testing.assert_array_equal(one.store.values, two.store.values)
    assert one.fingerprint == two.fingerprint
    assert StoreFolder.open(store).shards == 4


def test_the_summary_and_a_finished_store(store: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--dataset", str(tiny_table), "--out", str(tmp_path / "new"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["shards"], summary["dropped"]) == (6000, 1, {})
    assert {"amount_log", "merchant_id_fraud_rate_7d", "channel"} <= {*summary["fields"]}
    assert main(["prepare", "--dataset", str(tiny_table), "--out", str(store)]) == 2
    assert "is a finished store" in capsys.readouterr().err
    assert main(["prepare", "--dataset", str(tiny_table), "--out", str(store), "--shards", "0"]) == 2
    assert "--shards is 0: give a whole number" in capsys.readouterr().err


def test_training_on_a_store_gives_the_run_of_the_table(
    store: Path, tiny_table: Path, network_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network reads its batches from the memory-mapped values."""
    monkeypatch.setattr("balancer.evaluation.baselines.MAX_ROUNDS", 15)
    out = tmp_path / "run"
    assert main(["train", "--dataset", str(store), "--out", str(out), "--policy", "auto", "--learner", "network", *TINY]) == 0
    capsys.readouterr()
    for name in ("schema.json", "decision.json", "model.safetensors"):
        assert (out / name).read_bytes() == (network_run / name).read_bytes(), name
    for name in ("predictions.parquet", "test_scores.parquet"):
        assert pl.read_parquet(out / name).equals(pl.read_parquet(network_run / name)), name
    assert len(training_table(TrainedRun.load(out).folder).store) == 6000
    # The run knows its rows in both forms.
    run = TrainedRun.load(network_run)
    one, two = (evaluate_file(run, path, past=None, bad_rows="error") for path in (tiny_table, store))
    assert one["part"] == two["part"] == "test"
    assert one["test"] == two["test"]


def test_folds_of_a_store_are_those_of_the_table(store: Path, tiny_table: Path) -> None:
    folded = [FoldedTable(path, folds=2) for path in (tiny_table, store)]
    assert folded[0].folds == folded[1].folds
    for fold in folded[0].folds:
        one, two = (table.load(fold) for table in folded)
        np.testing.assert_array_equal(one.store.values, two.store.values)
        np.testing.assert_array_equal(one.split, two.split)


def test_inspect_and_other_roles(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(store), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 6000
    assert sum(found["classes"].values()) == 6000
    assert main(["train", "--dataset", str(store), "--entity", "merchant_id"]) == 2
    assert (
        "was prepared with other roles, the flags or the spec file give --entity merchant_id instead of card_id" in capsys.readouterr().err
    )
