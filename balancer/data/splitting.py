"""Split the rows of a table, check the parts, and say what was found in the table.

What is special: nothing here depends on the order of the rows, so a table in memory and a store on disk get
the same parts, labels and notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from balancer.data.label_checks import check_splits, label_cautions, split_notes
from balancer.data.row_times import FOUND_NO_TIME, NO_TIME, unlearned
from balancer.data.schema import Schema
from balancer.data.spec import Spec
from balancer.data.split import Split, split_at_random, split_by_time
from balancer.names import counted, listed

_NAMED = 5
"""Columns that a note names."""


@dataclass(frozen=True)
class SplitRows:
    """What decides the part of each of N rows."""

    time: NDArray[np.float64]
    """(N,) seconds, or row numbers where the table has no time."""
    label: NDArray[np.int16]
    """(N,) class; -1 is unlabelled."""
    row: NDArray[np.int64]
    """(N,) position in the input."""
    entity: NDArray[np.int32]
    """(N,) entity code."""
    entities: Sequence[str]
    """Names by code; empty where the table has no entity."""
    reports: NDArray[np.float64] | None = None
    """(N,) when a fraud was reported; NaN where none was. None without such a column or without times."""


class Parts(NamedTuple):
    """The parts of a table."""

    split: NDArray[np.int8]
    """(N,) `Split` of each row."""
    label: NDArray[np.int16]
    """(N,) class; -1 also where a fraud of the training rows was reported too late to learn from it."""
    notes: list[str]
    cautions: list[str]


def split_rows(rows: SplitRows, spec: Spec, classes: tuple[str, ...], *, assumed: str | None, need_label: bool) -> Parts:
    """Assign each row to a part, and check that every part can be used.

    Args:
        rows: The rows, in any order.
        spec: Roles of the columns, and the split.
        classes: Class names, the negative one first.
        assumed: What the numbers of the time column are taken as, for messages.
        need_label: False accepts a table without labels, or with too few to learn from.

    Raises:
        InputError: A part would lack rows or classes.
    """
    time, label, reports = rows.time, rows.label, rows.reports
    split = drawn_split(rows, spec, assumed=assumed, need_label=need_label)
    notes, cautions = split_notes(spec), []
    if reports is not None and spec.split.by == "time":
        label, note = unlearned(label, split == Split.TRAIN, time, reports)
        notes += [note] if note else []
    if need_label:
        check_splits(label, split, classes, spec)
        cautions = label_cautions(classes, label, split)
    return Parts(split, label, notes, cautions)


def drawn_split(rows: SplitRows, spec: Spec, *, assumed: str | None, need_label: bool) -> NDArray[np.int8]:
    """The (N,) part of each row, by time or at random; see `split_rows`."""
    if spec.split.by == "random":
        return split_at_random(rows.entity, rows.entities, rows.label, rows.row, spec.split)
    gap = spec.label_delay if spec.split.gap is None else spec.split.gap
    labelled = rows.label >= 0
    shared = labelled if need_label or labelled.any() else ~labelled
    return split_by_time(rows.time, shared, spec.split, 0.0 if spec.time is None else gap, assumed=assumed)


def table_notes(notes: Sequence[str], cautions: Sequence[str], left_out: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Notes and cautions about a table; that there is no time is said once."""
    said = left_out is not None and FOUND_NO_TIME in left_out
    return [note for note in notes if not (said and note == NO_TIME)], [*cautions]


def field_notes(
    schema: Schema, columns: Sequence[str], opening: Sequence[str], absent: Sequence[str], left_out: Sequence[str] | None
) -> list[str]:
    """Say which columns are left out or renamed, and what becomes of missing numbers.

    Args:
        schema: The fields.
        columns: All columns of the table.
        opening: Notes about how the table was opened.
        absent: Numeric columns with a missing number.
        left_out: Notes about the columns without a role; None: their names.
    """
    used = {part for name in schema.spec.columns() for part in (name, *schema.parts(name))}
    unused = [name for name in columns if name not in used]
    unnamed = [f"columns without a role are left out: {listed(unused, _NAMED)}"] if unused else []
    notes = [*opening, *(unnamed if left_out is None else left_out)]
    found = {name: column for column, name in schema.own_fields.items() if column in absent}
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
