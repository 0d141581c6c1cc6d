"""Check the JSON of a transaction, and convert it to the types of the training table.

What is special: what a schema asks for is prepared once, as a plan, because looking it up for each
transaction took longer than the checks themselves.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from balancer.data.row_times import time_of
from balancer.data.schema import Schema
from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.serving.scoring.row import Row
from balancer.serving.scoring.values import LARGEST, LARGEST_AMOUNT, is_missing, number_of, seconds_of, text_of
from balancer.serving.texts import is_text, remedy_of
from balancer.tables.joined import join_texts
from balancer.tables.numbers import null_words
from balancer.tables.options import NORMAL
from balancer.tables.values import NOBODY, normal_text

_TRUTH = (0.0, 0.5, 1.0)
"""Medians that a column of truth values can have."""


class Plan:
    """What a schema asks of a transaction.

    Args:
        schema: The schema of a model.
    """

    def __init__(self, schema: Schema) -> None:
        spec = schema.spec
        optional = [name for name in (*spec.numeric, *spec.categorical, *spec.context) if name not in (spec.entity, spec.amount, spec.time)]
        self.schema, self.key = weakref.ref(schema), spec.id or "id"
        self.required = [
            (part, "null where it is not known" if name in optional or part != name else "a value")
            for name in spec.columns()
            for part in schema.parts(name)
            if name not in (spec.id, spec.label, spec.label_date)
        ]
        self.time, self.usual = () if spec.time is None else schema.parts(spec.time), schema.usual_time
        self.spec, self.read, self.absent = spec, spec.read, null_words(spec.read)
        self.numeric = [(name, schema.fill.get(field) in _TRUTH) for name, field in schema.own_fields.items()]
        self.texts = [(name, schema.parts(name)) for name in dict.fromkeys((*spec.categorical, *spec.context))]
        self.entity = None if spec.entity is None else schema.parts(spec.entity)
        self.normal = schema.values == NORMAL


_PLANS: dict[int, Plan] = {}
"""The plans of the schemas that exist, by their `id`."""


def plan_of(schema: Schema) -> Plan:
    """The plan of a schema, which is made once."""
    plan = _PLANS.get(id(schema))
    if plan is None or plan.schema() is not schema:
        plan = Plan(schema)
        _PLANS[id(schema)] = plan
        weakref.finalize(schema, _PLANS.pop, id(schema), None)
    return plan


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
    plan, where = plan_of(schema), f"{where}: "
    spec = plan.spec
    for part, remedy in plan.required:
        if part not in raw:
            raise InputError(f"{where}column {part!r} is missing; give {remedy}")
    moment = _moment(raw, plan, where)
    if moment > now + tolerance:
        raise InputError(
            f"{where}column {spec.time!r} is {moment - now:.0f} s ahead of the clock of the service, more than {tolerance:g} s; "
            "correct the clock of the sender"
        )
    amount = None if spec.amount is None else _amount(raw[spec.amount], plan, where)
    numeric = {name: _numeric(raw[name], name, plan, where, truth) for name, truth in plan.numeric}
    texts = {name: _key(raw, parts, plan, where) for name, parts in plan.texts}
    given = raw.get(plan.key)
    identifier = uuid.uuid4().hex if given is None else _present(given, plan.key, plan, where)
    entity = identifier if plan.entity is None else _entity(raw, plan.entity, plan, where)
    digest = hashlib.sha256(json.dumps([entity, moment, amount, list(numeric.values()), texts]).encode()).hexdigest()
    return Row(identifier, entity, moment, moment, amount, numeric, texts, digest)


def _amount(value: Any, plan: Plan, where: str) -> float:
    name = str(plan.spec.amount)
    if isinstance(value, str) and is_missing(value, plan.absent):
        raise InputError(f"{where}column {name!r} is {'a word for a missing value' if value.strip() else 'empty'}; give a finite number")
    return number_of(value, name, where, plan.read, most=LARGEST_AMOUNT)


def _numeric(value: Any, name: str, plan: Plan, where: str, truth: bool) -> float:
    if is_missing(value, plan.absent):
        return math.nan
    return number_of(value, name, where, plan.read, most=LARGEST, truth=truth)


def _key(raw: Mapping[str, Any], parts: tuple[str, ...], plan: Plan, where: str) -> str | None:
    """The value of a category or key as text; None where it, or every part of a joined key, is missing."""
    if len(parts) == 1:
        return text_of(raw[parts[0]], parts[0], where, normal=plan.normal)
    text = join_texts([text_of(raw[part], part, where, normal=plan.normal) for part in parts])
    if text is not None and not is_text(text):
        raise InputError(f"{where}columns {', '.join(map(repr, parts))} together: the text {remedy_of()}")
    return text


def _entity(raw: Mapping[str, Any], parts: tuple[str, ...], plan: Plan, where: str) -> str:
    """The entity as text.

    Raises:
        InputError: If it is missing, or a word that stands for a missing value.
    """
    name = plan.spec.entity
    text = _present(raw[parts[0]], parts[0], plan, where) if len(parts) == 1 else _key(raw, parts, plan, where)
    if text is None:
        raise InputError(f"{where}columns {', '.join(map(repr, parts))} are all missing; one of them must name the {name}")
    if len(parts) == 1 and plan.normal:
        nobody = text.lower() in NOBODY
    else:
        each = [normal_text(raw[part]) for part in parts]
        nobody = all(part is None or part.lower() in NOBODY for part in each)
    if nobody:
        raise InputError(f"{where}column {name!r} is {text!r}, a word for a missing value; give the entity")
    return text


def _present(value: Any, name: str, plan: Plan, where: str) -> str:
    """The text of an id, or of an entity that is one column."""
    if isinstance(value, bool):
        raise InputError(f"{where}column {name!r} is true or false; give a text or a number")
    number = value is None or (isinstance(value, float) and math.isnan(value))
    text = None if number else text_of(value, name, where, normal=plan.normal)
    if text is None:
        raise InputError(f"{where}column {name!r} is {'null' if value is None else 'empty'}; give a text or a number")
    return text


def _moment(raw: Mapping[str, Any], plan: Plan, where: str) -> float:
    """The time of a transaction; that of a date and a time of day in two columns is their sum."""
    if len(plan.time) == 1:
        return seconds_of(raw[plan.time[0]], str(plan.spec.time), where, plan.usual)
    try:
        return time_of(raw, plan.spec, plan.time, plan.usual)
    except InputError as error:
        raise InputError(f"{where}column {plan.spec.time!r}: {error}") from None


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
    plan = plan_of(schema)
    return Correction(
        amount=_amount(raw[spec.amount], plan, "") if spec.amount is not None and spec.amount in raw else None,
        numeric={name: _numeric(raw[name], name, plan, "", truth) for name, truth in plan.numeric if name in raw},
        texts={name: _key(raw, parts, plan, "") for name, parts in plan.texts if parts[0] in raw},
    )
