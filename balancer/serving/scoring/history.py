"""Store the transactions of an entity, and compute the statistics of its history.

What is special: every transaction is stored with the sums over the earlier transactions of its entity. So the
sum over a window is the difference of two rows that are found by an index, however many transactions are
between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, TextClause, bindparam, insert, select, text

from balancer.data.context_features import context_fields, has_activity_fields
from balancer.data.features import Field, entity_fields, row_fields
from balancer.data.past import AMOUNT_LIMIT, QUANTITIES, SCALE, VELOCITY, Float, KeyPast, fixed, quantities, signed_log
from balancer.data.schema import Schema
from balancer.data.timeline import Index
from balancer.serving.scoring.context_past import RowContextPast, add_row
from balancer.serving.scoring.context_risk import row_risk_fields
from balancer.serving.scoring.row import Row, value_key
from balancer.serving.storage.tables import entities, transactions

_NO_SUMS = {"sum_cos": 0, "sum_sin": 0, "sum_level": 0, "sum_square": 0, "sum_amount": 0.0, "sum_score": 0}
_SUMS = tuple(_NO_SUMS)
Firsts = Mapping[str, Mapping[str, Any]]
"""Per window, the position of its first row, and the sums before that row."""


# The statements are fixed, because building them for each transaction took half of its time. Both databases
# accept them.
_ENTITY = select(entities).where(entities.c.tenant == bindparam("tenant"), entities.c.name == bindparam("name")).with_for_update()
_NEW_ENTITY = text(
    'INSERT INTO entities (tenant, name, "rows", sum_cos, sum_sin, sum_level, sum_square, sum_amount, sum_score) '
    "VALUES (:tenant, :name, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING"
)
_SAVED = [column.name for column in entities.c if column.name not in ("id", "tenant", "name")]
_SAVE_ENTITY = text("UPDATE entities SET " + ", ".join(f'"{name}" = :{name}' for name in _SAVED) + " WHERE id = :id")
_NEW_TRANSACTION = insert(transactions)
_EARLIER = (
    select(*(transactions.c[name] for name in ("position", "id", "time", "fields", "scores", "texts")))
    .where(transactions.c.entity == bindparam("entity"), transactions.c.position >= bindparam("first"))
    .order_by(transactions.c.position)
)
_USE_VALUE = text(
    'INSERT INTO used_values (entity, "column", value, used, last_time, sum_level, sum_square) '
    "VALUES (:entity, :column, :value, 1, :time, :level, :square) "
    'ON CONFLICT (entity, "column", value) DO UPDATE SET used = used_values.used + 1, last_time = excluded.last_time, '
    "sum_level = used_values.sum_level + excluded.sum_level, sum_square = used_values.sum_square + excluded.sum_square"
)


def lock_entity(connection: Connection, tenant: str, name: str) -> dict[str, Any]:
    """Read the row of an entity, or create it; other writers wait until the end of the transaction."""
    key = {"tenant": tenant, "name": name}
    found = connection.execute(_ENTITY, key).mappings().first()
    if found is None:
        connection.execute(_NEW_ENTITY, key)
        found = connection.execute(_ENTITY, key).mappings().one()
    return dict(found)


class RowPast:
    """The statistics before one row (`balancer.data.past.Past`, N = 1), from the database."""

    def __init__(self, connection: Connection, entity: Mapping[str, Any], row: Row, schema: Schema, firsts: Firsts) -> None:
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
        self._firsts = firsts
        self._keys = _key_rows(connection, entity["id"], row.texts) if entity["rows"] else {}
        self._texts = row.texts
        self._last_fields = np.frombuffer(entity["last_fields"], np.float32) if entity["last_fields"] else np.zeros(0, np.float32)
        self._column = {name: number for number, name in enumerate(schema.numeric_fields)}

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
        found = self._keys.get((column, value_key(self._texts[column])), {"used": 0, "last_time": 0.0, "sum_level": 0, "sum_square": 0})
        sums = (np.array([found[name]]) / SCALE for name in ("sum_level", "sum_square"))
        return KeyPast(np.array([found["used"]]), np.array([found["last_time"]]), *sums)

    def previous(self, field: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Past`."""
        return values if not len(self._last_fields) else self._last_fields[self._column[field]][None]


def numeric_fields(
    connection: Connection, tenant: str, entity: Mapping[str, Any], row: Row, schema: Schema, firsts: Firsts | None = None
) -> NDArray[np.float32]:
    """Compute the numeric fields of a row, without score fields.

    Args:
        connection: A transaction.
        tenant: Whose transaction.
        entity: The row of the entity.
        row: The transaction.
        schema: The schema without score fields.
        firsts: Of each window, from `window_firsts`, if the caller has them.

    Returns:
        (F,) in the order of the schema; NaN where a value was not sent.
    """
    firsts = window_firsts(connection, entity, row.time) if firsts is None else firsts
    values = dict(_fields(connection, tenant, entity, row, schema, firsts))
    values |= {name: np.array([row.numeric[column]], np.float32) for column, name in schema.own_fields.items()}
    return np.concatenate([values[name] for name in schema.numeric_fields]) if schema.numeric_fields else np.zeros(0, np.float32)


def _fields(connection: Connection, tenant: str, entity: Mapping[str, Any], row: Row, schema: Schema, firsts: Firsts) -> Iterator[Field]:
    spec = schema.spec
    yield from row_fields(np.array([row.time]), None if row.amount is None else np.array([row.amount]))
    if spec.entity is not None:
        yield from entity_fields(RowPast(connection, entity, row, schema, firsts))
    for column in spec.context:
        yield from row_risk_fields(connection, tenant, column, row.texts[column], row.time, spec.label_delay)
    context = RowContextPast(connection, tenant, row.texts, row.time, row.amount, spec.label_delay)
    for column in spec.context:
        yield from context_fields(context, column, schema.numeric_fields)


