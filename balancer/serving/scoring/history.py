"""What the database knows of an entity's earlier rows and of a context's labels: the facts of `balancer.data.past`, for one row.

What is special: every transaction is stored with the sums over those before it, so a window's sum is a difference of two rows found by an index, however
many lie between. Labels are counted by whole hours beside being kept one by one, so a month of a busy terminal is some hundred small rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Boolean, Connection, TextClause, bindparam, insert, select, text

from balancer.data.features import Field, entity_fields, row_fields
from balancer.data.past import AMOUNT_LIMIT, QUANTITIES, SCALE, VELOCITY, Float, KeyPast, fixed, quantities, signed_log
from balancer.data.risk import WINDOW_DAYS, rate_fields
from balancer.data.schema import Schema
from balancer.data.spec import DAY
from balancer.data.timeline import Index
from balancer.serving.storage.tables import entities, transactions

HOUR = 3600.0
_NOTHING = {"sum_cos": 0, "sum_sin": 0, "sum_level": 0, "sum_square": 0, "sum_amount": 0.0}
_SUMS = tuple(_NOTHING)


# Statements of the scoring path are written out once: building them anew took half the time of a transaction. Both databases read them.
_ENTITY = select(entities).where(entities.c.tenant == bindparam("tenant"), entities.c.name == bindparam("name")).with_for_update()
_NEW_ENTITY = text(
    'INSERT INTO entities (tenant, name, "rows", sum_cos, sum_sin, sum_level, sum_square, sum_amount) '
    "VALUES (:tenant, :name, 0, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING"
)
_SAVED = [column.name for column in entities.c if column.name not in ("id", "tenant", "name")]
_SAVE_ENTITY = text("UPDATE entities SET " + ", ".join(f'"{name}" = :{name}' for name in _SAVED) + " WHERE id = :id")
_NEW_TRANSACTION = insert(transactions)
_EARLIER = (
    select(*(transactions.c[name] for name in ("position", "id", "time", "fields", "texts")))
    .where(transactions.c.entity == bindparam("entity"), transactions.c.position >= bindparam("first"))
    .order_by(transactions.c.position)
)
_USE_VALUE = text(
    'INSERT INTO used_values (entity, "column", value, used, last_time, sum_level, sum_square) '
    "VALUES (:entity, :column, :value, 1, :time, :level, :square) "
    'ON CONFLICT (entity, "column", value) DO UPDATE SET used = used_values.used + 1, last_time = excluded.last_time, '
    "sum_level = used_values.sum_level + excluded.sum_level, sum_square = used_values.sum_square + excluded.sum_square"
)
_HERE = 'tenant = :tenant AND "column" = :column AND value = :value'
_ITSELF = f"{_HERE} AND time = :time AND entity = :entity AND position = :position"
_COUNTED = text(f"SELECT fraud FROM labelled WHERE {_ITSELF}").columns(fraud=Boolean)
_UNCOUNT = text(f"DELETE FROM labelled WHERE {_ITSELF}")
_COUNT = text(
    'INSERT INTO labelled (tenant, "column", value, time, entity, position, fraud) '
    "VALUES (:tenant, :column, :value, :time, :entity, :position, :fraud)"
)
_COUNT_HOUR = text(
    'INSERT INTO labelled_hours (tenant, "column", value, hour, known, frauds) VALUES (:tenant, :column, :value, :hour, :known, :frauds) '
    'ON CONFLICT (tenant, "column", value, hour) DO UPDATE SET known = labelled_hours.known + excluded.known, '
    "frauds = labelled_hours.frauds + excluded.frauds"
)
_INSIDE = "SUM(CASE WHEN hour > :first_{0} AND hour < :last_hour THEN known ELSE 0 END), SUM(CASE WHEN hour > :first_{0} AND hour < :last_hour THEN frauds ELSE 0 END)"
_HOURS = text(
    f"SELECT SUM(known), {', '.join(_INSIDE.format(number) for number in range(len(WINDOW_DAYS)))} FROM labelled_hours "
    f"WHERE {_HERE} AND hour >= :first_hour AND hour <= :last_hour"
)
_RAGGED = " UNION ALL ".join(
    [f"SELECT time, fraud FROM labelled WHERE {_HERE} AND time > :start_{n} AND time < :stop_{n}" for n in range(len(WINDOW_DAYS))]
    + [f"SELECT time, fraud FROM labelled WHERE {_HERE} AND time >= :last_start AND time <= :end"]
)
_EDGES = text(_RAGGED)


@dataclass(frozen=True)
class Row:
    """A transaction as it counts."""

    id: str
    entity: str
    time: float
    """Seconds, as they count."""
    sent_time: float
    """Seconds, as they were sent."""
    amount: float | None
    numeric: dict[str, float]
    """Of the numeric columns; NaN where nothing was sent."""
    texts: dict[str, str | None]
    """Of the categorical and context columns."""
    digest: str


def lock_entity(connection: Connection, tenant: str, name: str) -> dict[str, Any]:
    """The entity's row, made if it is new; other writers wait from here on."""
    place = {"tenant": tenant, "name": name}
    found = connection.execute(_ENTITY, place).mappings().first()
    if found is None:
        connection.execute(_NEW_ENTITY, place)
        found = connection.execute(_ENTITY, place).mappings().one()
    return dict(found)


