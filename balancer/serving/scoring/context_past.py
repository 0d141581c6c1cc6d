"""Store the rows of a context value, and compute the statistics of its past (`balancer.data.context_past`).

What is special: the cost of a row does not grow with the number of rows of its terminal or merchant, and rows
may arrive late or be erased (`balancer.serving.scoring.spans`). A row sees the rows of its value that are
stored with an effective time up to its own; so rows that are sent in the order of time see what the rows of a
table see. On PostgreSQL the requests with rows of the same value run one after the other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Boolean, Connection, Double, delete, select, text

from balancer.data.context_past import ACTIVITY_WINDOWS, LEVEL_WINDOW, RECENT_LABELS, Activity, KnownLabels
from balancer.data.past import SCALE
from balancer.serving.scoring.spans import CONTEXT, EVER, Level, bounds, numbers, parts
from balancer.serving.storage.tables import context_rows

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_ALL_TIME = 0
"""Width of the span that has all rows."""
_LEVELS = tuple(Level("context_spans", "number", seconds, f"width = {seconds}") for seconds in (_MINUTE, _HOUR, _DAY))
LABEL_LEVELS = (Level("labelled_hours", "hour", _HOUR), Level("labelled_days", "day", _DAY))
"""Tables of labels by hours and by days."""

# The statements are fixed texts, because building them for each transaction took half of its time. Both
# databases accept them.
_ADD_ROW = text(
    'INSERT INTO context_rows (tenant, "column", value, time, entity, position, level, square) '
    "VALUES (:tenant, :column, :value, :time, :entity, :position, :level, :square)"
)
_ADD_SPAN = text(
    'INSERT INTO context_spans (tenant, "column", value, width, number, "rows", sum_level, sum_square) '
    "VALUES (:tenant, :column, :value, :width, :number, 1, :level, :square) "
    'ON CONFLICT (tenant, "column", value, width, number) DO UPDATE SET "rows" = context_spans."rows" + 1, '
    "sum_level = context_spans.sum_level + excluded.sum_level, sum_square = context_spans.sum_square + excluded.sum_square"
)
_SPAN = f"{CONTEXT} AND width = :width AND number = :number"
_TAKE_FROM_SPAN = text(
    f'UPDATE context_spans SET "rows" = "rows" - 1, sum_level = sum_level - :level, sum_square = sum_square - :square WHERE {_SPAN}'
)
_DROP_EMPTY_SPAN = text(f'DELETE FROM context_spans WHERE {_SPAN} AND "rows" = 0')
_LOCK = text("SELECT pg_advisory_xact_lock(:number)")
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


class RowContextPast:
    """The statistics before one row (`balancer.data.context_past.ContextPast`, N = 1), from the database.

    Args:
        connection: A transaction.
        tenant: Whose rows and labels.
        texts: Values of the context columns.
        time: Effective time of the row in seconds.
        amount: Its amount, or None.
        delay: Seconds after which a label is known.
    """

    def __init__(
        self, connection: Connection, tenant: str, texts: Mapping[str, str | None], time: float, amount: float | None, delay: float
    ) -> None:
        self.time = np.array([time])
        self.amount = None if amount is None else np.array([amount])
        self._connection, self._tenant, self._texts = connection, tenant, texts
        self._known_until = time - delay if delay > 0 else math.nextafter(time, -math.inf)

    def labels(self, column: str) -> KnownLabels:
        """See `ContextPast`."""
        context = {"tenant": self._tenant, "column": column, "value": self._texts[column]}
        end = {"end": self._known_until}
        recent = [] if context["value"] is None else [bool(fraud) for fraud in self._connection.execute(_RECENT, context | end).scalars()]
        first_time, fraud_time, run_time, known, legitimate, run_length = None, None, None, 0, 0, 0
        if recent:
            first_time, fraud_time, run_time = self._connection.execute(_FRAUD_TIMES, context | end).one()
            moments = {"end": self._known_until, "run": self._known_until, "fraud": EVER}
            if fraud_time is not None:
                # Another request may just have taken the label back; the run is then the one fraud.
                run_time = fraud_time if run_time is None else run_time
                moments |= {"run": math.nextafter(run_time, -math.inf), "fraud": fraud_time}
            values: dict[str, Any] = dict(context)
            for name, moment in moments.items():
                values |= bounds(LABEL_LEVELS, f"after_{name}", moment)
            after = {name: [0, 0] for name in moments}
            for part, labels, frauds in self._connection.execute(_LABELS, values):
                after[part][0] += int(labels or 0)
                after[part][1] += int(frauds or 0)
            legitimate = after["fraud"][0] - after["end"][0]
            run_length = after["run"][1] - after["fraud"][1] if fraud_time is not None else 0
            known = len(recent)
        return KnownLabels(
            known=np.array([known]),
            recent_frauds=tuple(np.array([sum(recent[:number])]) for number in RECENT_LABELS),
            any_fraud=np.array([fraud_time is not None]),
            fraud_time=np.array([fraud_time or 0.0]),
            legitimate=np.array([legitimate]),
            run_length=np.array([run_length]),
            run_time=np.array([run_time or 0.0]),
            first_time=np.array([first_time or 0.0]),
        )

    def activity(self, column: str) -> Activity:
        """See `ContextPast`."""
        time, value = float(self.time[0]), self._texts[column]
        last, total = 0.0, [0, 0, 0]
        after = {name: [0, 0, 0] for name in (_NOW, *ACTIVITY_WINDOWS)}
        if value is not None:
            values: dict[str, Any] = {"tenant": self._tenant, "column": column, "value": value} | bounds(_LEVELS, _NOW, time)
            for name, seconds in ACTIVITY_WINDOWS.items():
                values |= bounds(_LEVELS, f"after_{name}", time - seconds)
            for part, moment, *sums in self._connection.execute(_ACTIVITY, values):
                if part == "last":
                    last = moment or 0.0
                    continue
                into = total if part == "all" else after[part]
                for place, each in enumerate(sums):
                    into[place] += int(each or 0)
        # What was stored after the row's time is later: it is taken out of every sum.
        rows, level, square = (np.array([whole - later]) for whole, later in zip(total, after[_NOW], strict=True))
        within = {name: np.array([after[name][0] - after[_NOW][0]]) for name in ACTIVITY_WINDOWS}
        recent = np.array([after[LEVEL_WINDOW][1] - after[_NOW][1]])
        return Activity(rows, np.array([last]), within, level / SCALE, square / SCALE, recent / SCALE)


def lock_values(connection: Connection, tenant: str, values: Iterable[tuple[str, str | None]]) -> None:
    """Wait until no other transaction scores rows of these context values, and keep others waiting.

    Transactions lock values after entities, and all in the same order, so that two never wait for each other.

    Args:
        connection: A transaction that writes.
        tenant: Whose rows.
        values: Columns and values.
    """
    if connection.dialect.name != "postgresql":
        return  # SQLite has one writer at a time
    names = {"\0".join((tenant, column, value)) for column, value in values if value is not None}
    for number in sorted(_lock_number(name) for name in names):
        connection.execute(_LOCK, {"number": number})


def add_row(
    connection: Connection,
    tenant: str,
    entity: int,
    position: int,
    texts: Mapping[str, str | None],
    columns: Sequence[str],
    row: Mapping[str, Any],
) -> None:
    """Add a stored transaction to the rows of its context values.

    Args:
        connection: A transaction that writes.
        tenant: Whose transaction.
        entity: Id of its entity.
        position: Its position in the history of the entity.
        texts: Values of the context columns.
        columns: The context columns whose rows are kept.
        row: Its `time`, and in fixed point the `level` of its amount and the `square` of that.
    """
    contexts = [{"tenant": tenant, "column": column, "value": texts[column], **row} for column in columns if texts[column] is not None]
    if not contexts:
        return
    connection.execute(_ADD_ROW, [context | {"entity": entity, "position": position} for context in contexts])
    connection.execute(_ADD_SPAN, [context | span for context in contexts for span in _spans(row["time"])])


def remove_entity(connection: Connection, tenant: str, entity: int) -> None:
    """Take the rows of an entity out of all sums, as if they had never arrived.

    Fields of rows of other entities, which were stored before, are not computed again.
    """
    rows = context_rows.c
    found = connection.execute(select(context_rows).where(rows.entity == entity)).all()
    if not found:
        return
    lock_values(connection, tenant, {(row.column, row.value) for row in found})
    spans = [
        {"tenant": tenant, "column": row.column, "value": row.value, "level": row.level, "square": row.square} | span
        for row in found
        for span in _spans(row.time)
    ]
    connection.execute(_TAKE_FROM_SPAN, spans)
    connection.execute(_DROP_EMPTY_SPAN, spans)
    connection.execute(delete(context_rows).where(rows.entity == entity))


def _spans(time: float) -> list[dict[str, int]]:
    """Return width and number of each span that has `time`."""
    spans = [{"width": level.seconds, "number": number} for level, number in zip(_LEVELS, numbers(_LEVELS, time), strict=True)]
    return [*spans, {"width": _ALL_TIME, "number": 0}]


def _lock_number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)
