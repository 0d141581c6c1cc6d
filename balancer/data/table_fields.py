"""The fields of a table: their names, what is learned about them, and their values.

What is special: every field is written directly into its column of the store, one at a time. Fields of
context columns, which depend on rows of several entities, are given, so that they can be computed for the
whole table or in parts of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.context_features import context_fields
from balancer.data.context_past import TableContextPast
from balancer.data.features import Field, entity_fields, row_fields
from balancer.data.past import Events, TablePast
from balancer.data.risk import risk_fields
from balancer.data.schema import MANY, RARE, Schema, choose_vocabulary, own_names
from balancer.data.score_memory import memory_names
from balancer.data.spec import Spec
from balancer.errors import InputError
from balancer.tables.options import NORMAL, PLAIN

Numbers = Mapping[str, NDArray[np.float32]]


def fields_of_contexts(
    spec: Spec,
    events: Events,
    label: NDArray[np.int16],
    label_time: NDArray[np.float64] | None,
    wanted: tuple[str, ...] | None = None,
) -> Iterator[Field]:
    """Compute the fields of context columns, one at a time.

    Without a time there are none: which labels are known would follow from it.

    Args:
        spec: Roles of the columns.
        events: Rows sorted by (entity, time, input order), or with one time in their order.
        label: (N,) class; 0 is negative, -1 is unknown.
        label_time: (N,) as in :func:`balancer.data.risk.known_labels`.
        wanted: Names of the fields that are needed; None: all.
    """
    contexts = spec.context if spec.time is not None else ()
    for name in contexts:
        yield from risk_fields(name, events.keys[name], events.time, label, spec.label_delay, label_time, events.moments)
    context = TableContextPast(events, label, spec.label_delay, label_time)
    for name in contexts:
        yield from context_fields(context, name, wanted)


def numeric_fields(spec: Spec, events: Events, contexts: Iterable[Field], numeric: Numbers) -> Iterator[Field]:
    """Compute every numeric field, one at a time.

    Args:
        spec: Roles of the columns.
        events: Rows sorted by (entity, time, input order).
        contexts: The fields of context columns.
        numeric: The numeric columns by field.
    """
    timed = spec.time is not None
    yield from row_fields(events.time if timed else None, events.amount)
    if spec.entity is not None:
        yield from entity_fields(TablePast(events), timed=timed)
    yield from contexts
    yield from numeric.items()


def learn_schema(
    spec: Spec, classes: tuple[str, ...], numeric: Numbers, train: NDArray[np.bool_], *, keys: Sequence[str], has_amount: bool
) -> Schema:
    """Name the fields, and learn what replaces missing numbers; vocabularies are added by `with_codes`.

    Args:
        spec: Roles of the columns.
        classes: Class names, the negative one first.
        numeric: The numeric columns by column, (N,) each; NaN where a value is missing.
        train: (N,) whether a row is a training row.
        keys: The categorical and context columns.
        has_amount: Whether the table has amounts.
    """
    # The field names are those of an empty table, so that they are defined in one place only.
    no_rows = np.zeros(0, dtype=np.int64)
    empty = Events(np.zeros(0), no_rows, np.zeros(0) if has_amount else None, dict.fromkeys(keys, no_rows), spec.categorical)
    contexts = fields_of_contexts(spec, empty, np.zeros(0, np.int16), None)
    derived = tuple(name for name, _ in numeric_fields(spec, empty, contexts, {}))
    columns = own_names(spec.numeric, spec.categorical, (*derived, *memory_names(True)))
    own, categorical = tuple(columns)[: len(spec.numeric)], tuple(columns)[len(spec.numeric) :]
    fill, missing = {}, []
    for name in own:
        values = numeric[columns[name]]
        unknown = np.isnan(values)
        known = values[train & ~unknown]
        fill[name] = float(np.median(known)) if len(known) else 0.0
        if (unknown & train).any():
            missing.append(name)
    renamed = {name: column for name, column in columns.items() if name != column}
    return Schema(spec, classes, (*derived, *own), categorical, {}, fill, values=NORMAL, missing=tuple(missing), columns=renamed)


def with_codes(
    schema: Schema, counts: Mapping[str, pl.DataFrame], codes: Schema | None, hash_buckets: int, *, earlier: bool = False
) -> Schema:
    """Add the vocabularies: those of the training rows, or those of another schema.

    Args:
        schema: A schema without vocabularies.
        counts: Training rows of each value, by categorical column
            (:func:`balancer.data.schema.count_values`).
        codes: The other schema; None: learn them.
        hash_buckets: Codes that rare and unseen values share.
        earlier: Whether to learn as versions did that compared values by their plain text.
    """
    if codes is not None:
        by_column = {column: codes.vocabularies[name] for name, column in codes.categorical_columns.items()}
        vocabularies = {name: list(by_column[column]) for name, column in schema.categorical_columns.items()}
        missing = tuple(name for name in schema.own_fields.values() if name in codes.missing)
        return replace(schema, vocabularies=vocabularies, hash_buckets=codes.hash_buckets, values=codes.values, missing=missing)
    least, many = RARE if hash_buckets else 1, None if earlier else MANY
    vocabularies = {name: choose_vocabulary(counts[column], least, many) for name, column in schema.categorical_columns.items()}
    schema = replace(schema, vocabularies=vocabularies, hash_buckets=hash_buckets)
    return replace(schema, values=PLAIN, missing=()) if earlier else schema


def filled_numbers(schema: Schema, numeric: Numbers) -> dict[str, NDArray[np.float32]]:
    """The numeric columns by field; a missing number is kept or replaced, as the schema says.

    Args:
        schema: Which fields keep missing numbers, and what replaces others.
        numeric: The columns by column, (N,) each.
    """
    own: dict[str, NDArray[np.float32]] = {}
    for column, name in schema.own_fields.items():
        given = numeric[column]
        own[name] = given if name in schema.missing else np.where(np.isnan(given), np.float32(schema.fill[name]), given)
    return own


def field_values(schema: Schema, events: Events, contexts: Iterable[Field], coded: Numbers, numeric: Numbers) -> NDArray[np.float32]:
    """Compute every field of the store; only fields in `Schema.missing` have NaN.

    Args:
        schema: Names of the fields.
        events: Rows sorted by (entity, time, input order).
        contexts: The fields of context columns.
        coded: (N,) codes by categorical field.
        numeric: The numeric columns by column; NaN where a value is missing.

    Returns:
        (N, C) float32, numeric fields and then codes.

    Raises:
        InputError: The schema has a field that this version does not compute.
    """
    column_of = {name: column for column, name in enumerate(schema.numeric_fields)}
    values = np.full((len(events.time), len(column_of) + len(schema.categorical_fields)), np.nan, dtype=np.float32)
    values[:, : len(schema.score_fields)] = 0.0
    written = set(schema.score_fields)
    for name, computed in numeric_fields(schema.spec, events, contexts, filled_numbers(schema, numeric)):
        if name in column_of:  # an earlier version had fewer fields
            values[:, column_of[name]] = computed
            written.add(name)
    for number, name in enumerate(schema.categorical_columns, start=len(column_of)):
        values[:, number] = coded[name]
    never = next((name for name in schema.numeric_fields if name not in written), None)
    if never is not None:
        raise InputError(f"this version of balancer has no field {never!r}: use the version that wrote the run")
    return values
