"""Compute the statistics of the past of a context value (`balancer.data.context_past`) from stored sums.

What is special: the cost of a row does not grow with the number of rows of its terminal or merchant, and rows
may arrive late or be erased (`balancer.serving.scoring.spans`). A row sees the rows of its value that are
stored with an effective time up to its own; so rows that are sent in the order of time see what the rows of a
table see. Values with few rows are remembered instead (`balancer.serving.scoring.context_memory`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Boolean, Connection, Double, text

from balancer.data.context_past import ACTIVITY_WINDOWS, LEVEL_WINDOW, RECENT_LABELS
from balancer.serving.scoring.context_memory import RowActivity, RowLabels
from balancer.serving.scoring.spans import CONTEXT, EVER, Level, bounds, numbers, parts

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_ALL_TIME = 0
"""Width of the span that has all rows."""
_LEVELS = tuple(Level("context_spans", "number", seconds, f"width = {seconds}") for seconds in (_MINUTE, _HOUR, _DAY))
LABEL_LEVELS = (Level("labelled_hours", "hour", _HOUR), Level("labelled_days", "day", _DAY))
"""Tables of labels by hours and by days."""

# The statements are fixed texts, because building them for each transaction took half of its time. Both
# databases accept them.
_NOW = "now"
_ACTIVITY = text(
    " UNION ALL ".join(
        [
            f"SELECT 'last' AS part, MAX(time) AS time, 0 AS held, 0 AS level, 0 AS square FROM context_rows WHERE {CONTEXT} AND time <= :{_NOW}",
            f"SELECT 'all', NULL, \"rows\", sum_level, sum_square FROM context_spans WHERE {CONTEXT} AND width = {_ALL_TIME}",
        ]
        + [
            query
            for name in (_NOW, *ACTIVITY_WINDOWS)
            for query in parts(
                "context_rows",
                f"'{name}', NULL, COUNT(*), SUM(level), SUM(square)",
                _LEVELS,
                f"'{name}', NULL, SUM(\"rows\"), SUM(sum_level), SUM(sum_square)",
                f"after_{name}" if name != _NOW else _NOW,
            )
        ]
    )
).columns(time=Double)
_RECENT = text(
    f"SELECT fraud FROM labelled WHERE {CONTEXT} AND time <= :end ORDER BY time DESC, fraud DESC LIMIT {RECENT_LABELS[-1]}"
).columns(fraud=Boolean)
_FRAUD = f"FROM labelled WHERE {CONTEXT} AND fraud = TRUE"
_FRAUD_TIMES = text(
    "SELECT first_time, fraud_time, "
    f"(SELECT MIN(time) {_FRAUD} AND time >= COALESCE((SELECT MAX(time) FROM labelled WHERE {CONTEXT} AND fraud = FALSE "
    f"AND time <= fraud_time), {EVER})) AS run_time "
    f"FROM (SELECT (SELECT MIN(time) {_FRAUD} AND time <= :end) AS first_time, "
    f"(SELECT MAX(time) {_FRAUD} AND time <= :end) AS fraud_time) AS found"
).columns(first_time=Double, fraud_time=Double, run_time=Double)
_LABELS = text(
    " UNION ALL ".join(
        query
        for name in ("run", "fraud", "end")
        for query in parts(
            "labelled",
            f"'{name}' AS part, COUNT(*) AS known, SUM(CASE WHEN fraud THEN 1 ELSE 0 END) AS frauds",
            LABEL_LEVELS,
            f"'{name}', SUM(known), SUM(frauds)",
            f"after_{name}",
        )
    )
)


def known_labels(connection: Connection, tenant: str, column: str, value: str, until: float) -> RowLabels:
    """Return what the labels up to the time `until` say, without the counts in windows, from the sums."""
    context = {"tenant": tenant, "column": column, "value": value}
    end = {"end": until}
    recent = [bool(fraud) for fraud in connection.execute(_RECENT, context | end).scalars()]
    if not recent:
        return RowLabels()
    first_time, fraud_time, run_time = connection.execute(_FRAUD_TIMES, context | end).one()
    moments = {"end": until, "run": until, "fraud": EVER}
    if fraud_time is not None:
        # Another request may just have taken the label back; the run is then the one fraud.
        run_time = fraud_time if run_time is None else run_time
        moments |= {"run": math.nextafter(run_time, -math.inf), "fraud": fraud_time}
    values: dict[str, Any] = dict(context)
    for name, moment in moments.items():
        values |= bounds(LABEL_LEVELS, f"after_{name}", moment)
    after = {name: [0, 0] for name in moments}
    for part, labels, frauds in connection.execute(_LABELS, values):
        after[part][0] += int(labels or 0)
        after[part][1] += int(frauds or 0)
    return RowLabels(
        known=len(recent),
        recent_frauds=tuple(sum(recent[:number]) for number in RECENT_LABELS),
        any_fraud=fraud_time is not None,
        fraud_time=fraud_time or 0.0,
        legitimate=after["fraud"][0] - after["end"][0],
        run_length=after["run"][1] - after["fraud"][1] if fraud_time is not None else 0,
        run_time=run_time or 0.0,
        first_time=first_time or 0.0,
    )


def activity_by_sums(
    connection: Connection, tenant: str, column: str, value: str, time: float, unwritten: Sequence[tuple[float, int, int]] = ()
) -> RowActivity:
    """Compute the activity of a context value up to a moment from the sums by spans.

    Args:
        connection: A transaction.
        tenant: Whose rows.
        column: The context column.
        value: Its value.
        time: Effective time of the row in seconds.
        unwritten: Times, levels and squares of rows that are not in the database yet.
    """
    values: dict[str, Any] = {"tenant": tenant, "column": column, "value": value} | bounds(_LEVELS, _NOW, time)
    for name, seconds in ACTIVITY_WINDOWS.items():
        values |= bounds(_LEVELS, f"after_{name}", time - seconds)
    last, total = -math.inf, [0, 0, 0]
    after = {name: [0, 0, 0] for name in (_NOW, *ACTIVITY_WINDOWS)}
    for part, moment, *sums in connection.execute(_ACTIVITY, values):
        if part == "last":
            last = last if moment is None else moment
            continue
        into = total if part == "all" else after[part]
        for place, each in enumerate(sums):
            into[place] += int(each or 0)
    for moment, *level_and_square in unwritten:
        for into, begin in (
            (total, -math.inf),
            (after[_NOW], time),
            *((after[name], time - each) for name, each in ACTIVITY_WINDOWS.items()),
        ):
            if moment > begin:
                for place, each in enumerate((1, *level_and_square)):
                    into[place] += each
        last = max(last, moment) if moment <= time else last
    # What was stored after the row's time is later: it is taken out of every sum.
    later = after[_NOW]
    rows, level, square = (whole - part for whole, part in zip(total, later, strict=True))
    # A row from before a purge finds only a part of the rows around it.
    within = tuple(max(0, after[name][0] - later[0]) for name in ACTIVITY_WINDOWS)
    return RowActivity(max(0, rows), 0.0 if last == -math.inf else last, within, level, square, after[LEVEL_WINDOW][1] - later[1])


def spans_of(time: float) -> list[tuple[int, int]]:
    """Return width and number of each span that has `time`, the span of all time last."""
    spans = [(level.seconds, number) for level, number in zip(_LEVELS, numbers(_LEVELS, time), strict=True)]
    return [*spans, (_ALL_TIME, 0)]
