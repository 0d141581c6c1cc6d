"""Turn a table and its roles into a `Dataset`: checked, split, with causal fields, sorted by entity and time.

What is special: at most two copies of the table are in memory. The used columns are read once and converted
to arrays one at a time, and every field is written directly into its column of the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checked import CheckedTable, read_table, with_past
from balancer.data.checks import BadRows
from balancer.data.context_features import CONTEXT_FIELDS, context_fields
from balancer.data.context_past import TableContextPast
from balancer.data.features import Field, entity_fields, row_fields
from balancer.data.label_checks import check_splits, label_cautions, split_notes
from balancer.data.overlap import without_overlap
from balancer.data.past import Events, TablePast
from balancer.data.past_cautions import past_cautions
from balancer.data.reading import Source, column_names, read_input
from balancer.data.risk import risk_fields
from balancer.data.row_times import FOUND_NO_TIME, NO_TIME, assumed, label_times, unlearned
from balancer.data.schema import MANY, RARE, Schema, check_buckets, distinct, encode, field_codes, learn_vocabulary, own_names
from balancer.data.score_memory import TableScores, clipped, memory_fields, memory_names
from balancer.data.spec import Spec
from balancer.data.split import Split, split_at_random, split_by_time
from balancer.data.store import TransactionStore
from balancer.data.timeline import first_of_key
from balancer.deprecation import renamed_keyword
from balancer.errors import InputError
from balancer.names import counted, listed
from balancer.tables.options import NORMAL, PLAIN
from balancer.tables.source import opened

_NAMED = 5
"""Columns that a note names."""


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
    cautions: list[str] = field(default_factory=list)
    """What looks wrong with the labels: warnings for the user."""

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
            timed = self.schema.spec.time is not None
            for column, (_, values) in enumerate(memory_fields(TableScores(store.start, store.time, logit), timed=timed), start=1):
                store.values[:, column] = values

    def input_frame(self) -> pl.DataFrame:
        """Read the input rows with all columns, without dropped rows: row i belongs to `scored_rows()[i]`."""
        return read_input(self.source, self.schema.spec.read)[self.store.row[self.scored_rows()]]


@renamed_keyword("history", "past")
def load_dataset(
    path: Source,
    spec: Spec,
    *,
    schema: Schema | None = None,
    past: Source | None = None,
    bad_rows: BadRows = "error",
    hash_buckets: int = 0,
    like: Schema | None = None,
    codes: Schema | None = None,
    earlier: bool = False,
    need_label: bool = True,
    score_fields: bool = False,
    left_out: Sequence[str] | None = None,
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
            hash, instead of one. Ignored with `schema`, `like` and `codes`, which have their own number.
        like: The schema that was learned on this very table: the fields are computed with it, and the table
            is split as for training.
        codes: Schema of another table whose vocabularies, form of values and missing values are used instead
            of learning them, so that a value has the same code in both tables.
        earlier: Whether to learn the schema as versions did that compared values by their plain text and
            filled every missing number.
        need_label: False accepts a table without labels, or with too few to learn from. Where no row has a
            label, the shares of the split are shares of all rows.
        score_fields: Whether the data set has fields for the scores of a detector's first stage. They are 0
            until `Dataset.fill_score_fields` computes them. Ignored with `schema` and `like`, which say it.
        left_out: Notes about the columns without a role (`Roles.notes`). None: their names.

    Raises:
        InputError: If the table can't be used; the message names the column, row, flag or file, and the
            remedy.
    """
    check_buckets(hash_buckets)
    known = schema or like
    like_which = known or codes
    form = like_which.values if like_which is not None else PLAIN if earlier else NORMAL
    table, classes = read_table(
        path, spec, schema=known, classes=schema.classes if schema else None, form=form, bad_rows=bad_rows, need_label=need_label
    )
    past_notes: tuple[str, ...] = ()
    past_warnings: list[str] = []
    data, overlap = table, None
    if past is not None:
        before, _ = read_table(past, spec, schema=known, classes=classes, form=form, bad_rows=bad_rows, where="past row")
        overlap, past_notes = without_overlap(before, table, spec), before.notes
        past_warnings = past_cautions(before, table, spec)
        del before
        data = with_past(table, overlap.past, timed=spec.time is not None)
    entity, entities = _entities(data, spec)
    order = np.lexsort((data.time, entity))
    code = entity[order].astype(np.int32)
    time, label, row = data.time[order], data.label[order], data.row[order]
    start = first_of_key(code)
    reports = None if data.reports is None or spec.time is None else data.reports[order]
    notes, cautions, learned_label = (*table_notes(table, left_out), label) if schema is None else ([*table.notes], [], label)
    if past is not None and overlap is not None:
        notes += [f"--past: {note}" for note in (*opened(past, spec.read).notes, *past_notes)] + ([overlap.note] if overlap.note else [])
        cautions += past_warnings + ([overlap.caution] if overlap.caution else [])
    if schema is None:
        split = _split(spec, data, time, label, row, code, entities, need_label)
        notes += split_notes(spec)
        if reports is not None and spec.split.by == "time":
            learned_label, note = unlearned(label, split == Split.TRAIN, time, reports)
            notes += [note] if note else []
        if need_label:
            check_splits(learned_label, split, classes, spec)
            cautions += label_cautions(classes, learned_label, split)
        if like is not None:
            cautions = []  # they were said when the run was trained, and name its flags
    else:
        split = np.where(row < 0, Split.GAP, Split.TEST).astype(np.int8)
    texts = {name: data.texts[name][order] for name in dict.fromkeys((*spec.categorical, *spec.context))}
    keys = {name: encode(values, distinct(values)) for name, values in texts.items()}
    amount = None if data.amount is None else data.amount[order]
    events = Events(time=time, start=start, amount=amount, keys=keys, categorical=spec.categorical, arrival=order)
    numeric = {name: values[order] for name, values in data.numeric.items()}
    ids = pl.Series("row", row) if data.ids is None else data.ids[order]
    fingerprint, joined, found, dropped = data.fingerprint(spec), data.joined, data.found, table.dropped
    del data, table, overlap  # the fields need the memory
    if known is None:
        train = split == Split.TRAIN
        learned = _learn(spec, classes, events, numeric, train)
        learned = _with_codes(learned, texts, train, codes, hash_buckets, earlier=earlier)
        known = replace(learned, joined=joined, time=found)
        if score_fields:
            names = memory_names(spec.entity is not None, timed=spec.time is not None)
            known = replace(known, numeric_fields=(*names, *known.numeric_fields))
    coded = {
        name: field_codes(texts[column], known.vocabularies[name], known.hash_buckets).astype(np.float32)
        for name, column in known.categorical_columns.items()
    }
    del texts
    values = _values(known, events, label, label_times(time, reports, label, spec.label_delay), coded, numeric)
    store = TransactionStore(
        values=values,
        num_numeric=len(known.numeric_fields),
        time=time,
        entity=code,
        start=start,
        label=learned_label,
        amount=np.zeros(len(time)) if events.amount is None else events.amount,
        row=row,
    )
    notes += _notes(path, known, numeric, left_out)
    return Dataset(store, known, split, ids, entities, fingerprint, dropped, notes, path, cautions)


