"""`balancer score --explain`: reasons for alarms, and for nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from balancer.cli import main
from balancer.runs.trained_run import TrainedRun


@pytest.fixture(scope="module")
def scored(tiny_run: Path, tiny_table: Path, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    out = tmp_path_factory.mktemp("scored") / "scored.parquet"
    assert main(["score", str(tiny_run), "--input", str(tiny_table), "--output", str(out), "--explain", "3"]) == 0
    return pl.read_parquet(out)


def test_each_alarm_has_its_strongest_fields_in_words(scored: pl.DataFrame, tiny_run: Path, tiny_table: Path) -> None:
    assert 0 < scored["decision"].sum() < scored.height
    assert (scored["reasons"].is_not_null() == scored["decision"]).all()
    parts = scored["reasons"].drop_nulls().str.split("; ")
    assert 1 <= parts.list.len().min() <= parts.list.len().max() <= 3  # type: ignore[operator]
    texts = " ".join(scored["reasons"].drop_nulls())
    assert "this card" in texts
    assert "stage1_" not in texts
    run = TrainedRun.load(tiny_run, precision="auto")
    data = run.table(tiny_table)
    rows = data.scored_rows()[scored["decision"].to_numpy()][:5]
    found = run.contributions(data, rows)
    assert found.reasons(data, 3) == scored["reasons"].drop_nulls()[:5].to_list()
    raw = run.scores(data, rows)
    np.testing.assert_allclose(
        found.frame(data).group_by("row", maintain_order=True).agg(pl.col("contribution").sum())["contribution"],
        np.log(raw[:, 1]) - np.log(raw[:, 0]),
        atol=1e-6,
    )


def test_the_other_columns_do_not_depend_on_it(scored: pl.DataFrame, tiny_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.csv"
    assert main(["score", str(tiny_run), "--input", str(tiny_table), "--output", str(plain)]) == 0
    read = pl.read_csv(plain)
    assert read.columns == scored.columns[:-1]
    assert read["score"].to_list() == scored["score"].to_list()


def test_reasons_are_written_to_csv(scored: pl.DataFrame, tiny_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.csv"
    assert main(["score", str(tiny_run), "--input", str(tiny_table), "--output", str(out), "--explain", "3"]) == 0
    assert pl.read_csv(out)["reasons"].to_list() == scored["reasons"].to_list()


def test_bad_input_is_refused(tiny_run: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["score", str(tiny_run), "--output", str(tmp_path / "out.parquet"), "--input"]
    assert main([*arguments, str(tiny_table), "--explain", "-1"]) != 0
    assert "--explain is -1" in capsys.readouterr().err
    named = tmp_path / "named.parquet"
    pl.read_parquet(tiny_table).with_columns(reasons=pl.lit("x")).write_parquet(named)
    assert main([*arguments, str(named), "--explain", "1"]) != 0
    assert "'reasons'" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def test_a_table_without_alarms_has_no_reasons(tiny_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out.parquet"
    shutil.copytree(tiny_run, run)
    content = json.loads((run / "decision.json").read_text())
    (run / "decision.json").write_text(json.dumps(content | {"threshold": 1.0}))
    assert main(["score", str(run), "--input", str(tiny_table), "--output", str(out), "--explain", "2"]) == 0
    assert pl.read_parquet(out)["reasons"].null_count() == pl.read_parquet(out).height
