"""Turn a table and its roles into a `Dataset`: checked, split, with causal fields, sorted by entity and time.

What is special: at most two copies of the table are in memory. The used columns are read once and converted
to arrays one at a time, and every field is written directly into its column of the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checked import CheckedTable, read_table, with_past
from balancer.data.checks import BadRows
from balancer.data.loaded import Dataset
from balancer.data.overlap import without_overlap
from balancer.data.past import Events
from balancer.data.past_cautions import past_cautions
from balancer.data.reading import Source, column_names
from balancer.data.row_times import assumed, label_times
from balancer.data.schema import Schema, check_buckets, count_values, distinct, encode, field_codes
from balancer.data.score_memory import memory_names
from balancer.data.sharded.files import StoreFiles
from balancer.data.sharded.loading import whole_dataset
from balancer.data.spec import Spec
from balancer.data.split import Split
from balancer.data.splitting import SplitRows, field_notes, split_rows, table_notes
from balancer.data.store import TransactionStore
from balancer.data.table_fields import field_values, fields_of_contexts, learn_schema, with_codes
from balancer.data.timeline import first_of_key
from balancer.deprecation import renamed_keyword
from balancer.errors import InputError
from balancer.tables.kinds import is_store
from balancer.tables.options import NORMAL, PLAIN
from balancer.tables.source import opened

__all__ = ["Dataset", "load_dataset"]


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
        path: Parquet file, CSV file, folder of Parquet, Delta table, store of `balancer prepare`, or a frame.
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
            remedy. A store refuses other roles than it was prepared with, and earlier rows.
    """
    check_buckets(hash_buckets)
    if is_store(path):
        if past is not None or earlier:
            what = "earlier rows (--past) can't be added to it: prepare them and the rows together"
            raise InputError(
                f"{path} is a store: {what if past is not None else 'a run of an earlier version of balancer needs the table itself'}"
            )
        return whole_dataset(
            StoreFiles.open(str(path)),
            spec,
            schema=schema,
            hash_buckets=hash_buckets,
            like=like,
            codes=codes,
            need_label=need_label,
            score_fields=score_fields,
            left_out=left_out,
        )
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
    notes, cautions, learned_label = (
        (*table_notes(table.notes, table.cautions, left_out), label) if schema is None else ([*table.notes], [], label)
    )
    if past is not None and overlap is not None:
        notes += [f"--past: {note}" for note in (*opened(past, spec.read).notes, *past_notes)] + ([overlap.note] if overlap.note else [])
        cautions += past_warnings + ([overlap.caution] if overlap.caution else [])
    if schema is None:
        parts = split_rows(
            SplitRows(time, label, row, code, entities, reports), spec, classes, assumed=assumed(spec, data.found), need_label=need_label
        )
        split, learned_label = parts.split, parts.label
        notes += parts.notes
        # Those of a run were said when it was trained, and name its flags.
        cautions = [] if like is not None else cautions + parts.cautions
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
        learned = learn_schema(spec, classes, numeric, train, keys=tuple(keys), has_amount=events.amount is not None)
        counts = {name: count_values(texts[name], train) for name in spec.categorical}
        learned = with_codes(learned, counts, codes, hash_buckets, earlier=earlier)
        known = replace(learned, joined=joined, time=found)
        if score_fields:
            names = memory_names(spec.entity is not None, timed=spec.time is not None)
            known = replace(known, numeric_fields=(*names, *known.numeric_fields))
    coded = {
        name: field_codes(texts[column], known.vocabularies[name], known.hash_buckets).astype(np.float32)
        for name, column in known.categorical_columns.items()
    }
    del texts
    contexts = fields_of_contexts(spec, events, label, label_times(time, reports, label, spec.label_delay), known.numeric_fields)
    values = field_values(known, events, contexts, coded, numeric)
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
    absent = [column for column in known.own_fields if np.isnan(numeric[column]).any()]
    notes += field_notes(known, column_names(path, spec.read), opened(path, spec.read).notes, absent, left_out)
    return Dataset(store, known, split, ids, entities, fingerprint, dropped, notes, path, cautions)


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
