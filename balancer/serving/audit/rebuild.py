"""Compute the statistics of an entity again from its transactions, after one was corrected or reversed.

What is special: the formulas are those of a table (`balancer.data.past.TablePast`), which give the same bits
as the scoring of one row after another. Fields of context values stay as they were when a row was scored,
because they also depend on other entities and on labels of that moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from balancer.data.features import entity_fields, row_fields
from balancer.data.past import AMOUNT_LIMIT, QUANTITIES, SCALE, Events, Float, KeyPast, TablePast, fixed, quantities, signed_log
from balancer.data.schema import Schema
from balancer.data.spec import DAY
from balancer.data.timeline import Index
from balancer.serving.scoring.context_swap import ContextLabel, ContextRow
from balancer.serving.scoring.row import value_key
from balancer.serving.storage.tables import transactions, used_values

SUMS = (*(f"sum_{name}" for name in QUANTITIES), "sum_amount")
_MOST_DIGITS = 6
"""Decimals up to which an amount that was not stored is looked for."""


@dataclass
class Line:
    """A stored transaction of an entity, as it is to be."""

    id: str
    position: int
    """Where it is stored."""
    sent_time: float
    time: float
    amount: float | None
    texts: dict[str, str | None]
    fields: NDArray[np.float32]
    label: str | None
    level: int
    """Level of the amount as it is stored, in fixed point."""
    square: int


@dataclass(frozen=True)
class Base:
    """What was before the first stored transaction of an entity; nothing, unless some were purged."""

    position: int = 0
    """Number of transactions that are no longer stored."""
    first_time: float = 0.0
    sums: Mapping[str, Any] = field(default_factory=lambda: {name: 0.0 if name == "sum_amount" else 0 for name in SUMS})
    top: float = -math.inf
    """Highest level of their amounts."""
    used: Mapping[tuple[str, str], KeyBase] = field(default_factory=dict)
    """By column and key of the value."""


class KeyBase(NamedTuple):
    """What transactions that are no longer stored had with one value."""

    used: int
    last_time: float
    level: int
    square: int


NO_KEY = KeyBase(0, 0.0, 0, 0)


def read_lines(connection: Connection, entity: Mapping[str, Any], schema: Schema) -> tuple[list[Line], Base]:
    """Read the transactions of an entity in order, and what was before the first one that is stored.

    The amount of a row that an older version stored is found from its sums if they give it exactly, else it
    is None.

    Args:
        connection: A transaction.
        entity: The row of the entity.
        schema: The schema without score fields.
    """
    names = ("id", "position", "sent_time", "time", "amount", "texts", "fields", "label", *SUMS)
    chosen = select(*(transactions.c[name] for name in names)).where(transactions.c.entity == entity["id"])
    rows = connection.execute(chosen.order_by(transactions.c.position)).all()
    lines = []
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        values = np.frombuffer(row.fields, np.float32).copy()
        before = {name: getattr(row, name) for name in SUMS}
        sums = {name: (entity[name] if after is None else getattr(after, name)) for name in SUMS}
        amount = row.amount
        if amount is None and schema.spec.amount is not None:
            amount = _amount_of(before, sums)
        level, square = (sums[name] - before[name] for name in ("sum_level", "sum_square"))
        lines.append(Line(row.id, row.position, row.sent_time, row.time, amount, dict(row.texts), values, row.label, level, square))
    first = {name: getattr(rows[0], name) for name in SUMS}
    return lines, _base(connection, entity, schema, lines, first)


def approximate_amount(fields: NDArray[np.float32], schema: Schema) -> float:
    """The amount of a row, as exactly as its field tells it."""
    level = float(fields[schema.numeric_fields.index("amount_log")])
    return float(np.sign(level) * np.expm1(min(abs(level), 709.0)))


def _base(connection: Connection, entity: Mapping[str, Any], schema: Schema, lines: Sequence[Line], sums: Mapping[str, Any]) -> Base:
    """What was before the first of the lines.

    Of what the purge has deleted, all counts and sums follow exactly. The last time of a value that is used
    again, and the highest amount where it was reached again, are known to the precision of a field.
    """
    position = lines[0].position
    if position == 0:
        return Base()
    places = {name: place for place, name in enumerate(schema.numeric_fields)}
    top = entity["top_level"]
    levels = [float(signed_log(np.array([line.amount]))[0]) if line.amount is not None else line.level / SCALE for line in lines]
    if "amount_to_max" in places and max(levels) >= top:
        top = levels[0] - float(lines[0].fields[places["amount_to_max"]])
    columns = used_values.c
    used = {}
    for row in connection.execute(select(used_values).where(columns.entity == entity["id"])):
        same = [line for line in lines if value_key(line.texts.get(row.column)) == row.value and row.column in line.texts]
        count = row.used - len(same)
        if count <= 0:
            continue
        last = row.last_time
        if same:
            since = places.get(f"{row.column}_days_since")
            last = same[0].time - (0.0 if since is None else float(np.expm1(same[0].fields[since])) * DAY)
        level, square = (getattr(row, f"sum_{name}") - sum(getattr(line, name) for line in same) for name in ("level", "square"))
        used[row.column, row.value] = KeyBase(count, last, level, square)
    return Base(position, entity["first_time"], sums, top, used)


def _amount_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """The amount that leads from sums before a row to those after it; None where no short one does."""
    level, square = (after[f"sum_{name}"] - before[f"sum_{name}"] for name in ("level", "square"))
    # A huge amount before hides the decimals of a sum of amounts. The sum of levels has them, to 2 ** -24.
    by_level = float(np.sign(level) * np.expm1(min(abs(level) / SCALE, 700.0)))
    short = max(0, math.floor(-math.log10(max(abs(by_level), 1.0) * 4 / SCALE)))
    tried = ((after["sum_amount"] - before["sum_amount"], _MOST_DIGITS), (by_level, min(short, _MOST_DIGITS)))
    for close, most in tried:
        for digits in range(most + 1):
            amount = round(close, digits)
            found = quantities(np.zeros(1), signed_log(np.array([amount])))
            exact = before["sum_amount"] + amount == after["sum_amount"] and abs(amount) < AMOUNT_LIMIT
            if exact and (int(fixed(found["level"])[0]), int(fixed(found["square"])[0])) == (level, square):
                return float(amount)
    return None


class LaterPast(TablePast):
    """The statistics of rows before which others were, which are no longer stored.

    Args:
        events: The rows.
        base: What was before them.
        keys: Texts (n,) of each column of the events.
    """

    def __init__(self, events: Events, base: Base, keys: Mapping[str, Sequence[str | None]]) -> None:
        super().__init__(events)
        self._base, self._texts = base, keys
        if events.amount is not None:
            clipped = np.clip(events.amount, -AMOUNT_LIMIT, AMOUNT_LIMIT)
            self._total = np.cumsum(np.concatenate(([base.sums["sum_amount"]], clipped)))[:-1]
            self._top = np.maximum(np.concatenate(([base.top], self._top[1:])), base.top)

    @property
    def seen(self) -> Index:
        """See `Past`."""
        return super().seen + self._base.position

    @property
    def first_time(self) -> Float:
        """See `Past`."""
        return np.full(len(self.time), self._base.first_time)

    def sum(self, quantity: str, window: str | None) -> Float:
        """See `Past`."""
        inside = super().sum(quantity, window)
        return inside if window is not None else inside + self._base.sums[f"sum_{quantity}"] / SCALE

    def key(self, column: str) -> KeyPast:
        """See `TablePast`."""
        here = super().key(column)
        before = [self._base.used.get((column, value_key(text)), NO_KEY) for text in self._texts[column]]
        used, last, level, square = (np.array(each) for each in zip(*before, strict=True))
        last_time = np.where(here.used > 0, here.last_time, last)
        return KeyPast(here.used + used, last_time, here.level + level / SCALE, here.square + square / SCALE)


class Rebuilt:
    """The statistics of an entity with `lines`, in their order.

    Args:
        schema: The schema without score fields.
        lines: Its transactions; their times are corrected here. All have an amount if the table has one.
        base: What was before them.
    """

    def __init__(self, schema: Schema, lines: Sequence[Line], base: Base) -> None:
        self._schema, self._lines, self.base = schema, lines, base
        # A row is not before the previous one. The first stored row keeps its time, if others were before.
        sent = np.array([line.sent_time for line in lines], np.float64)
        if base.position and len(sent):
            sent[0] = lines[0].time
        self.time: Float = np.maximum.accumulate(sent)
        for line, time in zip(lines, self.time.tolist(), strict=True):
            line.time = time
        self._amount = None if schema.spec.amount is None else np.array([line.amount for line in lines], np.float64)
        self._level = None if self._amount is None else signed_log(self._amount)
        summed = {name: fixed(values) for name, values in quantities(self.time, self._level).items()}
        none = np.zeros(len(lines), np.int64)
        self._added = {name: summed.get(name, none) for name in QUANTITIES}

    def fields(self) -> dict[str, NDArray[np.float32]]:
        """The fields (n,) of the rows alone and of the history of the entity, by name."""
        spec = self._schema.spec
        columns = tuple(dict.fromkeys((*spec.categorical, *spec.context)))
        texts = {column: [line.texts[column] for line in self._lines] for column in columns}
        keys = {column: _codes(each) for column, each in texts.items()}
        values = dict(row_fields(self.time, self._amount))
        if spec.entity is not None:
            start = np.zeros(len(self.time), np.int64)
            events = Events(self.time, start, self._amount, keys, spec.categorical)
            past = LaterPast(events, self.base, texts) if self.base.position else TablePast(events)
            values |= dict(entity_fields(past))
        return values

    def sums(self) -> dict[str, list[Any]]:
        """The sums over the rows before each of the n rows, and over all of them last: (n + 1,) by name."""
        found: dict[str, list[Any]] = {}
        for name in QUANTITIES:
            found[f"sum_{name}"] = np.cumsum(np.concatenate(([self.base.sums[f"sum_{name}"]], self._added[name]))).tolist()
        amounts = np.zeros(len(self.time)) if self._amount is None else np.clip(self._amount, -AMOUNT_LIMIT, AMOUNT_LIMIT)
        found["sum_amount"] = np.cumsum(np.concatenate(([self.base.sums["sum_amount"]], amounts))).tolist()
        return found

    def entity(self) -> dict[str, Any]:
        """The columns of the row of the entity, without those of models."""
        count = len(self._lines)
        totals = {name: values[-1] for name, values in self.sums().items()}
        if not count:
            names = ("first_time", "last_time", "last_gap", "last_level", "top_level", "last_fields")
            return {"rows": 0} | dict.fromkeys(names) | totals
        level = np.zeros(count) if self._level is None else self._level
        return totals | {
            "rows": self.base.position + count,
            "first_time": self.base.first_time if self.base.position else float(self.time[0]),
            "last_time": float(self.time[-1]),
            "last_gap": float(self.time[-1] - self.time[max(count - 2, 0)]),
            "last_level": float(level[-1]),
            "top_level": max(float(level.max()), self.base.top),
            "last_fields": self._lines[-1].fields.tobytes(),
        }

    def used_values(self) -> list[dict[str, Any]]:
        """The rows of `used_values`, without the entity."""
        found: dict[tuple[str, str], dict[str, Any]] = {
            key: {"column": key[0], "value": key[1], "used": used, "last_time": last, "sum_level": level, "sum_square": square}
            for key, (used, last, level, square) in self.base.used.items()
        }
        for place, line in enumerate(self._lines):
            for column, value in line.texts.items():
                key = (column, value_key(value))
                used = found.setdefault(key, {"column": key[0], "value": key[1], "used": 0, "sum_level": 0, "sum_square": 0})
                used["used"] += 1
                used["last_time"] = line.time
                used["sum_level"] += int(self._added["level"][place])
                used["sum_square"] += int(self._added["square"][place])
        return list(found.values())

    def context_row(self, place: int, columns: Sequence[str]) -> Iterator[ContextRow]:
        """What a row counts under its values of the context `columns`."""
        line, position = self._lines[place], self.base.position + place
        level, square = (int(self._added[name][place]) for name in ("level", "square"))
        for column in columns:
            value = line.texts[column]
            if value is not None:
                yield ContextRow(column, value, line.time, position, level, square)

    def context_label(self, place: int) -> Iterator[ContextLabel]:
        """What the label of a row counts under its context values."""
        line, schema, position = self._lines[place], self._schema, self.base.position + place
        for column in schema.spec.context:
            value = line.texts[column]
            if value is not None and line.label is not None:
                yield ContextLabel(column, value, line.time, position, line.label != schema.classes[0])


def _codes(texts: Sequence[str | None]) -> Index:
    """Codes (n,) of texts; -1 is null."""
    known = {text: code for code, text in enumerate(dict.fromkeys(text for text in texts if text is not None))}
    return np.array([-1 if text is None else known[text] for text in texts], dtype=np.int64)