def active_columns(schema: Schema) -> list[str]:
    """List the context columns by whose values transactions are kept, because fields need them."""
    return [column for column in schema.spec.context if has_activity_fields(column, schema.numeric_fields)]


def append(
    connection: Connection,
    tenant: str,
    entity: dict[str, Any],
    row: Row,
    numeric: NDArray[np.float32],
    answer: Mapping[str, Any],
    columns: Sequence[str] = (),
    scores: NDArray[np.float32] | None = None,
) -> None:
    """Store a row and its answer, and add it to the statistics of the entity.

    Args:
        connection: A transaction that writes.
        tenant: Whose transaction.
        entity: The row of the entity; it is changed here, and `save_entity` writes it.
        row: The transaction.
        numeric: (F,) its numeric fields, without score fields.
        answer: Its answer.
        columns: Context columns by whose values it is kept, from `active_columns`.
        scores: (S,) its score fields; None without trees.
    """
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
            "scores": None if scores is None else scores.tobytes(),
            "texts": row.texts,
            "answer": dict(answer),
            **{name: entity[name] for name in _SUMS},
        },
    )
    level = None if row.amount is None else signed_log(np.array([row.amount]))
    added = {name: int(fixed(value)[0]) for name, value in quantities(np.array([row.time]), level).items()}
    added |= {name: 0 for name in QUANTITIES if name not in added}
    used = {"entity": entity["id"], "time": row.time, "level": added["level"], "square": added["square"]}
    if row.texts:
        connection.execute(_USE_VALUE, [used | {"column": column, "value": value_key(text)} for column, text in row.texts.items()])
    if columns:
        kept = {name: used[name] for name in ("time", "level", "square")}
        add_row(connection, tenant, entity["id"], entity["rows"], row.texts, columns, kept)
    last_level = 0.0 if level is None else float(level[0])
    entity |= {
        "first_time": row.time if entity["rows"] == 0 else entity["first_time"],
        "last_gap": row.time - (row.time if entity["rows"] == 0 else entity["last_time"]),
        "last_time": row.time,
        "last_level": last_level,
        "top_level": last_level if entity["rows"] == 0 else max(entity["top_level"], last_level),
        "last_fields": numeric.tobytes(),
        "sum_amount": entity["sum_amount"] + min(max(row.amount or 0.0, -AMOUNT_LIMIT), AMOUNT_LIMIT),
        **{f"sum_{name}": entity[f"sum_{name}"] + added[name] for name in QUANTITIES},
        "rows": entity["rows"] + 1,
    }


def save_entity(connection: Connection, entity: Mapping[str, Any]) -> None:
    """Write the row of an entity."""
    connection.execute(_SAVE_ENTITY, dict(entity))


def earlier_rows(connection: Connection, entity: int, first: int) -> Sequence[Any]:
    """Read the transactions of an entity in order, from position `first` on."""
    return connection.execute(_EARLIER, {"entity": entity, "first": first}).all()


def earlier_parts(connection: Connection, entity: int, size: int) -> Iterator[Sequence[Any]]:
    """Read all transactions of an entity in order, `size` at once."""
    yield from connection.execute(_EARLIER, {"entity": entity, "first": 0}).partitions(size)


def window_firsts(connection: Connection, entity: Mapping[str, Any], time: float) -> Firsts:
    """Return the position of the first row of each window of `VELOCITY`, and the sums before it.

    For an empty window, these are the position of the new row and the sums before it.
    """
    new_row = {"position": entity["rows"]} | {name: entity[name] for name in _SUMS}
    firsts, bounds = {}, {}
    for name, seconds in VELOCITY.items():
        bound = time - seconds
        if entity["rows"] == 0 or entity["last_time"] <= bound:
            firsts[name] = new_row
        elif entity["first_time"] > bound:
            firsts[name] = {"position": 0} | _NO_SUMS
        else:
            bounds[name] = bound
    if bounds:
        values = {f"after_{name}": bound for name, bound in bounds.items()}
        for found in connection.execute(_windows(tuple(bounds)), values | {"entity": entity["id"]}).mappings():
            firsts[found["name"]] = dict(found)
    return firsts


def _key_rows(connection: Connection, entity: int, texts: Mapping[str, str | None]) -> dict[tuple[str, str], Mapping[str, Any]]:
    if not texts:
        return {}
    values = {f"column_{number}": column for number, column in enumerate(texts)}
    values |= {f"value_{number}": value_key(text) for number, text in enumerate(texts.values())}
    found = connection.execute(_values(len(texts)), values | {"entity": entity}).mappings()
    return {(each["column"], each["value"]): dict(each) for each in found}


@cache
def _windows(names: tuple[str, ...]) -> TextClause:
    """Build the statement that finds the first row after each bound, with the sums before it."""
    one = (
        "SELECT * FROM (SELECT '{name}' AS name, position, {sums} FROM transactions "
        "WHERE entity = :entity AND time > :{bound} ORDER BY time, position LIMIT 1) AS {bound}"
    )
    return text(" UNION ALL ".join(one.format(name=name, sums=", ".join(_SUMS), bound=f"after_{name}") for name in names))


@cache
def _values(count: int) -> TextClause:
    pairs = " OR ".join(f'("column" = :column_{number} AND value = :value_{number})' for number in range(count))
    return text(f"SELECT * FROM used_values WHERE entity = :entity AND ({pairs})")
