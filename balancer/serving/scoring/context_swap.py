"""Replace what stored transactions of an entity count under context values: rows, labels and their sums.

What is special: only what differs is taken out and put in, so a correction of one transaction costs the same
however many transactions its merchant has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, select, text

from balancer.serving.scoring.context_past import LABEL_LEVELS, spans_of
from balancer.serving.scoring.spans import numbers
from balancer.serving.storage.tables import context_rows, labelled

_ADD_TO_SPAN = text(
    'INSERT INTO context_spans (tenant, "column", value, width, number, "rows", sum_level, sum_square) '
    "VALUES (:tenant, :column, :value, :width, :number, :rows, :level, :square) "
    'ON CONFLICT (tenant, "column", value, width, number) DO UPDATE SET "rows" = context_spans."rows" + excluded."rows", '
    "sum_level = context_spans.sum_level + excluded.sum_level, sum_square = context_spans.sum_square + excluded.sum_square"
)
_DROP_EMPTY_SPAN = text(
    'DELETE FROM context_spans WHERE tenant = :tenant AND "column" = :column AND value = :value AND width = :width AND number = :number '
    'AND "rows" = 0'
)
_PLACE = 'WHERE tenant = :tenant AND "column" = :column AND value = :value AND time = :time AND entity = :entity AND position = :position'
_DROP_ROW, _DROP_LABEL = text(f"DELETE FROM context_rows {_PLACE}"), text(f"DELETE FROM labelled {_PLACE}")
_ADD_LABELS = (
    'INSERT INTO labelled_{0}s (tenant, "column", value, {0}, known, frauds) VALUES (:tenant, :column, :value, :number, :known, :frauds) '
    'ON CONFLICT (tenant, "column", value, {0}) DO UPDATE SET known = labelled_{0}s.known + excluded.known, '
    "frauds = labelled_{0}s.frauds + excluded.frauds"
)
_ADD_HOUR, _ADD_DAY = (text(_ADD_LABELS.format(span)) for span in ("hour", "day"))


class ContextRow(NamedTuple):
    """A row of `context_rows` of one entity."""

    column: str
    value: str
    time: float
    position: int
    level: int
    square: int


class ContextLabel(NamedTuple):
    """A row of `labelled` of one entity."""

    column: str
    value: str
    time: float
    position: int
    fraud: bool


def stored_rows(connection: Connection, entity: int, first: int) -> set[ContextRow]:
    """Read the rows of an entity from position `first` on."""
    columns = (context_rows.c[name] for name in ContextRow._fields)
    found = connection.execute(select(*columns).where(context_rows.c.entity == entity, context_rows.c.position >= first))
    return {ContextRow(*row) for row in found}


def stored_labels(connection: Connection, entity: int, first: int) -> set[ContextLabel]:
    """Read the labels of an entity from position `first` on."""
    columns = (labelled.c[name] for name in ContextLabel._fields)
    found = connection.execute(select(*columns).where(labelled.c.entity == entity, labelled.c.position >= first))
    return {ContextLabel(*row) for row in found}


def take_rows(connection: Connection, tenant: str, entity: int, rows: Collection[ContextRow]) -> None:
    """Take rows out, and out of all sums; their values are locked."""
    if rows:
        connection.execute(_DROP_ROW, [row._asdict() | {"tenant": tenant, "entity": entity} for row in sorted(rows)])
    _add_to_spans(connection, tenant, rows, -1)


def put_rows(connection: Connection, tenant: str, entity: int, rows: Collection[ContextRow]) -> None:
    """Put rows in, and into all sums; their values are locked."""
    if rows:
        connection.execute(insert(context_rows), [row._asdict() | {"tenant": tenant, "entity": entity} for row in sorted(rows)])
    _add_to_spans(connection, tenant, rows, 1)


def swap_labels(connection: Connection, tenant: str, entity: int, old: Collection[ContextLabel], new: Collection[ContextLabel]) -> None:
    """Replace labels, and their counts by hours and days; their values are locked."""
    gone, come = set(old) - set(new), set(new) - set(old)
    if gone:
        connection.execute(_DROP_LABEL, [label._asdict() | {"tenant": tenant, "entity": entity} for label in sorted(gone)])
    if come:
        connection.execute(insert(labelled), [label._asdict() | {"tenant": tenant, "entity": entity} for label in sorted(come)])
    sums: tuple[Counter[Any], Counter[Any]] = Counter(), Counter()
    for labels, sign in ((gone, -1), (come, 1)):
        for label in labels:
            for place, number in enumerate(numbers(LABEL_LEVELS, label.time)):
                sums[0][place, label.column, label.value, number] += sign
                sums[1][place, label.column, label.value, number] += sign * label.fraud
    for place, statement in enumerate((_ADD_HOUR, _ADD_DAY)):
        added = [
            {"tenant": tenant, "column": key[1], "value": key[2], "number": key[3], "known": sums[0][key], "frauds": sums[1][key]}
            for key in sorted(sums[0])
            if key[0] == place and (sums[0][key] or sums[1][key])
        ]
        if added:
            connection.execute(statement, added)


def _add_to_spans(connection: Connection, tenant: str, rows: Collection[ContextRow], sign: int) -> None:
    sums: dict[tuple[str, str, int, int], list[int]] = {}
    for row in rows:
        for width, number in spans_of(row.time):
            total = sums.setdefault((row.column, row.value, width, number), [0, 0, 0])
            for place, added in enumerate((1, row.level, row.square)):
                total[place] += sign * added
    if not sums:
        return
    values = [
        {"tenant": tenant, "column": column, "value": value, "width": width, "number": number}
        | dict(zip(("rows", "level", "square"), sums[column, value, width, number], strict=True))
        for column, value, width, number in sorted(sums)
    ]
    connection.execute(_ADD_TO_SPAN, values)
    if sign < 0:
        connection.execute(_DROP_EMPTY_SPAN, values)
