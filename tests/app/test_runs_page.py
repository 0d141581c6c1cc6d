"""The page Runs: the verdict first, at the threshold that scoring uses; a PDF; broken runs in a list."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from balancer.app.verdict import _verdict
from balancer.evaluation.plain_numbers import share
from balancer.inference.decision import Decision
from balancer.runs.run_report import read_verdict, run_pdf

APP = str(Path(__file__).resolve().parents[2] / "app" / "streamlit_app.py")


@pytest.fixture
def runs(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder with one real run, whose name Markdown could misread."""
    folder = tmp_path / "runs"
    shutil.copytree(tiny_run, folder / "first *run* [1]")
    monkeypatch.setenv("BALANCER_RUNS", str(folder))
    monkeypatch.setattr("sys.argv", ["streamlit_app.py"])
    return folder


@pytest.fixture
def run(runs: Path) -> Path:
    return next(runs.iterdir())


def opened() -> AppTest:
    return AppTest.from_file(APP, default_timeout=600).run()


def tiles(app: AppTest) -> dict[str, Any]:
    return {metric.label: metric.value for metric in app.metric}


def texts(app: AppTest) -> str:
    """All texts of the page, without the marks that keep Markdown from reading names."""
    return " ".join(each.value for each in (*app.title, *app.subheader, *app.markdown, *app.caption)).replace("\\", "")


def test_the_verdict_is_first_and_the_run_is_in_every_title(run: Path) -> None:
    app, verdict = opened(), read_verdict(run)
    assert not app.exception
    assert not app.error
    assert len(tiles(app)) == 4
    assert {tile.label: tile.value for tile in verdict.tiles} == tiles(app)
    assert app.subheader[0].value.replace("\\", "").endswith(verdict.recommendation)
    for sentence in (*verdict.sentences[:2], verdict.basis, *(tile.note for tile in verdict.tiles)):
        assert sentence in texts(app)
    titles = [app.title[0].value, *(each.value for each in app.subheader[2:])]
    assert len(titles) == 4
    assert all("first \\*run\\* \\[1\\]" in title for title in titles), titles


def test_a_saved_threshold_reaches_the_page(run: Path) -> None:
    before = tiles(opened())
    Decision.load(run).with_threshold(0.02, "a score of 0.02").save(run)
    app = opened()
    rows = pl.read_parquet(run / "predictions.parquet", glob=False).filter(pl.col("label") != "0")
    caught = (rows["score"] >= 0.02).sum()
    assert tiles(app)["Frauds caught"] == f"{caught:,} of {rows.height:,}"
    assert tiles(app)["Money caught"] == share(rows.filter(pl.col("score") >= 0.02)["amount"].sum() / rows["amount"].sum())
    assert tiles(app) != before
    assert "the threshold 0.02, which was saved on the page Threshold (a score of 0.02); training tuned" in texts(app)


@pytest.mark.parametrize("lacks", ["test_scores.parquet", "alarms", "amount", "time"])
def test_runs_that_lack_something(run: Path, lacks: str) -> None:
    predictions, schema = pl.read_parquet(run / "predictions.parquet", glob=False), json.loads((run / "schema.json").read_text())
    if lacks == "test_scores.parquet":
        (run / lacks).unlink()
    elif lacks == "alarms":
        report = json.loads((run / "report.json").read_text())
        for metrics in (report["test"], *report["baselines"].values()):
            del metrics["alarms"]
        (run / "report.json").write_text(json.dumps(report))
    elif lacks == "amount":
        schema["spec"]["amount"] = None
        (run / "schema.json").write_text(json.dumps(schema))
    else:
        predictions.with_columns(time=pl.lit(None, dtype=pl.Datetime("us"))).write_parquet(run / "predictions.parquet")
    app = opened()
    assert not app.exception
    assert not app.error
    assert len(app.metric) == 4
    assert ("Money caught" in tiles(app)) == (lacks != "amount")
    assert ("False alarms a day" in tiles(app)) == (lacks != "time")
    assert ("an earlier version wrote this run" in texts(app)) == (lacks == "test_scores.parquet")


def test_a_run_at_the_level_of_chance_is_not_recommended(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    report["test"]["average_precision"] = report["test"]["positives"] / report["test"]["rows"]
    (run / "report.json").write_text(json.dumps(report))
    app = opened()
    assert "Not recommended" in app.subheader[0].value
    assert "level of chance" in texts(app)


def test_the_pdf_is_offered(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [button.label for button in opened().get("download_button")].count("Report as PDF") == 1  # type: ignore[attr-defined]
    assert run_pdf(run).startswith(b"%PDF-")
    monkeypatch.setattr("balancer.dependencies.is_installed", lambda library: library != "fpdf")
    app = opened()
    assert not app.exception
    assert "Report as PDF" not in [button.label for button in app.get("download_button")]  # type: ignore[attr-defined]
    assert "pip install 'balancer[report]'" in texts(app)


def test_broken_and_unfinished_runs_are_in_one_closed_list(runs: Path, tiny_run: Path) -> None:
    for number in range(3):
        shutil.copytree(tiny_run, runs / f"broken_{number}_")
        (runs / f"broken_{number}_" / "report.json").write_text("{")
    shutil.copytree(tiny_run, runs / "half")
    content = json.loads((runs / "half" / "run.json").read_text())
    (runs / "half" / "run.json").write_text(json.dumps(content | {"status": "running"}))
    app = opened()
    (listed,) = app.expander
    assert listed.label == "3 runs can't be shown, 1 run not finished"
    assert not listed.proto.expanded
    assert len(listed.error) == 3
    assert "**half**" in listed.info[0].value
    assert len(app.error) == 3  # none of them elsewhere
    shutil.rmtree(next(each for each in runs.iterdir() if each.name.startswith("first")))
    app = opened()
    assert len(app.error) == 3
    assert any("balancer train" in info.value for info in app.info)


def test_runs_side_by_side_count_at_their_own_thresholds(runs: Path, run: Path) -> None:
    shutil.copytree(run, runs / "second")
    Decision.load(runs / "second").with_threshold(0.9, "a score of 0.9").save(runs / "second")
    app = opened()
    app.multiselect(key="compare-with").select("second" if app.sidebar.selectbox[0].value != "second" else run.name).run()
    assert not app.exception
    shown = app.dataframe[2].value.set_index("run")
    assert shown["threshold"]["second"] == 0.9
    assert shown["threshold"][run.name] == Decision.load(run).threshold
    rows = pl.read_parquet(run / "predictions.parquet", glob=False).filter(pl.col("label") != "0")
    assert shown["frauds caught"]["second"].startswith(f"{(rows['score'] >= 0.9).sum():,} of ")
    assert set(shown["verdict"]) <= {read_verdict(each).recommendation for each in (run, runs / "second")}


def test_the_verdict_is_computed_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _verdict.clear()
    calls: list[Path] = []
    monkeypatch.setattr("balancer.app.verdict.read_verdict", lambda path: calls.append(path) or read_verdict(path))
    app = opened()
    app.run()
    assert len(calls) == 1
    Decision.load(run).with_threshold(float(np.nextafter(0.5, 1)), "a score of 0.5").save(run)
    app.run()
    assert len(calls) == 2
