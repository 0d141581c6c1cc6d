"""The statistics before the rows of a batch, gathered from what a worker remembers.

What is special: they implement the interfaces of a table's statistics (`Past`, `ContextPast`), so the fields
of a batch are computed by the same formulas as those of a table, all rows at once, to the same bits. They
are gathered row after row: a row is added to what is remembered before the next one is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from balancer.data.context_features import context_fields
from balancer.data.context_past import ACTIVITY_WINDOWS, RECENT_LABELS, Activity, KnownLabels
from balancer.data.features import Field, entity_fields, row_fields
from balancer.data.past import QUANTITIES, SCALE, VELOCITY, Float, KeyPast
from balancer.data.risk import WINDOW_DAYS, rate_fields
from balancer.data.schema import Schema
from balancer.data.timeline import Index
from balancer.serving.scoring.context_memory import RowActivity, RowLabels
from balancer.serving.scoring.context_past import activity_by_sums
from balancer.serving.scoring.context_risk import labels_by_sums
from balancer.serving.scoring.entity_memory import EntityMemory, First, Used, sums_of
from balancer.serving.scoring.row import Row, value_key
from balancer.serving.storage.driver import Driver

WINDOWS = tuple(VELOCITY.items())
_QUANTITY = {name: place for place, name in enumerate(QUANTITIES)}


class EntityFacts:
    """Statistics of the earlier rows of the entities of n rows (`balancer.data.past.Past`).

    Args:
        schema: The schema without score fields.
        time: (n,) effective times in seconds.
        amount: (n,) amounts, or None where the table has none.
    """

    def __init__(self, schema: Schema, time: Float, amount: Float | None) -> None:
        spec = schema.spec
        self.time, self.amount = time, amount
        self.columns, self.categorical = tuple(dict.fromkeys((*spec.categorical, *spec.context))), spec.categorical
        self._column = {name: place for place, name in enumerate(schema.numeric_fields)}
        self.firsts: dict[str, list[First]] = {name: [] for name in VELOCITY}
        self._now: list[First] = []
        self._used: dict[str, list[tuple[int, float, int, int]]] = {name: [] for name in self.columns}
        self._scalars: list[tuple[float, float, float, float, float]] = []
        self._before: list[int] = []
        self._last_fields: list[NDArray[np.float32] | None] = []

    def gather(self, driver: Driver, entity: EntityMemory, row: Row, previous: int | None) -> None:
        """Add the statistics before a row.

        Args:
            driver: A transaction.
            entity: The entity before the row.
            row: The row, with its effective time.
            previous: Place in the batch of the row before of the same entity, or None.
        """
        seen = entity.rows
        self._now.append(First(seen, entity.sums))
        for name, seconds in WINDOWS:
            self.firsts[name].append(entity.first(driver, row.time - seconds))
        first_time, last_time = (entity.first_time, entity.last_time) if seen else (row.time, row.time)
        self._scalars.append((first_time, last_time, entity.last_gap, entity.last_level, entity.top_level))
        for column in self.columns:
            used: Used = entity.used(driver, column, value_key(row.texts[column]))
            self._used[column].append((used.used, used.last_time, used.level, used.square))
        self._before.append(-1 if previous is None else previous)
        self._last_fields.append(entity.last_fields if previous is None else None)

    def close(self) -> None:
        """Turn what was gathered into arrays."""
        self.seen, self._sums, self._amounts = sums_of(self._now)
        self._first = {name: sums_of(rows) for name, rows in self.firsts.items()}
        scalars = np.array(self._scalars).T
        self.first_time, self.previous_time, self.previous_gap, self.previous_level, self.top_level = scalars
        self._place = np.array(self._before)
        width = len(self._column)
        empty = np.zeros(width, np.float32)
        self._stored = np.stack([empty if each is None else each for each in self._last_fields])
        self._has_stored = np.array([each is not None for each in self._last_fields])

    def count(self, window: str) -> Index:
        """See `Past`."""
        count: Index = self.seen - self._first[window][0]
        return count

    def sum(self, quantity: str, window: str | None) -> Float:
        """See `Past`."""
        place = _QUANTITY[quantity]
        total = self._sums[:, place]
        sums: Float = (total if window is None else total - self._first[window][1][:, place]) / SCALE
        return sums

    def amounts(self, window: str) -> Float:
        """See `Past`."""
        return self._amounts - self._first[window][2]

    def key_groups(self) -> Iterator[tuple[Sequence[str], KeyPast]]:
        """See `Past`: all columns at once, because the calls cost more than the rows."""
        if not self.columns:
            return
        used, last_time, level, square = zip(*(zip(*self._used[column], strict=True) for column in self.columns), strict=True)
        sums = (np.array(each, np.int64) / SCALE for each in (level, square))
        yield self.columns, KeyPast(np.array(used, np.int64), np.array(last_time, np.float64), *sums)

    def previous(self, field: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Past`."""
        stored = np.where(self._has_stored, self._stored[:, self._column[field]], values)
        found: NDArray[np.float32] = np.where(self._place >= 0, values[self._place], stored)
        return found


