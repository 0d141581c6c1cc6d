"""Turn a table and its roles into a `Dataset`: checked, split, with causal fields, sorted by entity and time.

What is special: at most two copies of the table are in memory. The used columns are read once and converted
to arrays one at a time, and every field is written directly into its column of the store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checks import (
    BadRows,
    RowCheck,
    check_label,
    check_number,
    check_present,
    check_time,
    check_unique,
    find_classes,
    label_names,
)
from balancer.data.context_features import CONTEXT_FIELDS, context_fields
from balancer.data.context_past import TableContextPast
from balancer.data.features import Field, entity_fields, row_fields
from balancer.data.past import Events, TablePast
from balancer.data.reading import Source, column_types, read_columns, read_input, source_name
from balancer.data.risk import risk_fields
from balancer.data.schema import RARE, Schema, check_buckets, distinct, encode, field_codes, learn_vocabulary
from balancer.data.score_memory import TableScores, clipped, memory_fields, memory_names
from balancer.data.spec import Spec, nearest
from balancer.data.split import Split, split_by_time
from balancer.data.store import TransactionStore
from balancer.deprecation import renamed_keyword
from balancer.errors import InputError, MissingClassError


@dataclass(eq=False)
class Dataset:
    """A table ready for training or scoring. Arrays of N rows are in the order of the store."""

    store: TransactionStore
    schema: Schema
    split: NDArray[np.int8]
    """(N,) `Split` of each row. When scoring: Split.TEST for the input, Split.GAP for the past rows."""
    ids: pl.Series
    """(N,) the id column, or else row numbers of the input, from 0."""
    entities: list[str]
    """Entity names by entity code; empty where the table has no entity."""
    fingerprint: str
    """Hex digest of the content of the used columns and of the spec."""
    dropped: dict[str, int]
    """Number of rows left out by `bad_rows="drop"`, by reason."""
    notes: list[str]
    """Notes for the user: columns left out, values filled."""
    source: Source
    """Where the rows came from."""

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Return the (n,) labelled store rows of a split, in time order."""
        rows = np.flatnonzero((self.split == split) & (self.store.label >= 0))
        return rows[np.lexsort((self.store.row[rows], self.store.time[rows]))]

    def scored_rows(self) -> NDArray[np.int64]:
        """Return the (n,) store rows of the input (without past rows), labelled or not, in input order."""
        rows = np.flatnonzero(self.store.row >= 0)
        return rows[np.argsort(self.store.row[rows], kind="stable")]

    def without_score_fields(self) -> Dataset:
        """The same rows without the score fields; the values are a view, not a copy."""
        schema, number = self.schema.without_score_fields(), len(self.schema.score_fields)
        if not number:
            return self
        store = replace(self.store, values=self.store.values[:, number:], num_numeric=self.store.num_numeric - number)
        return replace(self, store=store, schema=schema)

    def without_context_past(self) -> Dataset:
        """The same rows without the fields of known labels and activity, as earlier versions had them."""
        added = {f"{column}_{name}" for column in self.schema.spec.context for name in CONTEXT_FIELDS}
        kept = (name for name in self.schema.numeric_fields if name not in added or name in self.schema.spec.numeric)
        return self.with_numeric_fields(tuple(kept))

    def with_numeric_fields(self, names: tuple[str, ...]) -> Dataset:
        """The same rows with these numeric fields only, as a run of an older version had them.

        Args:
            names: Some of the schema's numeric fields, in its order.

        Raises:
            InputError: A field does not exist.
        """
        schema = self.schema
        if names == schema.numeric_fields:
            return self
        column_of = {name: column for column, name in enumerate(schema.numeric_fields)}
        unknown = next((name for name in names if name not in column_of), None)
        if unknown is not None:
            raise InputError(f"this version of balancer has no field {unknown!r}: use the version that wrote the run")
        columns = [*(column_of[name] for name in names), *range(len(column_of), self.store.values.shape[1])]
        store = replace(self.store, values=np.take(self.store.values, columns, axis=1), num_numeric=len(names))
        return replace(self, store=store, schema=replace(schema, numeric_fields=names))

    def fill_score_fields(self, logit: NDArray[np.floating]) -> None:
        """Compute the score fields in place.

        Args:
            logit: (N,) log-odds of fraud that the first stage gives to each store row.
        """
        store, names = self.store, self.schema.score_fields
        store.values[:, 0] = clipped(logit)
        if len(names) > 1:
            for column, (_, values) in enumerate(memory_fields(TableScores(store.start, store.time, logit)), start=1):
                store.values[:, column] = values

    def input_frame(self) -> pl.DataFrame:
        """Read the input rows with all columns, without dropped rows: row i belongs to `scored_rows()[i]`."""
        return read_input(self.source)[self.store.row[self.scored_rows()]]


