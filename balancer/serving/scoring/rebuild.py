"""Compute the statistics of an entity again from its transactions, after one was corrected or reversed.

What is special: the formulas are those of a table (`balancer.data.past.TablePast`), which give the same bits
as the scoring of one row after another. Fields of context values stay as they were when a row was scored,
because they also depend on other entities and on labels of that moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from balancer.data.features import entity_fields, row_fields
from balancer.data.past import AMOUNT_LIMIT, QUANTITIES, SCALE, Events, Float, TablePast, fixed, quantities, signed_log
from balancer.data.schema import Schema
from balancer.data.timeline import Index
from balancer.serving.scoring.context_swap import ContextLabel, ContextRow
from balancer.serving.scoring.row import value_key
from balancer.serving.storage.tables import transactions

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


def read_lines(connection: Connection, entity: Mapping[str, Any], schema: Schema) -> list[Line]:
    """Read the transactions of an entity in order.

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
        amount = row.amount
        if amount is None and schema.spec.amount is not None:
            sums = {name: (entity[name] if after is None else getattr(after, name)) for name in SUMS}
            amount = _amount_of({name: getattr(row, name) for name in SUMS}, sums)
        lines.append(Line(row.id, row.position, row.sent_time, row.time, amount, dict(row.texts), values, row.label))
    return lines


def approximate_amount(fields: NDArray[np.float32], schema: Schema) -> float:
    """The amount of a row, as exactly as its field tells it."""
    level = float(fields[schema.numeric_fields.index("amount_log")])
    return float(np.sign(level) * np.expm1(min(abs(level), 709.0)))


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


class Rebuilt:
    """The statistics of an entity with `lines`, in their order.

    Args:
        schema: The schema without score fields.
        lines: Its transactions; their times are corrected here. All have an amount if the table has one.
    """

    def __init__(self, schema: Schema, lines: Sequence[Line]) -> None:
        self._schema, self._lines = schema, lines
        # A row is not before the previous one.
        self.time: Float = np.maximum.accumulate(np.array([line.sent_time for line in lines], np.float64))
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
        keys = {column: _codes([line.texts[column] for line in self._lines]) for column in columns}
        values = dict(row_fields(self.time, self._amount))
        if spec.entity is not None:
            start = np.zeros(len(self.time), np.int64)
            values |= dict(entity_fields(TablePast(Events(self.time, start, self._amount, keys, spec.categorical))))
        return values

    def sums(self) -> dict[str, list[Any]]:
        """The sums over the rows before each of the n rows, and over all of them last: (n + 1,) by name."""
        found: dict[str, list[Any]] = {}
        for name in QUANTITIES:
            found[f"sum_{name}"] = np.concatenate((np.zeros(1, np.int64), np.cumsum(self._added[name]))).tolist()
        amounts = np.zeros(len(self.time)) if self._amount is None else np.clip(self._amount, -AMOUNT_LIMIT, AMOUNT_LIMIT)
        found["sum_amount"] = np.concatenate((np.zeros(1), np.cumsum(amounts))).tolist()
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
            "rows": count,
            "first_time": float(self.time[0]),
            "last_time": float(self.time[-1]),
            "last_gap": float(self.time[-1] - self.time[max(count - 2, 0)]),
            "last_level": float(level[-1]),
            "top_level": float(level.max()),
            "last_fields": self._lines[-1].fields.tobytes(),
        }

    def used_values(self) -> list[dict[str, Any]]:
        """The rows of `used_values`, without the entity."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for place, line in enumerate(self._lines):
            for column, value in line.texts.items():
                key = (column, value_key(value))
                used = found.setdefault(key, {"column": key[0], "value": key[1], "used": 0, "sum_level": 0, "sum_square": 0})
                used["used"] += 1
                used["last_time"] = line.time
                used["sum_level"] += int(self._added["level"][place])
                used["sum_square"] += int(self._added["square"][place])
        return list(found.values())

    def context_row(self, place: int, position: int, columns: Sequence[str]) -> Iterator[ContextRow]:
        """What a row counts under its values of the context `columns` at a position."""
        line = self._lines[place]
        level, square = (int(self._added[name][place]) for name in ("level", "square"))
        for column in columns:
            value = line.texts[column]
            if value is not None:
                yield ContextRow(column, value, line.time, position, level, square)

    def context_label(self, place: int, position: int) -> Iterator[ContextLabel]:
        """What the label of a row counts under its context values at a position."""
        line, schema = self._lines[place], self._schema
        for column in schema.spec.context:
            value = line.texts[column]
            if value is not None and line.label is not None:
                yield ContextLabel(column, value, line.time, position, line.label != schema.classes[0])


def _codes(texts: Sequence[str | None]) -> Index:
    """Codes (n,) of texts; -1 is null."""
    known = {text: code for code, text in enumerate(dict.fromkeys(text for text in texts if text is not None))}
    return np.array([-1 if text is None else known[text] for text in texts], dtype=np.int64)
