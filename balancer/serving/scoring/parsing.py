"""Check the JSON of a transaction, and convert it to the types of the training table."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from balancer.data.row_times import time_of
from balancer.data.schema import Schema
from balancer.errors import InputError
from balancer.serving.scoring.history import Row
from balancer.tables.times import TimeForm, parse_time

LONGEST_TEXT = 1_000


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
        if name not in raw and name not in (spec.id, spec.label, spec.label_date):
            remedy = "null where it is not known" if name in _optional(schema) else "a value"
            raise InputError(f"{where}: column {name!r} is missing; give {remedy}")
    moment = _moment(raw, schema, where)
    if moment > now + tolerance:
        raise InputError(
            f"{where}: column {spec.time!r} is {moment - now:.0f} s ahead of the clock of the service, more than {tolerance:g} s; "
            "correct the clock of the sender"
        )
    amount = None if spec.amount is None else _number(raw[spec.amount], f"{where}: column {spec.amount!r}", math.inf)
    numeric = {
        name: math.nan if raw[name] is None else _number(raw[name], f"{where}: column {name!r}", float(np.finfo(np.float32).max))
        for name in spec.numeric
    }
    texts = {
        name: None if raw[name] is None else _text(raw[name], f"{where}: column {name!r}")
        for name in dict.fromkeys((*spec.categorical, *spec.context))
    }
    identifier = uuid.uuid4().hex if raw.get(key) is None else _text(raw[key], f"{where}: column {key!r}")
    entity = identifier if spec.entity is None else _text(raw[spec.entity], f"{where}: column {spec.entity!r}")
    digest = hashlib.sha256(json.dumps([entity, moment, amount, list(numeric.values()), texts]).encode()).hexdigest()
    return Row(identifier, entity, moment, moment, amount, numeric, texts, digest)


def _optional(schema: Schema) -> tuple[str, ...]:
    spec = schema.spec
    return tuple(name for name in (*spec.numeric, *spec.categorical, *spec.context) if name not in (spec.entity, spec.amount, spec.time))


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


def _text(value: Any, where: str) -> str:
    """Convert a value to text as for a column of a table: 3 and "3" are the same."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float) or value == "":
        raise InputError(
            f"{where} is {'null' if value is None else 'empty' if value == '' else type(value).__name__}; give a text or a number"
        )
    text = str(value)
    if len(text) > LONGEST_TEXT or "\x00" in text or not text.isprintable():
        raise InputError(f"{where} is not a printable text of at most {LONGEST_TEXT} characters; shorten or correct it")
    return text


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
