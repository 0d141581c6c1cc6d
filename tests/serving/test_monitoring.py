"""The early warning by day: numbers of the stored decisions, estimates, drift, samples of large days."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, text

from balancer.data.spec import DAY
from balancer.serving import metrics
from balancer.serving.config import ServeConfig
from balancer.serving.http.app import create_app
from balancer.serving.models.registry import LoadedModel
from balancer.serving.operations import monitoring
from balancer.serving.operations.backfill import IMPORT_KEY
from balancer.serving.operations.monitoring import Monitoring
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import LIVE, decisions
from tests.serving.tools import parsed, sent

TODAY = 20_000 * DAY
"""Midnight (UTC) of the last of the days: 4 October 2024."""


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> LoadedModel:
    return LoadedModel.load(tiny_run, "run")


@pytest.fixture(scope="module")
def rows(tiny_table: Path) -> pl.DataFrame:
    return pl.read_parquet(tiny_table).sort("time").tail(1500)


def fill(database: Database, model: LoadedModel, rows: pl.DataFrame) -> None:
    """600 decisions of one day, 300 of the next with other amounts, and a few that do not count."""
    scorer = Scorer(database)
    other = rows.with_columns(amount=pl.col("amount") * 40 + 1000)
    for frame, begin, key in (
        (rows[:600], TODAY - 2 * DAY, "k"),
        (other[600:900], TODAY - DAY + 60, "k"),
        (rows[900:950], TODAY - DAY, IMPORT_KEY),
        (rows[950:960], TODAY - 9 * DAY, "k"),
    ):
        every = [parsed(raw, model) for raw in sent(frame, model)]
        for first in range(0, len(every), 50):
            scorer.score("t", model, every[first : first + 50], origin=Origin(key, "r", begin + 3600 * (first // 50)))


def test_numbers_of_days(database: Database, model: LoadedModel, rows: pl.DataFrame) -> None:
    fill(database, model, rows)
    watch = Monitoring(database, lambda: [model], clock=lambda: TODAY + 5)
    found = watch.by_day(5)
    assert [(each["day"], each["transactions"]) for each in found["days"]] == [("2024-10-03", 300), ("2024-10-02", 600)]
    assert found["notes"] == []
    chosen = select(decisions.c.score, decisions.c.decision).where(
        decisions.c.received < TODAY - DAY, decisions.c.received > TODAY - 3 * DAY
    )
    stored = database.read(lambda connection: connection.execute(chosen).all())
    score, alarm = np.array([row.score for row in stored]), np.array([row.decision for row in stored])
    later, earlier = found["days"]
    assert earlier["alarms"] == alarm.sum() and earlier["alert_rate"] == alarm.mean()
    assert earlier["mean_score"] == pytest.approx(score.mean())
    assert earlier["expected_frauds"]["value"] == pytest.approx(score.sum())
    low, high = earlier["expected_frauds"]["interval"]
    assert low < score.sum() < high
    assert earlier["estimated_precision"]["value"] == pytest.approx(score[alarm].mean())
    assert earlier["true_precision"] == {"value": None, "interval": None} and earlier["labelled"] == 0
    assert set(earlier["drift"]) == {*model.schema.numeric_fields, *model.schema.categorical_fields, "score"}
    assert "log_amount" in later["fields_changed"] or any("amount" in name for name in later["fields_changed"])
    assert later["largest_drift"]["index"] > 0.25

    flagged = [row.id for row in (parsed(raw, model) for raw in sent(rows[:600], model))]
    Entities(database).label("t", model.schema, dict.fromkeys(flagged, model.schema.classes[1]))
    earlier = watch.by_day(5)["days"][1]
    assert earlier["labelled"] == 600 and earlier["labelled_alarms"] == alarm.sum()
    assert earlier["true_precision"]["value"] == 1.0

    metrics.DAY_ALERT_RATE.set(0)
    watch.set_gauges()  # of today there is nothing, and of yesterday too little
    assert metrics.DAY_ALERT_RATE._value.get() == 0.0
    Monitoring(database, lambda: [model], clock=lambda: TODAY - DAY + 5).set_gauges()
    assert metrics.DAY_ALERT_RATE._value.get() == earlier["alert_rate"]
    assert metrics.DAY_DRIFT._value.get() == earlier["largest_drift"]["index"]


def test_without_the_model_there_is_no_drift(database: Database, model: LoadedModel, rows: pl.DataFrame) -> None:
    fill(database, model, rows)
    found = Monitoring(database, list, clock=lambda: TODAY + 5).by_day(3)
    assert all(each["drift"] is None for each in found["days"])
    assert "no drift" in found["notes"][0]
    assert Monitoring(database, list, clock=lambda: TODAY + 50 * DAY).by_day(30) == {"days": [], "notes": []}


def test_large_days_are_sampled(database: Database, model: LoadedModel, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(database, model, rows)
    clock = lambda: TODAY + 5  # noqa: E731
    whole = Monitoring(database, lambda: [model], clock=clock).by_day(5)["days"][1]
    monkeypatch.setattr(monitoring, "MOST_ROWS", 200)
    found = Monitoring(database, lambda: [model], clock=clock).by_day(5)
    sampled = found["days"][1]
    assert 150 <= sampled["rows_read"] <= 200
    assert sampled["transactions"] == pytest.approx(600, rel=0.05)
    low, high = sampled["expected_frauds"]["interval"]
    assert low < whole["expected_frauds"]["value"] < high
    assert "estimates" in found["notes"][0]


def test_imported_rows_do_not_make_a_day_large(
    database: Database, model: LoadedModel, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, scorer = [parsed(raw, model) for raw in sent(rows[:460], model)], Scorer(database)
    for first, last, key in ((0, 30, "k"), (30, 430, IMPORT_KEY), (430, 460, "k")):
        scorer.score("t", model, every[first:last], origin=Origin(key, "r", TODAY))
    monkeypatch.setattr(monitoring, "MOST_ROWS", 200)
    found = Monitoring(database, lambda: [model], clock=lambda: TODAY + 5).by_day(1)
    assert [(each["transactions"], each["rows_read"]) for each in found["days"]] == [(60, 60)]
    assert found["notes"] == []


def test_a_day_with_imported_rows_is_estimated_from_the_others(
    database: Database, model: LoadedModel, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, scorer = [parsed(raw, model) for raw in sent(rows[:900], model)], Scorer(database)
    for first, last, key in ((0, 50, "k"), (50, 550, IMPORT_KEY), (550, 900, "k")):
        for begin in range(first, last, 50):
            scorer.score("t", model, every[begin : begin + 50], origin=Origin(key, "r", TODAY + begin))
    watch = Monitoring(database, lambda: [model], clock=lambda: TODAY + 2000)
    (whole,) = watch.by_day(1)["days"]
    assert (whole["transactions"], whole["rows_read"]) == (400, 400)
    monkeypatch.setattr(monitoring, "MOST_ROWS", 100)
    (sampled,) = watch.by_day(1)["days"]
    assert (sampled["transactions"], sampled["rows_read"]) == (400, 100)
    low, high = sampled["expected_frauds"]["interval"]
    assert low < whole["expected_frauds"]["value"] < high


def test_decisions_of_requests_are_found_by_their_index(database: Database) -> None:
    assert f"key <> '{IMPORT_KEY}'" in LIVE
    if database.engine.dialect.name != "sqlite":
        return  # its planner prefers a scan of the whole table while it is empty
    statement = f"EXPLAIN QUERY PLAN SELECT count(*) FROM decisions WHERE {LIVE} AND received >= 1 AND received < 2"
    plan = database.read(lambda connection: connection.execute(text(statement)).all())
    assert "INDEX live_decisions" in plan[0].detail


def test_the_route_needs_the_scope_operator(database: Database, tiny_run: Path, model: LoadedModel, rows: pl.DataFrame) -> None:
    scorer = Scorer(database)
    scorer.score("t", model, [parsed(raw, model) for raw in sent(rows[:30], model)])
    tokens = {scope: keys.create(database, "t", (scope,))[1] for scope in ("operator", "admin", "score")}
    url = database.engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
    with TestClient(create_app(ServeConfig(run=tiny_run, database=url))) as client:
        for scope in ("admin", "score"):
            assert client.get("/v1/monitoring", headers={"Authorization": f"Bearer {tokens[scope]}"}).status_code == 403
        headers = {"Authorization": f"Bearer {tokens['operator']}"}
        answer = client.get("/v1/monitoring?days=2", headers=headers)
        assert answer.status_code == 200
        (day,) = answer.json()["days"]
        assert day["transactions"] == day["rows_read"] == 30 and day["drift"] is None
        for days in ("0", "93", "x"):
            assert client.get(f"/v1/monitoring?days={days}", headers=headers).status_code == 422
