"""Labels by context value: count them, and compute the risk fields of one row (`balancer.data.risk`).

What is special: labels are stored one by one, and counted by full hours. So a month of a terminal
with many transactions is a few hundred small rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Boolean, Connection, text

from balancer.data.risk import WINDOW_DAYS
from balancer.data.spec import DAY
from balancer.serving.scoring.context_memory import RowLabels
from balancer.serving.scoring.context_past import known_labels
from balancer.serving.scoring.context_swap import ContextLabel, swap_labels

HOUR = 3600.0

# The statements are fixed texts, because building them for each transaction took half of its time. Both
# databases accept them.
_CONTEXT = 'tenant = :tenant AND "column" = :column AND value = :value'
_TRANSACTION = f"{_CONTEXT} AND time = :time AND entity = :entity AND position = :position"
_COUNTED = text(f"SELECT fraud FROM labelled WHERE {_TRANSACTION}").columns(fraud=Boolean)
_INSIDE = (
    "SUM(CASE WHEN hour > :first_{0} AND hour < :last_hour THEN known ELSE 0 END), "
    "SUM(CASE WHEN hour > :first_{0} AND hour < :last_hour THEN frauds ELSE 0 END)"
)
_HOURS = text(
    f"SELECT SUM(known), {', '.join(_INSIDE.format(number) for number in range(len(WINDOW_DAYS)))} FROM labelled_hours "
    f"WHERE {_CONTEXT} AND hour >= :first_hour AND hour <= :last_hour"
)
_EDGES = text(
    " UNION ALL ".join(
        [f"SELECT time, fraud FROM labelled WHERE {_CONTEXT} AND time > :start_{n} AND time < :stop_{n}" for n in range(len(WINDOW_DAYS))]
        + [f"SELECT time, fraud FROM labelled WHERE {_CONTEXT} AND time >= :last_start AND time <= :end"]
    )
)


def count_label(connection: Connection, row: Any, columns: Sequence[str], fraud: bool | None) -> None:
    """Count the label of a stored transaction under its context values.

    Args:
        connection: A transaction that writes.
        row: The stored transaction.
        columns: Context columns.
        fraud: True for fraud, False for legitimate, None if the label was removed.
    """
    old, new = set(), set()
    for column in columns:
        value = row.texts[column]
        if value is None:
            continue
        place = {"tenant": row.tenant, "column": column, "value": value, "time": row.time, "entity": row.entity, "position": row.position}
        before = connection.execute(_COUNTED, place).scalar()
        if before is not None:
            old.add(ContextLabel(column, value, row.time, row.position, before))
        if fraud is not None:
            new.add(ContextLabel(column, value, row.time, row.position, fraud))
    swap_labels(connection, row.tenant, row.entity, old, new)


def labels_by_sums(connection: Connection, tenant: str, column: str, value: str, time: float, delay: float) -> RowLabels:
    """Compute what is known of the labels of a context value at a moment, from the counts by hours and days.

    Args:
        connection: A transaction.
        tenant: Whose labels.
        column: Context column.
        value: Its value.
        time: Time of the row in seconds.
        delay: Seconds after which a label is known.
    """
    until = time - delay if delay > 0 else math.nextafter(time, -math.inf)
    counts = _counts(connection, tenant, column, value, time - delay, delay > 0)
    return known_labels(connection, tenant, column, value, until)._replace(
        window_known=tuple(known for known, _ in counts), window_frauds=tuple(frauds for _, frauds in counts)
    )


def _counts(connection: Connection, tenant: str, column: str, value: str, end: float, closed: bool) -> list[tuple[int, int]]:
    """Count labels, and labels of fraud, in each window of days before `end` (included if `closed`)."""
    starts = [end - days * DAY for days in WINDOW_DAYS]  # a window begins after its start
    last_hour, first_hours = int(end // HOUR), [int(start // HOUR) for start in starts]
    context = {"tenant": tenant, "column": column, "value": value, "last_hour": last_hour, "first_hour": min(first_hours)}
    total, *inside = connection.execute(_HOURS, context | {f"first_{number}": hour for number, hour in enumerate(first_hours)}).one()
    if not total:
        return [(0, 0)] * len(WINDOW_DAYS)
    ends = context | {"last_start": last_hour * HOUR, "end": end if closed else math.nextafter(end, -math.inf)}
    for number, (start, first) in enumerate(zip(starts, first_hours, strict=True)):
        ends |= {f"start_{number}": start, f"stop_{number}": (first + 1) * HOUR}
    edges = connection.execute(_EDGES, ends).all()
    counts = []
    for number, (start, first) in enumerate(zip(starts, first_hours, strict=True)):
        frauds = [fraud for time, fraud in edges if start < time < (first + 1) * HOUR or time >= last_hour * HOUR]
        counts.append((int(inside[2 * number]) + len(frauds), int(inside[2 * number + 1]) + sum(map(bool, frauds))))
    return counts
