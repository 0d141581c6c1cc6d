"""A store is scored shard by shard, here and on a cluster, with the scores of the table to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from balancer.cli import main
from balancer.errors import InputError, UnsupportedError
from balancer.runs.shard_scores import ShardScoring, score_store
from balancer.runs.tables import score_file
from balancer.runs.trained_run import TrainedRun

pytestmark = pytest.mark.xdist_group("ray")
COLUMNS = ("score", "decision", "class")
CHANGES = ("drift", "alert_rate", "warnings")


@pytest.fixture(scope="module")
def stored(tiny_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "store"
    assert main(["prepare", "--dataset", str(tiny_table), "--out", str(out), "--shards", "3"]) == 0
    return out


@pytest.fixture(scope="module")
def expected(tiny_table: Path, tiny_run: Path, stored: Path) -> pl.DataFrame:
    out = stored.parent / "whole.parquet"
    summary = score_file(TrainedRun.load(tiny_run, precision="auto"), tiny_table, out, past=None, bad_rows="error", explain=1)
    (out.parent / "changes.json").write_text(json.dumps({name: summary[name] for name in CHANGES}))
    return pl.read_parquet(out)


def _scoring(run: Path, store: Path, output: Path, **changed: Any) -> ShardScoring:
    return ShardScoring(run, store, output, **({"precision": "auto", "streaming": False, "explain": 0} | changed))


def _in_order(folder: Path) -> pl.DataFrame:
    frame = pl.read_parquet(sorted(folder.glob("part-*.parquet")), glob=False)
    return frame.sort("transaction_id") if "transaction_id" in frame.columns else frame.sort("row")


def _check(folder: Path, expected: pl.DataFrame, *more: str) -> None:
    found = _in_order(folder)
    whole = expected.sort("transaction_id") if "transaction_id" in found.columns else expected
    for name in (*COLUMNS, *more):
        assert found[name].to_list() == whole[name].to_list()


def test_nothing_is_written_where_it_can_not_be_scored(
    tiny_run: Path, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> None:
        raise UnsupportedError("no Ray cluster answers there")

    # This process may be connected to the cluster of the other tests already.
    monkeypatch.setattr("balancer.runs.shard_scores.connected", silent)
    with pytest.raises(InputError, match="is in the folder of --input"):
        score_store(_scoring(tiny_run, stored, stored / "scores"))
    with pytest.raises(InputError, match="no Ray cluster answers there"):
        score_store(_scoring(tiny_run, stored, tmp_path / "scores"), cluster="127.0.0.1:1")
    assert not (stored / "scores").exists()
    assert not (tmp_path / "scores").exists()


def test_shards_have_the_scores_of_the_table_and_are_kept(
    tiny_run: Path, stored: Path, expected: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["score", str(tiny_run), "--input", str(stored), "--output", str(tmp_path / "s"), "--explain", "1", "--json"]
    assert main(flags) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["alarms"]) == (expected.height, expected["decision"].sum())
    _check(tmp_path / "s", expected, "reasons")
    alike = json.loads((stored.parent / "changes.json").read_text())
    assert {name: summary[name] for name in CHANGES} == alike
    first = tmp_path / "s" / "part-00000.parquet"
    kept = first.stat().st_mtime_ns
    (tmp_path / "s" / "part-00001.parquet").unlink()
    assert main(flags) == 0
    assert first.stat().st_mtime_ns == kept
    _check(tmp_path / "s", expected, "reasons")
    assert pl.read_parquet(tmp_path / "s" / "part-*.parquet").height == expected.height
    with pytest.raises(InputError, match="holds scores of another store or run, or with other flags"):
        score_store(_scoring(tiny_run, stored, tmp_path / "s"))
    score_store(_scoring(tiny_run, stored, tmp_path / "s"), overwrite=True)
    assert "reasons" not in _in_order(tmp_path / "s").columns


def test_a_cluster_scores_the_shards_that_are_missing(
    cluster: Any, tiny_run: Path, stored: Path, expected: pl.DataFrame, tmp_path: Path
) -> None:
    def stopping(done: int, _: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    scoring, out = _scoring(tiny_run, stored, tmp_path / "s"), tmp_path / "s"
    with pytest.raises(KeyboardInterrupt):
        score_store(scoring, cluster=cluster.address, workers=1, progress=stopping)
    assert 1 <= len(list(out.glob("part-*.parquet"))) < 3
    result = score_store(scoring, cluster=cluster.address)
    assert result["rows"] == expected.height
    _check(out, expected)


def test_whole_histories_have_the_scores_of_the_table(tiny_table: Path, stored: Path, tmp_path: Path) -> None:
    """Batches of segments have shapes of their own."""
    flags = ["--form", "histories", "--history-length", "40", "--learner", "network", "--policy", "auto", "--precision", "full"]
    short = ["--epochs", "1", "--steps-per-epoch", "4", "--d-model", "16", "--layers", "1"]
    assert main(["train", "--dataset", str(tiny_table), "--out", str(tmp_path / "run"), *flags, *short]) == 0
    score_file(TrainedRun.load(tmp_path / "run"), tiny_table, tmp_path / "whole.parquet", past=None, bad_rows="error")
    score_store(_scoring(tmp_path / "run", stored, tmp_path / "s"))
    _check(tmp_path / "s", pl.read_parquet(tmp_path / "whole.parquet"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--past", "{table}"), "--past is for tables"),
        (("--bad-rows", "drop"), "--bad-rows is for tables"),
    ],
)
def test_flags_of_tables(
    flags: tuple[str, ...], message: str, tiny_run: Path, tiny_table: Path, stored: Path, tmp_path: Path, capsys: Any
) -> None:
    given = [flag.format(table=tiny_table) for flag in flags]
    assert main(["score", str(tiny_run), "--input", str(stored), "--output", str(tmp_path / "s"), *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_table_has_no_shards(tiny_run: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--input", str(tiny_table), "--output", str(tmp_path / "s.parquet"), "--workers", "2"]
    assert main(["score", str(tiny_run), *flags]) == 2
    assert "--cluster and --workers score the shards of a store" in capsys.readouterr().err
    assert np.all([file.suffix != ".parquet" for file in tmp_path.iterdir()])


def test_changes_are_those_of_the_table_also_for_new_values(
    tiny_run: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Values that training did not have are in some shards only, and some rows of a store are enough."""
    frame = pl.read_parquet(tiny_table)
    row = pl.int_range(pl.len())
    category = next(name for name, kind in frame.schema.items() if kind == pl.String and frame[name].n_unique() < 30)
    changed = frame.with_columns(
        pl.when(row % 7 == 0).then(pl.lit("one")).when(row % 50 == 1).then(pl.lit("two")).otherwise(category).alias(category)
    )
    changed.write_parquet(tmp_path / "changed.parquet")
    assert main(["prepare", "--dataset", str(tmp_path / "changed.parquet"), "--out", str(tmp_path / "store"), "--shards", "3"]) == 0
    capsys.readouterr()
    found = []
    for source, out in (("changed.parquet", "t.parquet"), ("store", "s")):
        assert main(["score", str(tiny_run), "--input", str(tmp_path / source), "--output", str(tmp_path / out), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["drift"])
    assert found[0]["unseen"][category]["examples"] == ["one", "two"]
    assert found[1] == found[0]


@pytest.mark.parametrize(("label", "held"), [(0, "only the class '0'"), (None, "no value")])
def test_rows_without_a_fraud_are_scored(
    label: int | None, held: str, tiny_run: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labels of new rows are often not known yet."""
    table, store = tmp_path / "new.parquet", tmp_path / "store"
    pl.read_parquet(tiny_table).with_columns(is_fraud=pl.lit(label, pl.Int8)).write_parquet(table)
    assert main(["prepare", "--dataset", str(table), "--out", str(store), "--shards", "2"]) == 0
    assert f"column 'is_fraud' has {held}: the store can be scored, and not be trained on" in capsys.readouterr().err
    score_file(TrainedRun.load(tiny_run, precision="auto"), table, tmp_path / "whole.parquet", past=None, bad_rows="error")
    score_store(_scoring(tiny_run, store, tmp_path / "s"))
    _check(tmp_path / "s", pl.read_parquet(tmp_path / "whole.parquet"))
    for command in ("train", "compare"):
        assert main([command, "--dataset", str(store), "--out", str(tmp_path / command)]) == 2
        assert "training needs rows of at least two classes" in capsys.readouterr().err
        assert not (tmp_path / command).exists()


def test_figures_of_a_shard_that_can_not_be_read(tiny_run: Path, stored: Path, tmp_path: Path) -> None:
    score_store(_scoring(tiny_run, stored, tmp_path / "s"))
    file = tmp_path / "s" / "_compared-00001.npz"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match=r"_compared-00001\.npz can't be read .*: delete it, and score again"):
        score_store(_scoring(tiny_run, stored, tmp_path / "s"))
    file.unlink()
    assert score_store(_scoring(tiny_run, stored, tmp_path / "s"))["drift"] is not None