@dataclass(frozen=True)
class _Table:
    """Checked columns of one input in input order, without bad rows."""

    frame: pl.DataFrame
    row: NDArray[np.int64]
    time: NDArray[np.float64]
    amount: NDArray[np.float64] | None
    label: NDArray[np.int16]
    numeric: dict[str, NDArray[np.float32]]
    dropped: dict[str, int]


@renamed_keyword("history", "past")
def load_dataset(
    path: Source,
    spec: Spec,
    *,
    schema: Schema | None = None,
    past: Source | None = None,
    bad_rows: BadRows = "error",
    hash_buckets: int = 0,
    vocabularies: Mapping[str, list[str]] | None = None,
    need_label: bool = True,
    score_fields: bool = False,
) -> Dataset:
    """Read, check and split a table, and compute its fields.

    Args:
        path: Parquet file, CSV file, folder of Parquet, Delta table, or a polars frame.
        spec: Roles of the columns (`resolve_spec`); with `schema`, use `schema.spec`.
        schema: The schema of training, for scoring: classes, vocabularies and fill values. The table then
            needs no label.
        past: Earlier rows, which serve as history and context only.
        bad_rows: `"error"` raises on the first bad row; `"drop"` leaves bad rows out and counts them.
        hash_buckets: Above 0, rare and unseen categorical values share this many additional codes by their
            hash, instead of one. Ignored with `schema`, which has its own number.
        vocabularies: Vocabularies of another schema, used instead of learning them on the training rows, so
            that a value has the same code in both tables.
        need_label: False accepts a table without labels, or with too few to learn from. Where no row has a
            label, the shares of the split are shares of all rows.
        score_fields: Whether the data set has fields for the scores of a detector's first stage. They are 0
            until `Dataset.fill_score_fields` computes them. Ignored with `schema`, which says it.

    Raises:
        InputError: If the table can't be used; the message names the column, row, flag or file, and the
            remedy.
    """
    check_buckets(hash_buckets)
    table, classes = _read(path, spec, schema.classes if schema else None, bad_rows, "row", need_label)
    tables = [table]
    if past is not None:
        earlier, _ = _read(past, spec, classes, bad_rows, "past row")
        tables = [_as_past(earlier, table), table]
    data = _concatenate(tables)
    entity, entities = _entities(data, spec)
    order = np.lexsort((data.time, entity))
    code = entity[order].astype(np.int32)
    time, label, row = data.time[order], data.label[order], data.row[order]
    start = np.searchsorted(code, code).astype(np.int64)
    frame = data.frame[order]
    if schema is None:
        gap = spec.label_delay if spec.split.gap is None else spec.split.gap
        known = label >= 0
        split = split_by_time(time, known if need_label or known.any() else ~known, spec.split, gap)
        if need_label:
            _check_splits(label, split, classes, spec)
    else:
        split = np.where(row < 0, Split.GAP, Split.TEST).astype(np.int8)
    keys = {name: encode(frame[name], distinct(frame[name])) for name in dict.fromkeys((*spec.categorical, *spec.context))}
    amount = None if data.amount is None else data.amount[order]
    events = Events(time=time, start=start, amount=amount, keys=keys, categorical=spec.categorical, arrival=order)
    numeric = {name: values[order] for name, values in data.numeric.items()}
    if schema is None:
        schema = _learn(spec, classes, events, frame, numeric, split == Split.TRAIN, hash_buckets, vocabularies)
        if score_fields:
            schema = replace(schema, numeric_fields=(*_score_names(spec), *schema.numeric_fields))
    values = _values(schema, events, label, frame, numeric)
    store = TransactionStore(
        values=values,
        num_numeric=len(schema.numeric_fields),
        time=time,
        entity=code,
        start=start,
        label=label,
        amount=np.zeros(len(time)) if events.amount is None else events.amount,
        row=row,
    )
    ids = frame[spec.id] if spec.id in frame.columns else pl.Series("row", row)
    return Dataset(store, schema, split, ids, entities, _fingerprint(data, spec), table.dropped, _notes(path, spec, data), path)


