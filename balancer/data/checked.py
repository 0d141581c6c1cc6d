"""Read one input, check its columns and convert them to arrays and to texts that can be compared.

What is special: a table and its past rows are converted one by one and joined afterwards, so the two may be
files of different kinds with columns of different types. Categories and keys are compared by their normal
form (`balancer.tables.values`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checks import BadRows, RowCheck, check_entity, check_number, check_unique
from balancer.data.labels import check_label, find_classes, read_labels
from balancer.data.reading import Source, column_names, read_columns, source_name
from balancer.data.row_times import dated_labels, read_reports, read_times, reported_early
from balancer.data.schema import Schema
from balancer.data.spec import Spec, nearest
from balancer.errors import InputError
from balancer.tables.joined import parts
from balancer.tables.keys import join_columns
from balancer.tables.options import NORMAL
from balancer.tables.source import names_its_table, opened
from balancer.tables.times import TimeForm
from balancer.tables.values import form_of, normal_form

UNKNOWN_CLASSES = ("legitimate", "fraud")
"""Class names of a table without a label column."""


@dataclass(frozen=True)
class CheckedTable:
    """Checked columns of one input in input order, without bad rows."""

    row: NDArray[np.int64]
    """(N,) position in the input, from 0; -1 for past rows."""
    time: NDArray[np.float64]
    amount: NDArray[np.float64] | None
    label: NDArray[np.int16]
    numeric: dict[str, NDArray[np.float32]]
    """(N,) per numeric column; NaN where a value is missing."""
    reports: NDArray[np.float64] | None
    """(N,) when a fraud was reported, in seconds; NaN where none was. None without such a column."""
    found: TimeForm
    """How the times were read."""
    texts: dict[str, pl.Series]
    """(N,) texts of the entity and of each categorical and context column, by its (joined) name."""
    ids: pl.Series | None
    """(N,) the id column as it is, or None."""
    joined: dict[str, tuple[str, ...]]
    """Columns of each joined name."""
    digests: tuple[NDArray[np.uint64], ...]
    """Hashes of the rows, per input."""
    dropped: dict[str, int]
    notes: tuple[str, ...] = ()
    """What was found in the table, for the user."""
    cautions: tuple[str, ...] = ()
    """What is probably wrong in the table."""

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.row)

    def fingerprint(self, spec: Spec) -> str:
        """Hex digest of the roles and of the content of the used columns."""
        digest = hashlib.sha256(json.dumps(spec.to_dict(), sort_keys=True).encode())
        for hashes in self.digests:
            digest.update(hashes.tobytes())
        return digest.hexdigest()


@names_its_table
def read_table(
    source: Source,
    spec: Spec,
    *,
    schema: Schema | None = None,
    classes: tuple[str, ...] | None = None,
    form: str = NORMAL,
    bad_rows: BadRows = "error",
    where: str = "row",
    need_label: bool = True,
) -> tuple[CheckedTable, tuple[str, ...]]:
    """Read and check the used columns.

    Args:
        source: The table.
        spec: Roles of its columns.
        schema: Schema of training, if there is one: it says which columns make a joined key.
        classes: Class names, when scoring; the label and id columns may then be missing. None: found here.
        form: How categories and keys are converted to text.
        bad_rows: Whether bad rows raise, or are left out and counted.
        where: The word for a row in messages.
        need_label: Whether a label column is needed where `classes` is None.

    Returns:
        The table, and the names of the classes.

    Raises:
        InputError: If a column is missing or can't be used, or a row is bad.
    """
    scoring = classes is not None
    if spec.label is None and (spec.label_date is not None or not need_label):
        classes = classes or UNKNOWN_CLASSES
    elif not scoring and spec.label is None:
        raise InputError("no label column is named: name it with --label (or `label` in the spec file)")
    columns, types = spec.columns(), column_names(source, spec.read)
    if scoring:
        columns = [name for name in columns if name in types or name not in (spec.label, spec.label_date, spec.id)]
    made_of = {name: parts(name, types) if schema is None else schema.parts(name) for name in columns}
    for name, each in made_of.items():
        missing = next((part for part in each if part not in types), None)
        if missing is not None:
            role = spec.role(name) if missing == name else f"{spec.role(name)}, a part of {name!r}"
            raise InputError(f"{source_name(source)} has no column {missing!r} (role {role}): {nearest(missing, types)}")
    frame = read_columns(source, list(dict.fromkeys(part for each in made_of.values() for part in each)), spec.read)
    table_file = None if isinstance(source, pl.DataFrame) else opened(source, spec.read)
    check = RowCheck(frame.height, bad_rows, where, table_file, roles=not scoring)
    usual = None if schema is None else schema.usual_time
    times = read_times(frame, spec, made_of.get(spec.time or "", ()), check, usual=usual, later=scoring)
    time, notes = times.seconds, times.notes
    keys = dict.fromkeys((*([] if spec.entity is None else [spec.entity]), *spec.categorical, *spec.context))
    texts = {name: join_columns([form_of(frame[part], form) for part in made_of[name]], name) for name in keys}
    if spec.entity is not None:
        entity, key = [frame[part] for part in made_of[spec.entity]], texts[spec.entity]
        alone = len(entity) == 1
        check_entity([key] if alone and form == NORMAL else [normal_form(part) for part in entity], entity[0] if alone else key, check)
    if spec.id in columns:
        check_unique(frame[spec.id], check)
    read = opened(source, spec.read).read
    amount = None if spec.amount is None else check_number(frame[spec.amount], check, read=read)
    numeric = {name: check_number(frame[name], check, optional=True, read=read).astype(np.float32) for name in spec.numeric}
    label = np.full(frame.height, -1, dtype=np.int16)
    if spec.label in columns:
        labels = read_labels(frame[spec.label], unlabelled=spec.unlabelled, negative=spec.negative, classes=classes)
        notes += () if scoring else labels.notes
        classes = find_classes(labels.text, spec.negative) if classes is None else classes
        label = check_label(labels.text, classes, check)
    notes += tuple(check.notes)
    reports = read_reports(frame[spec.label_date], spec, times.found, check) if spec.label_date in columns else None
    cautions = () if scoring else times.cautions
    if reports is not None and spec.time is not None and not scoring:
        early = reported_early(frame[spec.label_date or ""], reports, time, check)
        cautions += (early,) if early else ()
    keep = check.keep
    if not keep.any():
        raise InputError(f"every row is bad and was dropped ({check.dropped}): check the roles of the columns")
    row, ids = np.arange(frame.height, dtype=np.int64), frame[spec.id] if spec.id in columns else None
    if not keep.all():
        chosen = pl.Series(keep)
        row, time, label, frame = row[keep], time[keep], label[keep], frame.filter(chosen)
        amount = None if amount is None else amount[keep]
        numeric = {name: values[keep] for name, values in numeric.items()}
        texts = {name: values.filter(chosen) for name, values in texts.items()}
        reports = None if reports is None else reports[keep]
        ids = None if ids is None else ids.filter(chosen)
    if reports is not None and spec.label is None:
        label = dated_labels(reports, None if spec.time is None else time, spec.label_delay)
    joined = {name: each for name, each in made_of.items() if len(each) > 1}
    hashes = frame.hash_rows(seed=0).to_numpy()
    table = CheckedTable(
        row, time, amount, label, numeric, reports, times.found, texts, ids, joined, (hashes,), check.dropped, notes, cautions
    )
    return table, classes or ()


def with_past(table: CheckedTable, past: CheckedTable, *, timed: bool = True) -> CheckedTable:
    """Put past rows before the rows of a table; they have row number -1.

    Without times (`timed` False) the past rows come directly before the first row of the table.
    """
    amount = None if past.amount is None or table.amount is None else np.concatenate((past.amount, table.amount))
    ids = None if table.ids is None else pl.concat([_like(past.ids, table.ids, past.size), table.ids])
    before = past.time if timed or not past.size else past.time - past.time[-1] + table.time[0] - 1
    reports = None
    if table.reports is not None or past.reports is not None:
        reports = np.concatenate([np.full(each.size, np.nan) if each.reports is None else each.reports for each in (past, table)])
    return replace(
        table,
        row=np.concatenate((np.full(past.size, -1, np.int64), table.row)),
        time=np.concatenate((before, table.time)),
        amount=amount,
        label=np.concatenate((past.label, table.label)),
        numeric={name: np.concatenate((past.numeric[name], table.numeric[name])) for name in table.numeric},
        reports=reports,
        texts={name: pl.concat([past.texts[name], table.texts[name]]) for name in table.texts},
        ids=ids,
        digests=(*past.digests, *table.digests),
    )


def _like(ids: pl.Series | None, wanted: pl.Series, size: int) -> pl.Series:
    """The ids of past rows (size,) with the name and dtype of those of the table; null where that fails."""
    nothing = pl.Series(wanted.name, [None] * size, dtype=wanted.dtype)
    if ids is None:
        return nothing
    try:
        return ids.cast(wanted.dtype, strict=False).alias(wanted.name)
    except pl.exceptions.PolarsError:
        return nothing
