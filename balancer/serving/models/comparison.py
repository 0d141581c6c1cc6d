"""Champion against challenger on the transactions that both have scored, as their labels arrive.

The score that decided is in `decisions`, and the other one in `challenger_scores`. A canary decides for a
share of the entities, so each of the two tables has scores of both models. Each model is measured at its own
threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Select, and_, case, func, or_, select

from balancer.evaluation.intervals import Interval, average_precisions, wilson
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import challenger_scores, decisions, transactions

MOST_LABELLED = 200_000
"""Most labelled rows that are read, latest first."""
Model = tuple[str, str]
"""Name and digest."""


@dataclass(frozen=True)
class Span:
    """The time of the rows to compare."""

    since: float = -math.inf
    """Seconds since 1970 from which on they were received."""
    until: float = math.inf
    """Seconds since 1970 before which they were received."""


ALWAYS = Span()


def compare(database: Database, champion: Model, challenger: Model, *, legitimate: str, span: Span = ALWAYS) -> dict[str, Any]:
    """Compare two models on the rows that both have scored, of all tenants.

    Args:
        database: Where the scores are.
        champion: The first model.
        challenger: The second one.
        legitimate: The label of rows that are no frauds.
        span: When the rows were received.

    Returns:
        `rows, agreement, labelled, frauds, champion, challenger, average_precision_difference`, as in the
        answer of `GET /v1/models/comparison`; each metric is `{value, interval}`.
    """
    counts, labelled = database.read(
        lambda connection: (_counts(connection, champion[1], challenger[1], span), _labelled(connection, champion[1], challenger[1], span))
    )
    fraud = np.array([row.label != legitimate for row in labelled], dtype=bool)
    scores = [np.array([row[place] for row in labelled], np.float64) for place in (0, 2)]
    alarms = [np.array([row[place] for row in labelled], dtype=bool) for place in (1, 3)]
    precisions, difference = average_precisions(fraud, scores, np.array([row.entity for row in labelled], np.int64))
    rows = int(counts.rows)

    def measured(model: Model, alarm_rows: int, precision: Interval, alarm: NDArray[np.bool_]) -> dict[str, Any]:
        hits, raised, frauds = int((alarm & fraud).sum()), int(alarm.sum()), int(fraud.sum())
        return {
            "name": model[0],
            "digest": model[1],
            "alarms": alarm_rows,
            "alert_rate": _shown(wilson(alarm_rows, rows)),
            "average_precision": _shown(precision),
            "precision": _shown(wilson(hits, raised)),
            "recall": _shown(wilson(hits, frauds)),
            "false_alarms_per_10k": _shown(wilson(raised - hits, len(fraud) - frauds).times(10_000)),
        }

    return {
        "rows": rows,
        "agreement": _shown(wilson(int(counts.same), rows)),
        "labelled": len(labelled),
        "frauds": int(fraud.sum()),
        "champion": measured(champion, int(counts.first), precisions[0], alarms[0]),
        "challenger": measured(challenger, int(counts.second), precisions[1], alarms[1]),
        "average_precision_difference": _shown(difference),
    }


def _pairs(champion: str, challenger: str, span: Span) -> tuple[Any, ColumnElement[bool], ColumnElement[bool]]:
    """The tables with both scores, the rows of the two models, and whether the champion decided a row."""
    first, second = decisions.c, challenger_scores.c
    joined = challenger_scores.join(
        decisions, and_(first.tenant == second.tenant, first.transaction == second.transaction, first.kind == "scored")
    )
    champion_decided = and_(first.digest == champion, second.digest == challenger)
    of_both = [or_(champion_decided, and_(first.digest == challenger, second.digest == champion))]
    of_both.append(second.digest.in_((champion, challenger)))  # says the same, so that the index is used
    if math.isfinite(span.since):
        of_both.append(second.received >= span.since)
    if math.isfinite(span.until):
        of_both.append(second.received < span.until)
    return joined, and_(*of_both), champion_decided


def _counts(connection: Connection, champion: str, challenger: str, span: Span) -> Any:
    """Rows of both, rows with the same decision, and alarms of each."""
    joined, of_both, champion_decided = _pairs(champion, challenger, span)
    first, second = decisions.c.decision, challenger_scores.c.decision

    def number(condition: ColumnElement[bool]) -> ColumnElement[int]:
        return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)

    chosen = select(
        func.count().label("rows"),
        number(first == second).label("same"),
        number(or_(and_(champion_decided, first), and_(~champion_decided, second))).label("first"),
        number(or_(and_(champion_decided, second), and_(~champion_decided, first))).label("second"),
    )
    return connection.execute(chosen.select_from(joined).where(of_both)).one()


def _labelled(connection: Connection, champion: str, challenger: str, span: Span) -> list[Any]:
    """The latest labelled rows: score and decision of the champion and of the challenger, entity, label."""
    joined, of_both, champion_decided = _pairs(champion, challenger, span)
    first, second, rows = decisions.c, challenger_scores.c, transactions.c
    joined = joined.join(transactions, and_(rows.tenant == second.tenant, rows.id == second.transaction))
    chosen: Select[Any] = select(
        case((champion_decided, first.score), else_=second.score),
        case((champion_decided, first.decision), else_=second.decision),
        case((champion_decided, second.score), else_=first.score),
        case((champion_decided, second.decision), else_=first.decision),
        rows.entity,
        rows.label,
    )
    chosen = chosen.select_from(joined).where(of_both, rows.label.is_not(None)).order_by(second.received.desc()).limit(MOST_LABELLED)
    return list(connection.execute(chosen).all())


def _shown(measured: Interval) -> dict[str, Any]:
    return measured._asdict()