class ContextFacts:
    """Statistics of the context values of n rows (`balancer.data.context_past.ContextPast`).

    Args:
        columns: The context columns.
        time: (n,) effective times in seconds.
        amount: (n,) amounts, or None where the table has none.
    """

    def __init__(self, columns: Sequence[str], time: Float, amount: Float | None) -> None:
        self.time, self.amount = time, amount
        self.labels_of: dict[str, list[RowLabels]] = {name: [] for name in columns}
        self.activity_of: dict[str, list[RowActivity]] = {name: [] for name in columns}

    def labels(self, column: str) -> KnownLabels:
        """See `ContextPast`."""
        rows = self.labels_of[column]
        return KnownLabels(
            known=_whole(rows, "known"),
            recent_frauds=tuple(np.array([row.recent_frauds[place] for row in rows]) for place in range(len(RECENT_LABELS))),
            any_fraud=np.array([row.any_fraud for row in rows]),
            fraud_time=_float(rows, "fraud_time"),
            legitimate=_whole(rows, "legitimate"),
            run_length=_whole(rows, "run_length"),
            run_time=_float(rows, "run_time"),
            first_time=_float(rows, "first_time"),
        )

    def activity(self, column: str) -> Activity:
        """See `ContextPast`."""
        rows = self.activity_of[column]
        within = {name: np.array([row.within[place] for row in rows]) for place, name in enumerate(ACTIVITY_WINDOWS)}
        level, square, recent = (_whole(rows, name) / SCALE for name in ("level", "square", "recent_level"))
        return Activity(_whole(rows, "rows"), _float(rows, "last_time"), within, level, square, recent)

    def rates(self, column: str) -> list[Field]:
        """The risk fields of a column (`balancer.data.risk`)."""
        rows, fields = self.labels_of[column], []
        for place, days in enumerate(WINDOW_DAYS):
            frauds = np.array([row.window_frauds[place] for row in rows])
            known = np.array([row.window_known[place] for row in rows])
            fields += [(name, values.astype(np.float32)) for name, values in rate_fields(column, days, frauds, known)]
        return fields


def stored_context(
    connection: Connection, tenant: str, schema: Schema, texts: Mapping[str, str | None], time: float, amount: float | None
) -> ContextFacts:
    """The statistics of the context values of one row at a moment, from the sums of the database.

    Args:
        connection: A transaction.
        tenant: Whose row.
        schema: The schema without score fields.
        texts: Values of the context columns.
        time: Effective time in seconds.
        amount: The amount, or None.
    """
    spec = schema.spec
    facts = ContextFacts(spec.context, np.array([time]), None if amount is None else np.array([amount]))
    for column in spec.context:
        value = texts[column]
        known, activity = RowLabels(), RowActivity()
        if value is not None:
            known = labels_by_sums(connection, tenant, column, value, time, spec.label_delay)
            activity = activity_by_sums(connection, tenant, column, value, time)
        facts.labels_of[column].append(known)
        facts.activity_of[column].append(activity)
    return facts


def numeric_fields(
    schema: Schema, rows: Sequence[Row], entities: EntityFacts | None, contexts: ContextFacts, time: Float, amount: Float | None
) -> NDArray[np.float32]:
    """Compute the numeric fields of n rows, without score fields.

    Returns:
        (n, F) in the order of the schema; NaN where a value was not sent.
    """
    values: dict[str, NDArray[np.float32]] = dict(row_fields(time, amount))
    if entities is not None:
        values |= dict(entity_fields(entities))
    for column in schema.spec.context:
        values |= dict(contexts.rates(column))
        values |= dict(context_fields(contexts, column, schema.numeric_fields))
    values |= {name: np.array([row.numeric[column] for row in rows], np.float32) for column, name in schema.own_fields.items()}
    found = np.empty((len(rows), len(schema.numeric_fields)), np.float32)
    for place, name in enumerate(schema.numeric_fields):
        found[:, place] = values[name]
    return found


def _whole(rows: Sequence[Any], name: str) -> Index:
    return np.array([getattr(row, name) for row in rows], np.int64)


def _float(rows: Sequence[Any], name: str) -> Float:
    return np.array([getattr(row, name) for row in rows], np.float64)
