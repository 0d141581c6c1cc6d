"""Tables without a time, random splits and dates of reports, as they are typed."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from balancer.cli import main
from balancer.errors import InputError
from balancer.serving.models.registry import LoadedModel
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("few_trees")


def trained(table: Path, out: Path, *flags: str) -> dict[str, object]:
    assert main(["train", "--dataset", str(table), "--out", str(out), *TINY, "--policy", "auto", *flags]) == 0
    content: dict[str, object] = json.loads((out / "report.json").read_text())["run"]["data"]
    return content


def test_time_none(tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pl.read_parquet(tiny_table).drop("time")
    table, out = tmp_path / "table.csv", tmp_path / "run"
    frame.write_csv(table)
    data = trained(table, out, "--time", "none")
    printed = capsys.readouterr().out
    assert "time none" in printed
    assert "--time none" in printed
    assert data["order"] == "rows"
    assert "its rows were split in their order" in (out / "report.md").read_text()
    test = json.loads((out / "report.json").read_text())["test"]
    assert test["alarms"]["alarms_per_day"] is None
    assert pl.read_parquet(out / "predictions.parquet")["time"].null_count() == test["rows"]
    assert main(["evaluate", str(out), "--dataset", str(table)]) == 0
    new, scores = tmp_path / "new.csv", [tmp_path / "a.csv", tmp_path / "b.csv"]
    frame[-50:].write_csv(new)
    frame[:-50].write_csv(tmp_path / "past.csv")
    for scored, flags in zip(scores, ([], ["--streaming"]), strict=True):
        command = ["score", str(out), "--input", str(new), "--history", str(tmp_path / "past.csv"), "--output", str(scored)]
        assert main([*command, *flags]) == 0
    one, other = (pl.read_csv(scored)["score"] for scored in scores)
    np.testing.assert_allclose(one, other, rtol=1e-4)
    with pytest.raises(InputError, match=r"trained without a time.*--time"):
        LoadedModel.load(out, "run")


def test_split_random(tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = tmp_path / "table.csv", tmp_path / "run"
    pl.read_parquet(tiny_table).sort("is_fraud").drop("time").write_csv(table)
    assert main(["train", "--dataset", str(table), "--out", str(out), *TINY, "--time", "none"]) == 2
    assert "--split random" in capsys.readouterr().err
    data = trained(table, out, "--time", "none", "--split", "random")
    assert data["order"] == "random"
    assert "drawn at random" in (out / "report.md").read_text()
    assert "later row" not in capsys.readouterr().out.split("run folder")[1]


def test_label_date(tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pl.read_parquet(tiny_table)
    rng = np.random.default_rng(0)
    fraud, wait = rng.random(frame.height) < 0.06, rng.exponential(5, frame.height)
    when = [at + timedelta(days=days) if yes else None for at, days, yes in zip(frame["time"], wait.tolist(), fraud, strict=True)]
    table, out = tmp_path / "table.csv", tmp_path / "run"
    frame.with_columns(chargeback=pl.Series(when)).drop("is_fraud").write_csv(table, datetime_format="%d/%m/%Y %H:%M:%S")
    trained(table, out, "--label-date", "chargeback")
    printed = capsys.readouterr().out
    assert "label chargeback (legitimate, fraud)" in printed
    assert "reported after its end: unlabelled in training" in printed
    assert main(["evaluate", str(out), "--dataset", str(table)]) == 0


def test_a_number_without_a_unit(tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pl.read_parquet(tiny_table)
    table = tmp_path / "table.csv"
    hours = (pl.col("time").dt.epoch("s") - pl.col("time").dt.epoch("s").min()) // 3600
    frame.with_columns(tick=hours).drop("time").write_csv(table)
    assert main(["train", "--dataset", str(table), "--time", "tick", "--out", str(tmp_path / "run"), *TINY]) == 2
    error = capsys.readouterr().err
    for word in ("taken as seconds", "--time-unit", "--label-delay", "--gap"):
        assert word in error
    assert not (tmp_path / "run").exists()
    trained(table, tmp_path / "run", "--time", "tick", "--time-unit", "h", "--gap", "1d")
