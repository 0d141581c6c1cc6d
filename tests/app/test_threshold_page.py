"""The page Threshold: chosen on the threshold half, counted on the test; costs, links, broken states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from balancer.app.aggregates import operating_points
from balancer.app.threshold_curves import (
    ALARMS,
    CAUGHT,
    CHOSEN_ON,
    COST,
    PICK,
    PRECISION,
    TEST,
    Basis,
    cost_sentence,
    curves,
    decision_chart,
    said,
    said_interval,
    tone,
)
from balancer.data.split import Split
from balancer.evaluation.intervals import Interval
from balancer.evaluation.operating_points import NO_ALARM
from balancer.evaluation.threshold_changes import Change
from balancer.inference.decision import Decision, decision_table
from balancer.runs.costs import Costs
from balancer.runs.trained_run import TrainedRun, training_table

APP = str(Path(__file__).resolve().parents[2] / "app" / "streamlit_app.py")


def opened(**query: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=600)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    return app.switch_page("views/threshold.py").run()


def tile(app: AppTest, label: str) -> str:
    (found,) = (metric.value for metric in app.metric if metric.label == label)
    return str(found)


def choose_by(app: AppTest, name: str) -> AppTest:
    return app.get_by_key("criterion").set_value(name).run()  # type: ignore[attr-defined,no-any-return]


def points_of(run: Path, name: str) -> Basis:
    rows = [operating_points(pl.read_parquet(run / each), "0", amounts=True) for each in (name, "predictions.parquet")]
    return Basis(rows[0], rows[1], separate=name != "predictions.parquet")


def test_training_writes_the_scores_of_the_rows_that_tuned_the_threshold(tiny_run: Path) -> None:
    stored = pl.read_parquet(tiny_run / "threshold_scores.parquet")
    run = TrainedRun.load(tiny_run, precision="auto")
    data = training_table(run.folder)
    held = data.rows(Split.THRESHOLD)
    expected = decision_table(data, held, run.scores(data, held), run.decision)
    assert stored.columns == ["id", "time", "entity", "amount", "label", "score"]
    assert stored["id"].equals(expected["id"])
    np.testing.assert_allclose(stored["score"], expected["score"], atol=1e-6)


def test_a_limit_is_met_on_the_threshold_half_and_counted_on_the_test(runs: Path) -> None:
    app, basis = opened(), points_of(runs / "first", "threshold_scores.parquet")
    app = choose_by(app, "recall")
    app.slider(key="least").set_value(60).run()
    threshold = basis.chosen_on.for_recall(0.6)
    assert tile(app, "Threshold") == f"{threshold:.4g}"
    metrics = basis.test.metrics(threshold)
    assert tile(app, "Frauds caught") == f"{metrics['caught']:,} of {basis.test.frauds:,}"
    assert tile(app, "Precision") == f"{100 * metrics['precision']:.1f} %"
    assert any("of validation that also tuned the threshold" in caption.value for caption in app.caption)


def test_a_run_of_an_older_version_chooses_on_the_test_rows_and_says_so(runs: Path) -> None:
    (runs / "first" / "threshold_scores.parquet").unlink()
    app, basis = opened(), points_of(runs / "first", "predictions.parquet")
    app = choose_by(app, "recall")
    app.slider(key="least").set_value(60).run()
    assert tile(app, "Threshold") == f"{basis.test.for_recall(0.6):.4g}"
    assert any("slightly too good" in caption.value for caption in app.caption)


def test_costs_are_shown_compared_and_saved_without_touching_the_decision(runs: Path) -> None:
    app = opened()
    decision = (runs / "first" / "decision.json").read_bytes()
    assert any("5 per alarm and 100 % of the amount of every missed fraud are assumed" in each.value for each in app.caption)
    app.number_input(key="price").set_value(12.0).run()
    app.number_input(key="loss").set_value(40.0).run()
    basis, costs, saved = points_of(runs / "first", "threshold_scores.parquet"), Costs(12.0, 0.4), Decision.load(runs / "first").threshold
    assert tile(app, "Total cost") == f"{basis.test.cost_at(saved, 12.0, 0.4):,.0f}"
    assert any("in the" in each.value and "of the test" in each.value for each in app.markdown if "cheapest" in each.value)
    next(button for button in app.button if button.label == "Save these costs").click().run()
    assert Costs.load(runs / "first") == costs
    assert (runs / "first" / "decision.json").read_bytes() == decision
    app = opened()
    assert (app.number_input(key="price").value, app.number_input(key="loss").value) == (12.0, 40.0)
    assert next(button for button in app.button if button.label == "Save these costs").disabled
    app = choose_by(app, "cost")
    assert tile(app, "Threshold") == f"{basis.cheapest(costs):.4g}"
    (runs / "first" / "costs.json").write_text("{}")
    assert "costs.json" in opened().error[0].value


@pytest.mark.usefixtures("runs")
def test_in_use_and_proposed_stand_side_by_side_with_signs() -> None:
    app = opened()
    assert not any(metric.delta for metric in app.metric)
    assert list(app.table[0].value.columns)[1].startswith("In use")
    app = choose_by(app, "score")
    app.slider(key="score").set_value(0.0).run()
    deltas = {metric.label: metric.delta for metric in app.metric if metric.delta}
    assert deltas["Frauds caught"][0] == "+" or deltas["Frauds caught"] == "0"
    assert deltas["Alarms per day"].startswith("+")
    assert deltas["Precision"].startswith("−")
    shown = app.table[0].value.set_index("Quantity")
    assert shown.loc["Alarms per day", "Which is"] == ":red[worse]"
    more_is_better = {"Frauds caught", "Recall", "Precision", "Amount caught"}
    for name, row in shown.iterrows():
        better = row["Difference"].startswith("+") == (name in more_is_better)
        assert row["Which is"] in ((":green[better]" if better else ":red[worse]"), "no clear difference")
    assert not app.exception


@pytest.mark.usefixtures("runs")
def test_no_alarm_has_a_dash_for_precision() -> None:
    app = choose_by(opened(), "cost")
    app.number_input(key="price").set_value(1e9).run()
    assert tile(app, "Alarms per day") == "0.0"
    assert tile(app, "Precision") == "–"
    assert tile(app, "Threshold") == "no alarm"
    shown = app.table[0].value.set_index("Quantity")
    (column,) = (name for name in shown.columns if name.startswith("Proposed"))
    assert shown.loc["Precision", column] == "–"
    assert not app.exception


def test_a_link_opens_run_and_threshold_and_the_address_follows(runs: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, runs / "second")
    app = opened(run="second", threshold="0.25")
    assert app.sidebar.selectbox[0].value == "second"
    assert tile(app, "Threshold") == "0.25"
    app = choose_by(app, "score")
    app.slider(key="score").set_value(0.4).run()
    assert app.query_params["threshold"] == "0.4"
    app = choose_by(app, "as saved")
    assert "threshold" not in app.query_params
    for wrong in ("x", "-1", "nan", "7"):
        app = opened(run="second", threshold=wrong)
        assert not app.exception
        assert tile(app, "Threshold") == f"{Decision.load(runs / 'second').threshold:.4g}"


def test_a_saved_threshold_is_that_of_every_page(runs: Path) -> None:
    app = choose_by(opened(), "score")
    app.slider(key="score").set_value(0.4).run()
    next(button for button in app.button if button.label == "Save this threshold").click().run()
    assert json.loads((runs / "first" / "decision.json").read_text())["threshold"] == 0.4
    app = app.switch_page("views/transactions.py").run()
    assert any("at least 0.4" in caption.value for caption in app.caption)


def test_the_curve_holds_the_cheapest_threshold_and_both_kinds_of_rows(tiny_run: Path) -> None:
    basis, costs = points_of(tiny_run, "threshold_scores.parquet"), Costs(5.0, 1.0)
    cheapest = basis.cheapest(costs)
    table = curves(basis, costs, also=[cheapest, 0.5])
    assert table["rows"].unique(maintain_order=True).to_list() == [CHOSEN_ON, TEST]
    chosen_on = table.filter(pl.col("rows") == CHOSEN_ON)
    assert chosen_on[COST].min() == pytest.approx(basis.chosen_on.cost_at(cheapest, 5.0) * basis.scale)
    for shown in (COST, CAUGHT, PRECISION, ALARMS):
        spec = decision_chart(table, shown, current=0.5, proposed=0.2, cheapest=cheapest, timed=True).to_dict()
        assert PICK in json.dumps(spec["params"])
        text = json.dumps(spec)
        assert '"proposed"' in text and '"in use"' in text
        assert ('"cheapest"' in text) == (shown == COST)
    test_only = curves(Basis(basis.test, basis.test, separate=False), None, also=[NO_ALARM])
    assert test_only["rows"].unique().to_list() == [TEST]
    assert COST not in test_only.columns
    decision_chart(test_only, CAUGHT, current=NO_ALARM, proposed=0.0, cheapest=None, timed=False).to_dict()


def test_words_of_differences() -> None:
    assert said(1234.4, "money", signed=True) == "+1,234"
    assert said(-0.026, "share", signed=True) == "−2.6 points"
    assert said(0.2, "money", signed=True) == "0"
    assert said(None, "share") == "–"
    assert said(0.0123, "rate") == "1.23 %"
    assert said_interval((-0.1, 0.05), "share", signed=True) == "−10.0 to +5.0 points"
    assert said_interval(None, "money") == "–"

    def change(value: float, low: float, high: float, better: str = "less") -> Change:
        known = Interval(1.0, (0.5, 1.5))
        return Change(known, known, Interval(value, (low, high)), better)  # type: ignore[arg-type]

    assert tone(change(-5, -9, -1)) == "better"
    assert tone(change(-5, -9, -1, "more")) == "worse"
    assert tone(change(-5, -9, 1)) == "same"
    assert cost_sentence(change(-1234, -2000, -300), 0.1, days=24.2) == (
        "The cheapest threshold, 0.1, costs 1,234 less than the one in use in the 24 days of the test (95 %: −2,000 to −300)."
    )
    assert "no clear difference" in cost_sentence(change(-10, -200, 300), 0.1, days=None)
    assert "costs 80 more than the one in use" in cost_sentence(change(80, 20, 300), 0.1, days=None)
    assert cost_sentence(change(0, 0, 0), 0.1, days=None) == "No threshold costs less than the one in use."
