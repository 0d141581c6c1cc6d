"""Early warning by day, before labels arrive: alert rate, expected frauds, precision and drift.

What is special: scores are calibrated, so their mean over alarms estimates the precision, and their sum the
number of frauds; where labels have arrived, the true precision stands beside it. All is computed from stored
decisions when it is asked for. Of a day with many decisions, evenly spread ones are read; an index finds and
counts those of requests, so imported ones, however many, neither count nor cost time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select, text

from balancer.data.spec import DAY
from balancer.evaluation.drift import LARGE, LEAST, FieldDrift, table_drift
from balancer.evaluation.intervals import NORMAL, Interval, wilson
from balancer.serving import metrics
from balancer.serving.models.registry import LoadedModel
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import LIVE, decisions, entities, transactions

MOST_ROWS = 10_000
"""Decisions of a day that are read."""
DRIFT_ROWS = 2_000
"""Decisions of a day and model whose fields are compared with the training rows."""
DRIFT_LEAST = 100
"""Fewest decisions of a day and model for its drift. A field has changed only beyond what chance explains."""
WATCH_SECONDS = 300.0
"""Seconds between two computations of the latest day for the metrics."""
_LATE = 1_000
"""Seconds after the end of a day during which requests that arrived before it may still be stored."""
_REMEMBERED = 2_000

Floats = NDArray[np.float64]


class _Decisions(NamedTuple):
    """Decisions of a day."""

    rows: Sequence[Any]
    share: float
    """Share of the decisions of the day that were read."""


class Monitoring:
    """Computes the numbers of days.

    Args:
        database: Where the decisions are.
        models: The models whose fields are compared with their training rows.
        clock: Seconds since 1970.
    """

    def __init__(self, database: Database, models: Callable[[], Iterable[LoadedModel]], clock: Callable[[], float] = time.time) -> None:
        self._database, self._models, self._clock = database, models, clock
        self._drifts: dict[tuple[float, str], list[FieldDrift]] = {}
        self._lock = threading.Lock()

    def by_day(self, days: int) -> dict[str, Any]:
        """Return the numbers of the last days (UTC), by model, latest day first.

        Args:
            days: Number of days, today included.

        Returns:
            `days`, a list as `schemas.Monitoring` describes it, and `notes` on what is left out.
        """
        now = self._clock()
        today = math.floor(now / DAY) * DAY
        models = {model.digest: model for model in self._models()}
        found: list[dict[str, Any]] = []
        for number in range(days):
            found += self._day(today - number * DAY, now, models)
        notes = []
        if any(each["rows_read"] < each["transactions"] for each in found):
            notes.append(f"of a day with more than {MOST_ROWS:,} decisions, about so many were read, and its numbers are estimates")
        if any(each["drift"] is None and each["rows_read"] >= DRIFT_LEAST for each in found):
            notes.append("there is no drift for models that are not loaded here, or whose runs have no reference of the training rows")
        return {"days": found, "notes": notes}

    def set_gauges(self) -> None:
        """Show the latest day with enough decisions in the metrics."""
        now = self._clock()
        today = math.floor(now / DAY) * DAY
        models = {model.digest: model for model in self._models()}
        for start in (today, today - DAY):
            each = max(self._day(start, now, models), key=lambda one: one["transactions"], default=None)
            if each is not None and each["transactions"] >= LEAST:
                metrics.DAY_ALERT_RATE.set(each["alert_rate"])
                metrics.DAY_EXPECTED_FRAUDS.set(each["expected_frauds"]["value"])
                if each["estimated_precision"]["value"] is not None:
                    metrics.DAY_PRECISION.set(each["estimated_precision"]["value"])
                if each["largest_drift"] is not None:
                    metrics.DAY_DRIFT.set(each["largest_drift"]["index"])
                return

    def _day(self, start: float, now: float, models: dict[str, LoadedModel]) -> list[dict[str, Any]]:
        read = self._database.read(lambda connection: _read(connection, start, start + DAY))
        groups: dict[tuple[str, str], list[Any]] = {}
        for row in read.rows:
            groups.setdefault((row.model, row.digest), []).append(row)
        legitimate = next((model.schema.classes[0] for model in models.values()), None)
        found = []
        for (name, digest), rows in sorted(groups.items()):
            model = models.get(digest)
            drift = None if model is None else self._drift(start, now, model, rows)
            day = datetime.fromtimestamp(start, UTC).date().isoformat()
            found.append({"day": day, "model": name, "digest": digest} | _numbers(rows, read.share, legitimate) | _drift_numbers(drift))
        return found

    def _drift(self, start: float, now: float, model: LoadedModel, rows: Sequence[Any]) -> list[FieldDrift] | None:
        """The drift of each field; None without a reference or with too few rows."""
        if model.reference is None or len(rows) < DRIFT_LEAST:
            return None
        key, over = (start, model.digest), start + DAY + _LATE < now
        with self._lock:
            if over and key in self._drifts:
                return self._drifts[key]
        places = np.linspace(0, len(rows) - 1, min(len(rows), DRIFT_ROWS)).astype(int)
        numbers = [rows[place].number for place in places.tolist()]
        stored = self._database.read(lambda connection: _fields(connection, numbers))
        stored = [row for row in stored if model.first_stage is None or row.first_stage == model.first_stage]
        if len(stored) < DRIFT_LEAST:
            return None
        values = model.base_input(np.stack([np.frombuffer(row.fields, np.float32) for row in stored]), [row.texts for row in stored])
        if model.first_stage is not None:
            values = np.concatenate((np.stack([np.frombuffer(row.scores, np.float32) for row in stored]), values), axis=1)
        found = table_drift(model.reference, values, np.array([row.score for row in stored]))
        with self._lock:
            if over:
                if len(self._drifts) >= _REMEMBERED:
                    self._drifts.clear()
                self._drifts[key] = found
        return found


def _numbers(rows: Sequence[Any], share: float, legitimate: str | None) -> dict[str, Any]:
    """The numbers of a day and model, from the decisions that were read."""
    score = np.array([row.score for row in rows], np.float64)
    alarm = np.array([row.decision for row in rows], np.bool_)
    labelled = [row for row in rows if row.label is not None]
    hits = None if legitimate is None else sum(row.decision and row.label != legitimate for row in labelled)
    raised = sum(bool(row.decision) for row in labelled)
    transactions_, alarms = round(len(rows) / share), round(int(alarm.sum()) / share)
    expected = _sum(score, share)
    return {
        "transactions": transactions_,
        "rows_read": len(rows),
        "alarms": alarms,
        "alert_rate": float(alarm.mean()),
        "mean_score": float(score.mean()),
        "expected_frauds": _shown(expected),
        "estimated_precision": _shown(_mean(score[alarm], share)),
        "labelled": len(labelled),
        "labelled_alarms": raised,
        "true_precision": _shown(Interval(None, None) if hits is None else wilson(hits, raised)),
    }


def _drift_numbers(drift: Sequence[FieldDrift] | None) -> dict[str, Any]:
    if not drift:
        return {"drift": None, "largest_drift": None, "fields_changed": []}
    largest = max(drift, key=lambda each: (each.notable, each.index))
    changed = sorted((each for each in drift if each.notable and each.index >= LARGE), key=lambda each: -each.index)
    return {
        "drift": {each.name: round(each.index, 4) for each in drift},
        "largest_drift": {"field": largest.name, "index": round(largest.index, 4)},
        "fields_changed": [each.name for each in changed],
    }


def _sum(score: Floats, share: float) -> Interval:
    """The number of frauds that calibrated scores let expect, of which a share was read."""
    rows = len(score) / share
    chance = rows * float((score * (1 - score)).mean())
    sampling = rows**2 * float(score.var()) / len(score) * (1 - share)
    value, half = rows * float(score.mean()), NORMAL * math.sqrt(chance + sampling)
    return Interval(value, (max(0.0, value - half), min(rows, value + half)))


def _mean(score: Floats, share: float) -> Interval:
    """The share of frauds among rows with these scores."""
    if not len(score):
        return Interval(None, None)
    total = _sum(score, share)
    return total.times(share / len(score))


def _shown(each: Interval) -> dict[str, Any]:
    return {"value": each.value, "interval": None if each.interval is None else list(each.interval)}


def _read(connection: Connection, start: float, end: float) -> _Decisions:
    """Read the decisions of requests of a day, or evenly spread ones of them."""
    columns = decisions.c
    live = (text(LIVE), columns.received >= start, columns.received < end)
    numbers = select(columns.number).where(*live).order_by(columns.received, columns.number)
    chosen = numbers.limit(MOST_ROWS + 1)
    count = len(connection.execute(chosen).all())
    if count > MOST_ROWS:
        count = int(connection.execute(select(func.count()).select_from(decisions).where(*live)).scalar_one())
        ranked = select(columns.number, func.row_number().over(order_by=(columns.received, columns.number)).label("place")).where(*live)
        ranked_rows = ranked.subquery()
        chosen = select(ranked_rows.c.number).where(ranked_rows.c.place % math.ceil(count / MOST_ROWS) == 0)
    joined = decisions.outerjoin(transactions, (transactions.c.tenant == columns.tenant) & (transactions.c.id == columns.transaction))
    wanted = select(columns.number, columns.model, columns.digest, columns.score, columns.decision, transactions.c.label)
    rows = connection.execute(wanted.select_from(joined).where(columns.number.in_(chosen)).order_by(columns.number)).all()
    return _Decisions(rows, len(rows) / count if count else 1.0)


def _fields(connection: Connection, numbers: list[int]) -> Sequence[Any]:
    """Read the stored fields of decisions, with the trees that gave their score fields."""
    columns, stored = decisions.c, transactions.c
    joined = decisions.join(transactions, (stored.tenant == columns.tenant) & (stored.id == columns.transaction))
    joined = joined.join(entities, entities.c.id == stored.entity)
    chosen = select(columns.score, stored.fields, stored.scores, stored.texts, entities.c.first_stage).select_from(joined)
    return connection.execute(chosen.where(columns.number.in_(numbers))).all()