UNKNOWN_CLASSES = ("legitimate", "fraud")
"""Class names of a table without a label column."""


def _read(
    source: Source, spec: Spec, classes: tuple[str, ...] | None, bad_rows: BadRows, where: str, need_label: bool = True
) -> tuple[_Table, tuple[str, ...]]:
    """Read and check the used columns. With `classes` (scoring), the label and id columns may be missing."""
    scoring = classes is not None
    if spec.label is None and not need_label:
        classes = classes or UNKNOWN_CLASSES
    elif not scoring and spec.label is None:
        raise InputError("no label column is named: name it with --label (or `label` in the spec file)")
    columns, types = spec.columns(), column_types(source)
    if scoring:
        columns = [name for name in columns if name in types or name not in (spec.label, spec.id)]
    missing = next((name for name in columns if name not in types), None)
    if missing is not None:
        raise InputError(f"{source_name(source)} has no column {missing!r} (role {spec.role(missing)}): {nearest(missing, types)}")
    frame = read_columns(source, columns)
    check = RowCheck(frame.height, bad_rows, where)
    time = check_time(frame[spec.time], check)
    if spec.entity is not None:
        check_present(frame[spec.entity], check)
    if spec.id in columns:
        check_unique(frame[spec.id], check)
    amount = None if spec.amount is None else check_number(frame[spec.amount], check)
    numeric = {name: check_number(frame[name], check, optional=True).astype(np.float32) for name in spec.numeric}
    label = np.full(frame.height, -1, dtype=np.int16)
    if spec.label in columns:
        text = label_names(frame[spec.label], spec.unlabelled)
        classes = find_classes(text, spec.negative) if classes is None else classes
        label = check_label(text, classes, check)
    keep = check.keep
    if not keep.any():
        raise InputError(f"every row is bad and was dropped ({check.dropped}): check the roles of the columns")
    if keep.all():
        row = np.arange(frame.height, dtype=np.int64)
        return _Table(frame, row, time, amount, label, numeric, check.dropped), classes or ()
    numeric = {name: values[keep] for name, values in numeric.items()}
    kept = None if amount is None else amount[keep]
    table = _Table(frame.filter(pl.Series(keep)), np.flatnonzero(keep), time[keep], kept, label[keep], numeric, check.dropped)
    return table, classes or ()


def _as_past(past: _Table, table: _Table) -> _Table:
    """Give `past` the columns and dtypes of `table`, and mark its rows with row number -1."""
    types = dict(table.frame.schema)
    frame = past.frame.select(
        pl.col(name).cast(dtype) if name in past.frame.columns else pl.lit(None, dtype).alias(name) for name, dtype in types.items()
    )
    return _Table(frame, np.full(len(past.row), -1, np.int64), past.time, past.amount, past.label, past.numeric, {})


def _concatenate(tables: list[_Table]) -> _Table:
    if len(tables) == 1:
        return tables[0]
    first, second = tables
    amount = None if first.amount is None or second.amount is None else np.concatenate((first.amount, second.amount))
    return _Table(
        pl.concat([first.frame, second.frame]),
        np.concatenate((first.row, second.row)),
        np.concatenate((first.time, second.time)),
        amount,
        np.concatenate((first.label, second.label)),
        {name: np.concatenate((first.numeric[name], second.numeric[name])) for name in first.numeric},
        second.dropped,
    )


def _entities(data: _Table, spec: Spec) -> tuple[NDArray[np.int64], list[str]]:
    """Encode the entities.

    Returns:
        The (N,) entity code of each row, and the names by code. Without an entity column every row is an
        entity, numbered in time order, and there are no names.
    """
    if spec.entity is None:
        code = np.empty(len(data.time), dtype=np.int64)
        code[np.argsort(data.time, kind="stable")] = np.arange(len(data.time))
        return code, []
    names = distinct(data.frame[spec.entity])
    return encode(data.frame[spec.entity], names), names


def _score_names(spec: Spec) -> tuple[str, ...]:
    """Names of the score fields of a table with these roles.

    Raises:
        InputError: A column of the table has such a name.
    """
    names = memory_names(spec.entity is not None)
    taken = next((name for name in (*spec.numeric, *spec.categorical) if name in names), None)
    if taken is not None:
        raise InputError(f"column {taken!r} has the name of a field that the boosted trees add: rename it, or use --learner network")
    return names