class RowPast:
    """The facts about one row (`balancer.data.past.Past`, N = 1) from the entity's row and the transactions before."""

    def __init__(self, connection: Connection, entity: Mapping[str, Any], row: Row, schema: Schema) -> None:
        spec = schema.spec
        self.time = np.array([row.time])
        self.amount = None if row.amount is None else np.array([row.amount])
        self.columns, self.categorical = tuple(dict.fromkeys((*spec.categorical, *spec.context))), spec.categorical
        self.seen: Index = np.array([entity["rows"]])
        last = row.time if entity["rows"] == 0 else entity["last_time"]
        self.first_time = np.array([row.time if entity["rows"] == 0 else entity["first_time"]])
        self.previous_time = np.array([last])
        self.previous_gap = np.array([entity["last_gap"] or 0.0])
        self.previous_level = np.array([entity["last_level"] or 0.0])
        self.top_level = np.array([entity["top_level"] or 0.0])
        self._entity = entity
        self._firsts = _window_firsts(connection, entity, row.time)
        self._keys = _key_rows(connection, entity["id"], row.texts) if entity["rows"] else {}
        self._texts = row.texts
        self._last = np.frombuffer(entity["last_fields"], np.float32) if entity["last_fields"] else np.zeros(0, np.float32)
        self._place = {name: number for number, name in enumerate(schema.numeric_fields)}

    def count(self, window: str) -> Index:
        """See `Past`."""
        count: Index = self.seen - self._firsts[window]["position"]
        return count

    def sum(self, quantity: str, window: str | None) -> Float:
        """See `Past`."""
        name = f"sum_{quantity}"
        total = self._entity[name] - (0 if window is None else self._firsts[window][name])
        return np.array([total]) / SCALE

    def amounts(self, window: str) -> Float:
        """See `Past`."""
        return np.array([self._entity["sum_amount"] - self._firsts[window]["sum_amount"]])

    def key(self, column: str) -> KeyPast:
        """See `Past`."""
        found = self._keys.get((column, stored(self._texts[column])), {"used": 0, "last_time": 0.0, "sum_level": 0, "sum_square": 0})
        sums = (np.array([found[name]]) / SCALE for name in ("sum_level", "sum_square"))
        return KeyPast(np.array([found["used"]]), np.array([found["last_time"]]), *sums)

    def previous(self, field: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Past`."""
        return values if not len(self._last) else self._last[self._place[field]][None]


def numeric_fields(connection: Connection, tenant: str, entity: Mapping[str, Any], row: Row, schema: Schema) -> NDArray[np.float32]:
    """(F,) the row's numeric fields in the schema's order, NaN where a number was not sent."""
    spec = schema.spec
    values = dict(_fields(connection, tenant, entity, row, schema))
    values |= {name: np.array([row.numeric[name]], np.float32) for name in spec.numeric}
    return np.concatenate([values[name] for name in schema.numeric_fields]) if schema.numeric_fields else np.zeros(0, np.float32)


def _fields(connection: Connection, tenant: str, entity: Mapping[str, Any], row: Row, schema: Schema) -> Iterator[Field]:
    spec = schema.spec
    yield from row_fields(np.array([row.time]), None if row.amount is None else np.array([row.amount]))
    if spec.entity is not None:
        yield from entity_fields(RowPast(connection, entity, row, schema))
    for column in spec.context:
        yield from _risk_fields(connection, tenant, column, row.texts[column], row.time, spec.label_delay)


def append(
    connection: Connection, tenant: str, entity: dict[str, Any], row: Row, numeric: NDArray[np.float32], answer: Mapping[str, Any]
) -> None:
    """Store the row and its answer, and bring `entity` up to date, here and in the sums of its values; `save_entity` writes it."""
    connection.execute(
        _NEW_TRANSACTION,
        {
            "entity": entity["id"],
            "position": entity["rows"],
            "tenant": tenant,
            "id": row.id,
            "digest": row.digest,
            "time": row.time,
            "sent_time": row.sent_time,
            "fields": numeric.tobytes(),
            "texts": row.texts,
            "answer": dict(answer),
            **{name: entity[name] for name in _SUMS},
        },
    )
    level = None if row.amount is None else signed_log(np.array([row.amount]))
    own = {name: int(fixed(value)[0]) for name, value in quantities(np.array([row.time]), level).items()}
    own |= {name: 0 for name in QUANTITIES if name not in own}
    used = {"entity": entity["id"], "time": row.time, "level": own["level"], "square": own["square"]}
    if row.texts:
        connection.execute(_USE_VALUE, [used | {"column": column, "value": stored(text)} for column, text in row.texts.items()])
    high = 0.0 if level is None else float(level[0])
    entity |= {
        "first_time": row.time if entity["rows"] == 0 else entity["first_time"],
        "last_gap": row.time - (row.time if entity["rows"] == 0 else entity["last_time"]),
        "last_time": row.time,
        "last_level": high,
        "top_level": high if entity["rows"] == 0 else max(entity["top_level"], high),
        "last_fields": numeric.tobytes(),
        "sum_amount": entity["sum_amount"] + min(max(row.amount or 0.0, -AMOUNT_LIMIT), AMOUNT_LIMIT),
        **{f"sum_{name}": entity[f"sum_{name}"] + own[name] for name in QUANTITIES},
        "rows": entity["rows"] + 1,
    }


def save_entity(connection: Connection, entity: Mapping[str, Any]) -> None:
    """Write the entity's row."""
    connection.execute(_SAVE_ENTITY, dict(entity))


def earlier_rows(connection: Connection, entity: int, first: int) -> Sequence[Any]:
    """The entity's transactions from `first` on: position, id, time, fields, texts, in order."""
    return connection.execute(_EARLIER, {"entity": entity, "first": first}).all()


def count_label(connection: Connection, row: Any, columns: Sequence[str], fraud: bool | None) -> None:
    """Count a stored transaction `row` under its context values: as fraud, as legitimate, or (None) no longer."""
    for column in columns:
        value = row.texts[column]
        if value is None:
            continue
        place = {"tenant": row.tenant, "column": column, "value": value}
        own = place | {"time": row.time, "entity": row.entity, "position": row.position}
        before = connection.execute(_COUNTED, own).scalar()
        if before is fraud:
            continue
        if before is not None:
            connection.execute(_UNCOUNT, own)
        if fraud is not None:
            connection.execute(_COUNT, own | {"fraud": fraud})
        known, frauds = (fraud is not None) - (before is not None), int(bool(fraud)) - int(bool(before))
        connection.execute(_COUNT_HOUR, place | {"hour": int(row.time // HOUR), "known": known, "frauds": frauds})


def stored(text: str | None) -> str:
    """A text or null as a key of `used_values`."""
    return "" if text is None else f"={text}"


def _window_firsts(connection: Connection, entity: Mapping[str, Any], time: float) -> dict[str, dict[str, Any]]:
    """Per velocity window the position of, and the sums before, its first row; the row itself where it has none."""
    own = {"position": entity["rows"]} | {name: entity[name] for name in _SUMS}
    firsts, asked = {}, {}
    for name, seconds in VELOCITY.items():
        bound = time - seconds
        if entity["rows"] == 0 or entity["last_time"] <= bound:
            firsts[name] = own
        elif entity["first_time"] > bound:
            firsts[name] = {"position": 0} | _NOTHING
        else:
            asked[name] = bound
    if asked:
        bounds = {f"after_{name}": bound for name, bound in asked.items()}
        for found in connection.execute(_windows(tuple(asked)), bounds | {"entity": entity["id"]}).mappings():
            firsts[found["name"]] = dict(found)
    return firsts


def _key_rows(connection: Connection, entity: int, texts: Mapping[str, str | None]) -> dict[tuple[str, str], Mapping[str, Any]]:
    if not texts:
        return {}
    values = {f"column_{number}": column for number, column in enumerate(texts)}
    values |= {f"value_{number}": stored(text) for number, text in enumerate(texts.values())}
    found = connection.execute(_values(len(texts)), values | {"entity": entity}).mappings()
    return {(each["column"], each["value"]): dict(each) for each in found}


def _risk_fields(connection: Connection, tenant: str, column: str, value: str | None, time: float, delay: float) -> Iterator[Field]:
    zeros = (0, 0)
    counts = [zeros for _ in WINDOW_DAYS] if value is None else _risk_counts(connection, tenant, column, value, time - delay, delay > 0)
    for days, (known, frauds) in zip(WINDOW_DAYS, counts, strict=True):
        for name, values in rate_fields(column, days, np.array([frauds]), np.array([known])):
            yield name, (values if value is not None else np.zeros(1)).astype(np.float32)


def _risk_counts(connection: Connection, tenant: str, column: str, value: str, end: float, closed: bool) -> list[tuple[int, int]]:
    """Per window of days before `end` (included where `closed`): labels known, and those of fraud."""
    starts = [end - days * DAY for days in WINDOW_DAYS]  # a window begins after its start
    last_hour, first_hours = int(end // HOUR), [int(start // HOUR) for start in starts]
    place = {"tenant": tenant, "column": column, "value": value, "last_hour": last_hour, "first_hour": min(first_hours)}
    total, *found = connection.execute(_HOURS, place | {f"first_{number}": hour for number, hour in enumerate(first_hours)}).one()
    if not total:
        return [(0, 0)] * len(WINDOW_DAYS)
    ends = place | {"last_start": last_hour * HOUR, "end": end if closed else math.nextafter(end, -math.inf)}
    for number, (start, first) in enumerate(zip(starts, first_hours, strict=True)):
        ends |= {f"start_{number}": start, f"stop_{number}": (first + 1) * HOUR}
    edge = connection.execute(_EDGES, ends).all()
    counts = []
    for number, (start, first) in enumerate(zip(starts, first_hours, strict=True)):
        own = [fraud for time, fraud in edge if start < time < (first + 1) * HOUR or time >= last_hour * HOUR]
        counts.append((int(found[2 * number]) + len(own), int(found[2 * number + 1]) + sum(map(bool, own))))
    return counts


@cache
def _windows(names: tuple[str, ...]) -> TextClause:
    """The first row after each bound, with the sums before it."""
    one = (
        "SELECT * FROM (SELECT '{name}' AS name, position, {sums} FROM transactions "
        "WHERE entity = :entity AND time > :{bound} ORDER BY time, position LIMIT 1) AS {bound}"
    )
    return text(" UNION ALL ".join(one.format(name=name, sums=", ".join(_SUMS), bound=f"after_{name}") for name in names))


@cache
def _values(count: int) -> TextClause:
    pairs = " OR ".join(f'("column" = :column_{number} AND value = :value_{number})' for number in range(count))
    return text(f"SELECT * FROM used_values WHERE entity = :entity AND ({pairs})")
