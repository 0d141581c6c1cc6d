"""What the database knows of an entity's earlier rows and of a context's labels: the facts of `balancer.data.past`, for one row.

What is special: every transaction is stored with the sums over those before it, so a window's sum is a difference of two rows found by an index, however
many lie between. Labels are counted by whole hours beside being kept one by one, so a month of a busy terminal is some hundred small rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, and_, case, delete, func, insert, literal, or_, select, union_all, update
from sqlalchemy.dialects import postgresql, sqlite

from balancer.data.features import Field, entity_fields, row_fields
from balancer.data.past import AMOUNT_LIMIT, QUANTITIES, SCALE, VELOCITY, Float, KeyPast, fixed, quantities, signed_log
from balancer.data.risk import WINDOW_DAYS, rate_fields
from balancer.data.schema import Schema
from balancer.data.spec import DAY
from balancer.data.timeline import Index
from balancer.serving.tables import entities, labelled, labelled_hours, transactions, used_values

HOUR = 3600.0
_NOTHING = {"sum_cos": 0, "sum_sin": 0, "sum_level": 0, "sum_square": 0, "sum_amount": 0.0}
_SUMS = tuple(_NOTHING)


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
    wanted = select(entities).where(entities.c.tenant == tenant, entities.c.name == name).with_for_update()
    found = connection.execute(wanted).mappings().first()
    if found is None:
        connection.execute(_insert(connection, entities).values(tenant=tenant, name=name, rows=0, **_NOTHING).on_conflict_do_nothing())
        found = connection.execute(wanted).mappings().one()
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
        return self.seen - self._firsts[window]["position"]

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
        insert(transactions).values(
            entity=entity["id"],
            position=entity["rows"],
            tenant=tenant,
            id=row.id,
            digest=row.digest,
            time=row.time,
            sent_time=row.sent_time,
            fields=numeric.tobytes(),
            texts=row.texts,
            answer=dict(answer),
            **{name: entity[name] for name in _SUMS},
        )
    )
    level = None if row.amount is None else signed_log(np.array([row.amount]))
    own = {name: int(fixed(value)[0]) for name, value in quantities(np.array([row.time]), level).items()}
    own |= {name: 0 for name in QUANTITIES if name not in own}
    for column, text in row.texts.items():
        first = {"used": 1, "sum_level": own["level"], "sum_square": own["square"]}
        upsert = _insert(connection, used_values).values(
            entity=entity["id"], column=column, value=stored(text), last_time=row.time, **first
        )
        added = {name: used_values.c[name] + upsert.excluded[name] for name in first}
        connection.execute(upsert.on_conflict_do_update(index_elements=list(used_values.primary_key), set_=added | {"last_time": row.time}))
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
    connection.execute(update(entities).where(entities.c.id == entity["id"]).values({key: entity[key] for key in entity if key != "id"}))


def earlier_rows(connection: Connection, entity: int, first: int) -> Sequence[Any]:
    """The entity's transactions from `first` on: position, id, time, fields, texts, in order."""
    columns = (transactions.c[name] for name in ("position", "id", "time", "fields", "texts"))
    chosen = select(*columns).where(transactions.c.entity == entity, transactions.c.position >= first)
    return connection.execute(chosen.order_by(transactions.c.position)).all()


def count_label(connection: Connection, row: Any, columns: Sequence[str], fraud: bool | None) -> None:
    """Count a stored transaction `row` under its context values: as fraud, as legitimate, or (None) no longer."""
    for column in columns:
        value = row.texts[column]
        if value is None:
            continue
        place = {"tenant": row.tenant, "column": column, "value": value}
        own = place | {"time": row.time, "entity": row.entity, "position": row.position}
        here = and_(*(labelled.c[name] == each for name, each in own.items()))
        before = connection.execute(select(labelled.c.fraud).where(here)).scalar()
        if before is fraud:
            continue
        connection.execute(delete(labelled).where(here))
        if fraud is not None:
            connection.execute(insert(labelled).values(own | {"fraud": fraud}))
        known, frauds = (fraud is not None) - (before is not None), int(bool(fraud)) - int(bool(before))
        hour = _insert(connection, labelled_hours).values(place | {"hour": int(row.time // HOUR), "known": known, "frauds": frauds})
        added = {name: labelled_hours.c[name] + hour.excluded[name] for name in ("known", "frauds")}
        connection.execute(hour.on_conflict_do_update(index_elements=list(labelled_hours.primary_key), set_=added))


def stored(text: str | None) -> str:
    """A text or null as a key of `used_values`."""
    return "" if text is None else f"={text}"


def _window_firsts(connection: Connection, entity: Mapping[str, Any], time: float) -> dict[str, dict[str, Any]]:
    """Per velocity window the position of, and the sums before, its first row; the row itself where it has none."""
    own = {"position": entity["rows"]} | {name: entity[name] for name in _SUMS}
    firsts, asked = {}, []
    for name, seconds in VELOCITY.items():
        bound = time - seconds
        if entity["rows"] == 0 or entity["last_time"] <= bound:
            firsts[name] = own
        elif entity["first_time"] > bound:
            firsts[name] = {"position": 0} | _NOTHING
        else:
            inside = select(literal(name).label("window"), transactions.c.position, *(transactions.c[each] for each in _SUMS))
            inside = inside.where(transactions.c.entity == entity["id"], transactions.c.time > bound)
            asked.append(inside.order_by(transactions.c.time, transactions.c.position).limit(1).subquery().select())
    if asked:
        firsts |= {found["window"]: dict(found) for found in connection.execute(union_all(*asked)).mappings()}
    return firsts


def _key_rows(connection: Connection, entity: int, texts: Mapping[str, str | None]) -> dict[tuple[str, str], Mapping[str, Any]]:
    wanted = [and_(used_values.c.column == column, used_values.c.value == stored(text)) for column, text in texts.items()]
    if not wanted:
        return {}
    found = connection.execute(select(used_values).where(used_values.c.entity == entity, or_(*wanted))).mappings()
    return {(each["column"], each["value"]): each for each in found}


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
    here = labelled_hours.c
    inside = [and_(here.hour > first, here.hour < last_hour) for first in first_hours]
    sums = [func.sum(case((part, each), else_=0)) for part in inside for each in (here.known, here.frauds)]
    hours = select(func.sum(here.known), *sums).where(
        here.tenant == tenant, here.column == column, here.value == value, here.hour >= min(first_hours), here.hour <= last_hour
    )
    total, *found = connection.execute(hours).one()
    if not total:
        return [(0, 0)] * len(WINDOW_DAYS)
    ends = labelled.c
    ragged = [and_(ends.time > start, ends.time < (first + 1) * HOUR) for start, first in zip(starts, first_hours, strict=True)]
    ragged.append(and_(ends.time >= last_hour * HOUR, ends.time <= end if closed else ends.time < end))
    edge = connection.execute(
        select(ends.time, ends.fraud).where(ends.tenant == tenant, ends.column == column, ends.value == value, or_(*ragged))
    ).all()
    counts = []
    for number, (start, first) in enumerate(zip(starts, first_hours, strict=True)):
        own = [fraud for time, fraud in edge if start < time < (first + 1) * HOUR or time >= last_hour * HOUR]
        counts.append((int(found[2 * number]) + len(own), int(found[2 * number + 1]) + sum(own)))
    return counts


def _insert(connection: Connection, table: Any) -> Any:
    """An insert that may say what to do on a conflict; each database has its own."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