def table_notes(table: CheckedTable, left_out: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Notes and cautions about a table; that there is no time is said once."""
    said = left_out is not None and FOUND_NO_TIME in left_out
    return [note for note in table.notes if not (said and note == NO_TIME)], [*table.cautions]


def _split(
    spec: Spec,
    data: CheckedTable,
    time: NDArray[np.float64],
    label: NDArray[np.int16],
    row: NDArray[np.int64],
    entity: NDArray[np.int32],
    entities: list[str],
    need_label: bool,
) -> NDArray[np.int8]:
    if spec.split.by == "random":
        return split_at_random(entity, entities, label, row, spec.split)
    gap = spec.label_delay if spec.split.gap is None else spec.split.gap
    labelled = label >= 0
    shared = labelled if need_label or labelled.any() else ~labelled
    return split_by_time(time, shared, spec.split, 0.0 if spec.time is None else gap, assumed=assumed(spec, data.found))


def _entities(data: CheckedTable, spec: Spec) -> tuple[NDArray[np.int64], list[str]]:
    """Encode the entities.

    Returns:
        The (N,) entity code of each row, and the names by code. Without an entity column every row is an
        entity, numbered in time order, and there are no names.
    """
    if spec.entity is None:
        code = np.empty(len(data.time), dtype=np.int64)
        code[np.argsort(data.time, kind="stable")] = np.arange(len(data.time))
        return code, []
    names = distinct(data.texts[spec.entity])
    return encode(data.texts[spec.entity], names), names


def _fields(
    spec: Spec,
    events: Events,
    label: NDArray[np.int16],
    label_time: NDArray[np.float64] | None,
    numeric: dict[str, NDArray[np.float32]],
    wanted: tuple[str, ...] | None = None,
) -> Iterator[Field]:
    """Compute every numeric field, one at a time; fields of context columns only if they are `wanted`.

    Without a time there are no fields of context columns: which labels are known would follow from it.
    """
    timed = spec.time is not None
    yield from row_fields(events.time if timed else None, events.amount)
    if spec.entity is not None:
        yield from entity_fields(TablePast(events), timed=timed)
    contexts = spec.context if timed else ()
    for name in contexts:
        yield from risk_fields(name, events.keys[name], events.time, label, spec.label_delay, label_time, events.moments)
    context = TableContextPast(events, label, spec.label_delay, label_time)
    for name in contexts:
        yield from context_fields(context, name, wanted)
    yield from numeric.items()


def _learn(
    spec: Spec, classes: tuple[str, ...], events: Events, numeric: dict[str, NDArray[np.float32]], train: NDArray[np.bool_]
) -> Schema:
    """Name the fields, and learn what replaces missing numbers; vocabularies are added by `_with_codes`."""
    # The field names are those of an empty table, so that they are defined in one place only.
    no_rows = np.zeros(0, dtype=np.int64)
    no_amount = None if events.amount is None else np.zeros(0)
    empty = Events(np.zeros(0), no_rows, no_amount, dict.fromkeys(events.keys, no_rows), events.categorical)
    derived = tuple(name for name, _ in _fields(spec, empty, np.zeros(0, np.int16), None, {}))
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


def _with_codes(
    schema: Schema, texts: dict[str, pl.Series], train: NDArray[np.bool_], codes: Schema | None, hash_buckets: int, *, earlier: bool
) -> Schema:
    """Add the vocabularies: those of the training rows, or those of another schema."""
    if codes is not None:
        by_column = {column: codes.vocabularies[name] for name, column in codes.categorical_columns.items()}
        vocabularies = {name: list(by_column[column]) for name, column in schema.categorical_columns.items()}
        missing = tuple(name for name in schema.own_fields.values() if name in codes.missing)
        return replace(schema, vocabularies=vocabularies, hash_buckets=codes.hash_buckets, values=codes.values, missing=missing)
    least, many = RARE if hash_buckets else 1, None if earlier else MANY
    vocabularies = {name: learn_vocabulary(texts[column], train, least, many) for name, column in schema.categorical_columns.items()}
    schema = replace(schema, vocabularies=vocabularies, hash_buckets=hash_buckets)
    return replace(schema, values=PLAIN, missing=()) if earlier else schema


def _values(
    schema: Schema,
    events: Events,
    label: NDArray[np.int16],
    label_time: NDArray[np.float64] | None,
    coded: dict[str, NDArray[np.float32]],
    numeric: dict[str, NDArray[np.float32]],
) -> NDArray[np.float32]:
    """Compute every field of the store; only fields in `Schema.missing` have NaN."""
    column_of = {name: column for column, name in enumerate(schema.numeric_fields)}
    values = np.full((len(events.time), len(column_of) + len(schema.categorical_fields)), np.nan, dtype=np.float32)
    values[:, : len(schema.score_fields)] = 0.0
    written = set(schema.score_fields)
    own = {}
    for column, name in schema.own_fields.items():
        given = numeric[column]
        own[name] = given if name in schema.missing else np.where(np.isnan(given), np.float32(schema.fill[name]), given)
    for name, computed in _fields(schema.spec, events, label, label_time, own, schema.numeric_fields):
        if name in column_of:  # an earlier version had fewer fields
            values[:, column_of[name]] = computed
            written.add(name)
    for number, name in enumerate(schema.categorical_columns, start=len(column_of)):
        values[:, number] = coded[name]
    never = next((name for name in schema.numeric_fields if name not in written), None)
    if never is not None:
        raise InputError(f"this version of balancer has no field {never!r}: use the version that wrote the run")
    return values


def _notes(source: Source, schema: Schema, numeric: dict[str, NDArray[np.float32]], left_out: Sequence[str] | None) -> list[str]:
    """Say which columns are left out or renamed, and what becomes of missing numbers."""
    used = {part for name in schema.spec.columns() for part in (name, *schema.parts(name))}
    unused = [name for name in column_names(source, schema.spec.read) if name not in used]
    unnamed = [f"columns without a role are left out: {listed(unused, _NAMED)}"] if unused else []
    notes = [*opened(source, schema.spec.read).notes, *(unnamed if left_out is None else left_out)]
    found = {name: column for column, name in schema.own_fields.items() if np.isnan(numeric[column]).any()}
    for names, what in (
        ([column for name, column in found.items() if name in schema.missing], "are kept as values"),
        ([column for name, column in found.items() if name not in schema.missing], "are filled with the training median"),
    ):
        if names:
            notes.append(f"missing values in {counted(len(names), 'column')} ({listed(names, _NAMED)}) {what}")
    if schema.columns:
        renamed = [f"{column} is {name}" for name, column in schema.columns.items()]
        notes.append(f"fields of columns that have the name of a derived field are kept apart: {listed(renamed, _NAMED, longest=120)}")
    return notes