def _check_splits(label: NDArray[np.int16], split: NDArray[np.int8], classes: tuple[str, ...], spec: Spec) -> None:
    for each in Split:
        inside = label[split == each]
        if each != Split.GAP and not (inside > 0).any():
            raise MissingClassError(
                f"column {spec.label!r}: {each.title} has no positive row, only {classes[0]!r}: change [split], or give more rows"
            )
        if each != Split.GAP and not (inside == 0).any():
            raise MissingClassError(
                f"column {spec.label!r}: {each.title} has no row of the negative class {classes[0]!r}: check --negative, or change [split]"
            )
    learned = np.bincount(label[(split == Split.TRAIN) & (label >= 0)], minlength=len(classes))
    if (learned == 0).any():
        name = classes[int(np.argmin(learned))]
        raise MissingClassError(
            f"column {spec.label!r}: the class {name!r} has no row in train: change [split], or rename or drop its rows"
        )


def _fields(
    spec: Spec,
    events: Events,
    label: NDArray[np.int16],
    numeric: dict[str, NDArray[np.float32]],
    wanted: tuple[str, ...] | None = None,
) -> Iterator[Field]:
    """Compute every numeric field, one at a time; fields of context columns only if they are `wanted`."""
    yield from row_fields(events.time, events.amount)
    if spec.entity is not None:
        yield from entity_fields(TablePast(events))
    for name in spec.context:
        yield from risk_fields(name, events.keys[name], events.time, label, spec.label_delay)
    context = TableContextPast(events, label, spec.label_delay)
    for name in spec.context:
        yield from context_fields(context, name, wanted)
    yield from numeric.items()


def _learn(
    spec: Spec,
    classes: tuple[str, ...],
    events: Events,
    frame: pl.DataFrame,
    numeric: dict[str, NDArray[np.float32]],
    train: NDArray[np.bool_],
    hash_buckets: int,
    vocabularies: Mapping[str, list[str]] | None,
) -> Schema:
    # The field names are those of an empty table, so that they are defined in one place only.
    no_rows = np.zeros(0, dtype=np.int64)
    no_amount = None if events.amount is None else np.zeros(0)
    empty = Events(np.zeros(0), no_rows, no_amount, dict.fromkeys(events.keys, no_rows), events.categorical)
    names = tuple(name for name, _ in _fields(spec, empty, np.zeros(0, np.int16), {name: np.zeros(0, np.float32) for name in numeric}))
    fill: dict[str, float] = {}
    for name, values in numeric.items():
        known = values[train & ~np.isnan(values)]
        fill[name] = float(np.median(known)) if len(known) else 0.0
    learned = {
        name: learn_vocabulary(frame[name], train, RARE if hash_buckets else 1) if vocabularies is None else list(vocabularies[name])
        for name in spec.categorical
    }
    return Schema(spec, classes, names, spec.categorical, learned, fill, hash_buckets)


def _values(
    schema: Schema, events: Events, label: NDArray[np.int16], frame: pl.DataFrame, numeric: dict[str, NDArray[np.float32]]
) -> NDArray[np.float32]:
    column_of = {name: column for column, name in enumerate(schema.numeric_fields)}
    values = np.empty((len(events.time), len(column_of) + len(schema.categorical_fields)), dtype=np.float32)
    values[:, : len(schema.score_fields)] = 0.0
    filled = {name: np.where(np.isnan(column), np.float32(schema.fill[name]), column) for name, column in numeric.items()}
    for name, column in _fields(schema.spec, events, label, filled, schema.numeric_fields):
        values[:, column_of[name]] = column
    for number, name in enumerate(schema.categorical_fields):
        values[:, len(column_of) + number] = field_codes(frame[name], schema.vocabularies[name], schema.hash_buckets)
    return values


def _fingerprint(data: _Table, spec: Spec) -> str:
    digest = hashlib.sha256(json.dumps(spec.to_dict(), sort_keys=True).encode())
    digest.update(data.frame.hash_rows(seed=0).to_numpy().tobytes())
    return digest.hexdigest()


def _notes(source: Source, spec: Spec, data: _Table) -> list[str]:
    notes = []
    unused = [name for name in column_types(source) if name not in spec.columns()]
    if unused:
        notes.append(f"columns without a role are left out: {', '.join(unused)}")
    for name, values in data.numeric.items():
        if missing := int(np.isnan(values).sum()):
            notes.append(f"{name}: {missing} missing values are filled with the training median")
    return notes
