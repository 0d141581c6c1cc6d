"""Check the JSON of a transaction, and convert it to the types of the training table."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from balancer.data.row_times import time_of
from balancer.data.schema import Schema
from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.serving.scoring.history import Row
from balancer.tables.joined import join_texts
from balancer.tables.numbers import null_words
from balancer.tables.options import NORMAL
from balancer.tables.times import TimeForm, parse_time
from balancer.tables.values import NOBODY, WHITE, normal_text

LONGEST_TEXT = 1_000
_UNPRINTABLE = ("Cc", "Cs")
"""Unicode categories that no text of a transaction has: control characters, and halves of characters."""
_LARGEST = float(np.finfo(np.float32).max)


def parse_transaction(raw: Mapping[str, Any], schema: Schema, where: str, now: float, tolerance: float) -> Row:
    """Check and convert one transaction.

    Args:
        raw: Values by column. Other columns are ignored. `id` identifies the transaction if the table has no
            id column.
        schema: The schema of the model.
        where: The name of the transaction in messages.
        now: The clock of the service, seconds since 1970.
        tolerance: Seconds by which the time of a transaction may be ahead of the clock.

    Raises:
        InputError: If a column is missing, or a value can't be used.
    """
    spec = schema.spec
    key = spec.id or "id"
    for name in spec.columns():
        for part in schema.parts(name):
            if part not in raw and name not in (spec.id, spec.label, spec.label_date):
                remedy = "null where it is not known" if name in _optional(schema) or part != name else "a value"
                raise InputError(f"{where}: column {part!r} is missing; give {remedy}")
    moment = _moment(raw, schema, where)
    if moment > now + tolerance:
        raise InputError(
            f"{where}: column {spec.time!r} is {moment - now:.0f} s ahead of the clock of the service, more than {tolerance:g} s; "
            "correct the clock of the sender"
        )
    amount = None if spec.amount is None else _number(raw[spec.amount], f"{where}: column {spec.amount!r}", math.inf)
    absent = null_words(spec.read)
    numeric = {
        name: math.nan if _is_missing(raw[name], absent) else _number(raw[name], f"{where}: column {name!r}", _LARGEST)
        for name in spec.numeric
    }
    texts = {name: _key(raw, name, schema, where) for name in dict.fromkeys((*spec.categorical, *spec.context))}
    identifier = uuid.uuid4().hex if raw.get(key) is None else _present(raw[key], f"{where}: column {key!r}", schema)
    entity = identifier if spec.entity is None else _entity(raw, schema, where)
    digest = hashlib.sha256(json.dumps([entity, moment, amount, list(numeric.values()), texts]).encode()).hexdigest()
    return Row(identifier, entity, moment, moment, amount, numeric, texts, digest)


def _optional(schema: Schema) -> tuple[str, ...]:
    spec = schema.spec
    return tuple(name for name in (*spec.numeric, *spec.categorical, *spec.context) if name not in (spec.entity, spec.amount, spec.time))


def _is_missing(value: Any, absent: frozenset[str]) -> bool:
    """Whether a value of a numeric column is missing, as in a table: null, NaN, or a word for it."""
    if isinstance(value, str):
        return value.strip().lower() in absent
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any, where: str, most: float) -> float:
    if isinstance(value, str):
        try:
            value = float(value.strip())
        except ValueError:
            raise InputError(f"{where} is text, not a number; write a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} is {'null' if value is None else type(value).__name__}, not a number; give a finite number")
    if abs(value) > 1e308 or not math.isfinite(value):
        raise InputError(f"{where} is not finite; give a finite number")
    if abs(value) > most:
        raise InputError(f"{where} is beyond the range of 32-bit floats; scale it as in training")
    return float(value)


def _key(raw: Mapping[str, Any], name: str, schema: Schema, where: str) -> str | None:
    """The value of a category or key as text; None where it, or every part of a joined key, is missing."""
    return join_texts([_text(raw[part], f"{where}: column {part!r}", schema) for part in schema.parts(name)])


def _entity(raw: Mapping[str, Any], schema: Schema, where: str) -> str:
    """The entity as text.

    Raises:
        InputError: If it is missing, or a word that stands for a missing value.
    """
    assert schema.spec.entity is not None
    columns = schema.parts(schema.spec.entity)
    if len(columns) == 1:
        text: str | None = _present(raw[columns[0]], f"{where}: column {columns[0]!r}", schema)
    else:
        text = _key(raw, schema.spec.entity, schema, where)
    if text is None:
        raise InputError(
            f"{where}: columns {', '.join(map(repr, columns))} are all missing; one of them must name the {schema.spec.entity}"
        )
    each = [normal_text(raw[part]) for part in columns]
    if all(part is None or part.lower() in NOBODY for part in each):
        raise InputError(f"{where}: column {schema.spec.entity!r} is {text!r}, a word for a missing value; give the entity")
    return text


def _present(value: Any, where: str, schema: Schema) -> str:
    text = _text(value, where, schema)
    if text is None:
        raise InputError(f"{where} is {'null' if value is None else 'empty'}; give a text or a number")
    return text


def _text(value: Any, where: str, schema: Schema) -> str | None:
    """Convert a value to text as for a column of a table, where 3, 3.0 and "3" are one; None is missing."""
    if not isinstance(value, str | int | float | None):
        raise InputError(f"{where} is {type(value).__name__}; give a text or a number")
    _check_printable(str(value).strip(WHITE), where)
    if schema.values == NORMAL:
        text = normal_text(value)
    else:  # as earlier versions did
        text = normal_text(value) if isinstance(value, bool) else None if value is None else str(value)
    return text or None


def _check_printable(text: str, where: str) -> None:
    if len(text) > LONGEST_TEXT or not (text.isprintable() or all(unicodedata.category(each) not in _UNPRINTABLE for each in text)):
        raise InputError(f"{where} is not a printable text of at most {LONGEST_TEXT} characters; shorten or correct it")


def _time(value: Any, where: str, usual: TimeForm | None = None) -> float:
    """Convert a text or a number to seconds since 1970, as a column of a table with this value is read."""
    if not isinstance(value, str):
        _number(value, where, math.inf)
    try:
        return parse_time(value, usual=usual)
    except InputError:
        raise InputError(f"{where} can't be read as a time; write it as 2026-05-31T13:45:00, or as a number of seconds") from None


def _moment(raw: Mapping[str, Any], schema: Schema, where: str) -> float:
    """The time of a transaction; that of a date and a time of day in two columns is their sum."""
    columns = () if schema.spec.time is None else schema.parts(schema.spec.time)
    where = f"{where}: column {schema.spec.time!r}"
    if len(columns) == 1:
        return _time(raw[columns[0]], where, schema.usual_time)
    try:
        return time_of(raw, schema.spec, columns, schema.usual_time)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Correction:
    """Checked values that replace those of a stored transaction."""

    amount: float | None
    """The amount; None where it stays."""
    numeric: dict[str, float]
    """Values of numeric columns; NaN where no value is known."""
    texts: dict[str, str | None]
    """Values of categorical and context columns."""


def parse_correction(raw: Mapping[str, Any], schema: Schema) -> Correction:
    """Check and convert the columns that correct a stored transaction, as `parse_transaction` does.

    Args:
        raw: Values by column. A joined key needs all its columns.
        schema: The schema of the model.

    Raises:
        InputError: If a column is unknown or can't be corrected, or a value can't be used.
    """
    spec = schema.spec
    fixed = [name for name in (spec.entity, spec.time, spec.id or "id") if name is not None]
    for name in fixed:
        for part in schema.parts(name):
            if part in raw:
                what = f"{part!r} says which transaction it is, or when it was"
                raise InputError(f"column {what}, and can't be corrected: reverse the transaction and send the right one with another id")
    lists = dict.fromkeys((*spec.categorical, *spec.context))
    known = {part for name in ((spec.amount,) if spec.amount else ()) + (*spec.numeric, *lists) for part in schema.parts(name)}
    for column in raw:
        if column not in known - {part for name in fixed for part in schema.parts(name)}:
            raise InputError(f"there is no column {column!r} to correct; {nearest(column, sorted(known))}")
    for name in lists:
        given = [part in raw for part in schema.parts(name)]
        if any(given) and not all(given):
            raise InputError(f"the columns {', '.join(map(repr, schema.parts(name)))} are joined to one key: give all of them")
    absent = null_words(spec.read)
    return Correction(
        amount=_number(raw[spec.amount], f"column {spec.amount!r}", math.inf) if spec.amount is not None and spec.amount in raw else None,
        numeric={
            name: math.nan if _is_missing(raw[name], absent) else _number(raw[name], f"column {name!r}", _LARGEST)
            for name in spec.numeric
            if name in raw
        },
        texts={name: _key(raw, name, schema, "the correction") for name in lists if schema.parts(name)[0] in raw},
    )
