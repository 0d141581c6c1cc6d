"""Read a store as a `Dataset`: all rows through memory maps, or the rows of one shard in memory.

What is special: what training learns (parts, vocabularies, missing numbers) is learned by the functions that
a table in memory uses, from the columns of the store. Where it equals what was learned when the store was
prepared, which is usual, the values are not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.loaded import Dataset
from balancer.data.row_times import AFTER_TRAINING, assumed
from balancer.data.schema import Schema, field_codes
from balancer.data.score_memory import memory_names
from balancer.data.sharded.agreement import check_run, check_spec
from balancer.data.sharded.files import ENTITY, StoreFiles, key_file, number_file
from balancer.data.sharded.fingerprints import fingerprint
from balancer.data.sharded.frames import rows_frame
from balancer.data.spec import Spec
from balancer.data.split import Split
from balancer.data.splitting import SplitRows, field_notes, split_rows, table_notes
from balancer.data.store import TransactionStore
from balancer.data.table_fields import filled_numbers, learn_schema, with_codes
from balancer.errors import InputError, MissingClassError

_COPIED = 1 << 20
"""Rows that are copied at a time."""


def shard_dataset(store: StoreFiles, number: int, schema: Schema | None) -> Dataset:
    """Read a shard to memory; see :meth:`balancer.data.sharded.folder.StoreFolder.shard`."""
    first, last = store.range(number)
    rows = _Rows.read(store, first, last)
    known, info = schema or store.schema, store.info
    label, time = rows.label, rows.time
    if schema is None:
        split = store.column("split", first, last) if info.has_split else np.full(last - first, Split.GAP, np.int8)
        label = rows.learned
    else:
        check_run(store, schema)
        split = np.full(last - first, Split.TEST, np.int8)
        time = time if schema.spec.time is not None else time + AFTER_TRAINING
    codes = rows.entity
    names = store.names(ENTITY, int(codes[0]), int(codes[-1]) + 1).to_list() if store.spec.entity is not None and len(codes) else []
    return Dataset(
        TransactionStore(
            values=rows.values(known),
            num_numeric=len(known.numeric_fields),
            time=time,
            entity=(codes - (codes[0] if len(codes) else 0)).astype(np.int32),
            start=rows.start - first,
            label=label,
            amount=rows.amount,
            row=rows.row,
        ),
        known,
        split,
        store.ids(number) if info.has_ids else pl.Series("row", rows.row),
        names,
        info.fingerprint,
        dict(info.dropped),
        [*info.notes],
        store.path,
        [],
        partial(rows_frame, store, first, last),
    )


def whole_dataset(
    store: StoreFiles,
    spec: Spec,
    *,
    schema: Schema | None = None,
    hash_buckets: int = 0,
    like: Schema | None = None,
    codes: Schema | None = None,
    need_label: bool = True,
    score_fields: bool = False,
    left_out: Sequence[str] | None = None,
) -> Dataset:
    """Read all rows of a store as :func:`balancer.data.dataset.load_dataset` reads a table.

    Columns are memory maps. The values are copied to memory only where they must differ from those on disk:
    with score fields, which are written into them, or with other codes.

    Raises:
        InputError: The roles differ from those of the store, or the rows can't be split.
    """
    info, known = store.info, schema or like
    if schema is None:
        check_spec(store, spec)
    else:
        check_run(store, schema)
    rows = _Rows.mapped(store)
    notes, cautions = table_notes(info.notes, info.cautions, left_out) if schema is None else ([*info.notes], [])
    label, time = rows.label, rows.time
    if schema is None:
        split, label, said = _parts(store, rows, spec, need_label=need_label)
        notes += said[0]
        cautions = [] if like is not None else cautions + said[1]
    else:
        split = np.full(store.rows, Split.TEST, np.int8)
        time = time if spec.time is not None else time + AFTER_TRAINING
    if known is None:
        known = _learned(store, rows, spec, split == Split.TRAIN, codes, hash_buckets)
        if score_fields:
            names = memory_names(spec.entity is not None, timed=spec.time is not None)
            known = replace(known, numeric_fields=(*names, *known.numeric_fields))
    values = rows.values(known)
    if known.without_score_fields().numeric_fields == store.schema.numeric_fields and not rows.same_values(known.without_score_fields()):
        notes.append("codes or missing numbers differ from those of the store: its values are copied to memory")
    notes += field_notes(known, info.columns, info.opening, info.absent, left_out)
    ids = pl.concat([store.ids(number) for number in range(store.shards)]) if info.has_ids else pl.Series("row", rows.row)
    return Dataset(
        TransactionStore(
            values=values,
            num_numeric=len(known.numeric_fields),
            time=time,
            entity=rows.entity,
            start=rows.start,
            label=label,
            amount=rows.amount,
            row=rows.row,
        ),
        known,
        split,
        ids,
        [*store.entities],
        fingerprint(spec, [store.hashes]),
        dict(info.dropped),
        notes,
        store.path,
        cautions,
        partial(rows_frame, store, 0, store.rows),
    )


@dataclass(frozen=True)
class _Rows:
    """The columns of some rows of a store."""

    store: StoreFiles
    stored: NDArray[np.float32]
    """(n, C) values under the schema of the store."""
    time: NDArray[np.float64]
    entity: NDArray[np.int32]
    start: NDArray[np.int64]
    label: NDArray[np.int16]
    """(n,) class as the table says."""
    learned: NDArray[np.int16]
    """(n,) class to learn; -1 also for frauds that were reported too late."""
    amount: NDArray[np.float64]
    row: NDArray[np.int64]
    reports: NDArray[np.float64] | None
    numbers: Mapping[str, NDArray[np.float32]]
    """(n,) per numeric column; NaN where a value is missing."""
    keys: Mapping[str, NDArray[np.int32]]
    """(n,) codes per categorical and context column; -1 is null."""

    @classmethod
    def read(cls, store: StoreFiles, first: int, last: int) -> _Rows:
        """Rows from `first` to before `last`, in memory."""
        return cls._of(store, lambda name: store.column(name, first, last), last - first)

    @classmethod
    def mapped(cls, store: StoreFiles) -> _Rows:
        """All rows, in memory maps. Only the values are read-only: other code makes tensors of the rest."""
        return cls._of(store, lambda name: store.mapped(name, writable=name != "values"), store.rows)

    @classmethod
    def _of(cls, store: StoreFiles, column: Callable[[str], NDArray[Any]], rows: int) -> _Rows:
        spec, dated = store.spec, store.spec.label_date is not None
        return cls(
            store,
            stored=column("values"),
            time=column("time"),
            entity=column("entity"),
            start=column("start"),
            label=column("label"),
            learned=column("learned") if dated and store.info.has_split else column("label"),
            amount=column("amount") if spec.amount is not None else np.zeros(rows),
            row=column("row"),
            reports=column("reports") if dated else None,
            numbers={name: column(number_file(place)) for place, name in enumerate(spec.numeric)},
            keys={name: column(key_file(place)) for place, name in enumerate(store.info.keys)},
        )

    def same_values(self, schema: Schema) -> bool:
        """Whether the values on disk are those of a schema without score fields."""
        own, names = self.store.schema, (schema.numeric_fields, schema.categorical_fields)
        return (
            names == (own.numeric_fields, own.categorical_fields)
            and schema.encodes_like(own)
            and all(schema.fill.get(name) == own.fill.get(name) for name in self._filled())
        )

    def values(self, schema: Schema) -> NDArray[np.float32]:
        """(n, C) values under a schema; those on disk where they are the same.

        Raises:
            InputError: The schema has a field that the store lacks.
        """
        number = len(schema.score_fields)
        if not number and self.same_values(schema):
            return self.stored
        size, own = len(self.time), self.store.schema
        values = np.zeros((size, len(schema.numeric_fields) + len(schema.categorical_fields)), np.float32)
        if self.same_values(schema.without_score_fields()):
            for first in range(0, size, _COPIED):
                values[first : first + _COPIED, number:] = self.stored[first : first + _COPIED]
            return values
        place = {name: column for column, name in enumerate(own.numeric_fields) if name not in own.own_fields.values()}
        numbers = filled_numbers(schema, self.numbers)
        for column, name in enumerate(schema.numeric_fields[number:], start=number):
            if name in numbers:
                values[:, column] = numbers[name]
            elif name in place:
                values[:, column] = self.stored[:, place[name]]
            else:
                raise InputError(f"this version of balancer has no field {name!r}: use the version that wrote the run")
        for column, (name, key) in enumerate(schema.categorical_columns.items(), start=len(schema.numeric_fields)):
            values[:, column] = self._coded(key, schema.vocabularies[name], schema.hash_buckets)
        return values

    def _coded(self, column: str, vocabulary: list[str], hash_buckets: int) -> NDArray[np.float32]:
        names = self.store.names(key_file(self.store.info.keys.index(column)))
        # The last entry is that of null, whose code in the store is -1.
        codes = np.append(field_codes(names, vocabulary, hash_buckets), 0).astype(np.float32)
        return codes[self.keys[column]]

    def _filled(self) -> tuple[str, ...]:
        """Fields whose missing numbers were replaced in the values on disk."""
        own = self.store.schema
        return tuple(name for column, name in own.own_fields.items() if column in self.store.info.absent and name not in own.missing)


def _parts(
    store: StoreFiles, rows: _Rows, spec: Spec, *, need_label: bool
) -> tuple[NDArray[np.int8], NDArray[np.int16], tuple[list[str], list[str]]]:
    """Split the rows: their parts, the labels to learn, and notes and cautions."""
    classes = store.schema.classes
    if need_label and spec.label is None and spec.label_date is None:
        raise InputError("no label column is named: name it with --label (or `label` in the spec file)")
    if need_label and len(classes) < 2:
        held = f"only the class {classes[0]!r}" if classes else "no value"
        raise MissingClassError(
            f"column {spec.label!r} of {store.path} has {held}: training needs rows of at least two classes; prepare a table that has them"
        )
    reports = None if spec.time is None else rows.reports
    found = SplitRows(rows.time, rows.label, rows.row, rows.entity, store.entities, reports)
    parts = split_rows(found, spec, classes, assumed=assumed(spec, store.info.found), need_label=need_label)
    return parts.split, parts.label, (parts.notes, parts.cautions)


def _learned(store: StoreFiles, rows: _Rows, spec: Spec, train: NDArray[np.bool_], codes: Schema | None, hash_buckets: int) -> Schema:
    """What the training rows teach, as `load_dataset` learns it from a table."""
    info = store.info
    learned = learn_schema(spec, store.schema.classes, rows.numbers, train, keys=info.keys, has_amount=spec.amount is not None)
    counts = {name: _counts(store, rows, name, train) for name in spec.categorical}
    learned = with_codes(learned, counts, codes, hash_buckets)
    return replace(learned, joined=store.schema.joined, time=info.found)


def _counts(store: StoreFiles, rows: _Rows, column: str, train: NDArray[np.bool_]) -> pl.DataFrame:
    """Training rows of each value of a categorical column that has one."""
    names = store.names(key_file(store.info.keys.index(column)))
    return counted_codes(rows.keys[column], train, names.alias(column))


def counted_codes(codes: NDArray[np.int32], train: NDArray[np.bool_], names: pl.Series) -> pl.DataFrame:
    """Count the training rows of each value that has one, as :func:`balancer.data.schema.count_values` does.

    Args:
        codes: (N,) code of each row; -1 is null.
        train: (N,) whether a row is a training row.
        names: Names by code.
    """
    chosen = codes[train]
    counts = np.bincount(chosen[chosen >= 0], minlength=len(names))
    return pl.DataFrame({names.name: names, "n": counts}).filter(pl.col("n") > 0)
