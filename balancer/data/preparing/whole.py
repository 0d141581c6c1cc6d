"""Read a column whole, where a part of its values does not show what they mean; and find repeated ids.

What is special: text with other marks than a decimal point, dates with the day first and numbers that are
times need this. Such a column takes up to about 100 bytes a row while it is read, 8 when it is.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checks import RowCheck, accept_times, check_number
from balancer.data.preparing.plan import REPORTS, TIME, Plan, Whole
from balancer.data.reading import collect
from balancer.data.row_times import parsed_times, read_reports
from balancer.errors import InputError
from balancer.tables.kinds import WORK
from balancer.tables.source import opened
from balancer.tables.times import TimeForm

_FIRST = 2_000
"""Rows whose times say which format to expect."""


@dataclass
class _Recorder(RowCheck):
    """Collects the bad rows of one column with their reasons."""

    reasons: list[str] = field(default_factory=list)
    marks: NDArray[np.int8] = field(init=False)
    """(height,) number of the reason of a bad row, from 1; 0 for others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.marks = np.zeros(self.height, np.int8)

    def reject(self, bad: NDArray[np.bool_], values: pl.Series, what: str, remedy: str) -> None:
        """See `RowCheck`."""
        new = bad & self.keep
        super().reject(bad, values, what, remedy)
        if new.any():
            self.reasons.append(f"{values.name}: {what}")
            self.marks[new] = len(self.reasons)


def read_whole(folder: Path, plan: Plan, name: str) -> Plan:
    """Read a column whole and write its values and bad rows for the tasks that check parts of the input.

    Args:
        folder: The folder of the store.
        plan: The plan.
        name: A numeric column or the amount, `TIME`, or `REPORTS`.

    Returns:
        The plan with the column.

    Raises:
        InputError: As the checks of a table in memory raise.
    """
    spec = plan.spec
    check = _Recorder(plan.height, plan.bad_rows, table=opened(Path(plan.source), spec.read))
    place = f"{max((int(held.file) for held in plan.whole.values()), default=-1) + 1:03d}"
    found, note = plan.found, plan.time_note
    columns = [name]
    if name in (TIME, REPORTS):
        columns = [*plan.made_of[(spec.time if name == TIME else spec.label_date) or ""]]
    frame = collect(plan.frame(folder).select(columns), plan.source)
    if name == TIME:
        assert spec.time is not None
        result = parsed_times([frame[each] for each in columns], spec.time, spec.time_format, spec.time_unit, None)
        shown = frame[columns[0]] if len(columns) == 1 else frame[columns[0]].alias(spec.time)
        values, found, note = accept_times(result, shown, check), result.found, result.note
    elif name == REPORTS:
        values = read_reports(frame[columns[0]], spec, plan.found, check)
    else:
        values = check_number(frame[name], check, optional=name != spec.amount, read=plan.read)
    where = folder / WORK / "whole"
    where.mkdir(exist_ok=True)
    np.save(where / f"{place}.npy", values)
    np.save(where / f"{place}_bad.npy", check.marks)
    held = Whole(place, tuple(check.reasons), tuple(check.notes))
    form = None if name == TIME else plan.time_form
    return replace(plan, whole={**plan.whole, name: held}, found=found, time_note=note, time_form=form)


def expected_times(folder: Path, plan: Plan) -> Plan:
    """Find out how times are read, from the type of the column or from its first rows.

    Times that are datetimes, and text with the year first that one format reads, are read in parts of the
    input; any other column is read whole.
    """
    spec = plan.spec
    if spec.time is None:
        return plan
    columns = plan.made_of[spec.time]
    dtype = plan.frame(folder).select(columns).collect_schema().dtypes()[0]
    if len(columns) == 1 and dtype in (pl.Datetime, pl.Date, pl.Duration):
        return plan
    if len(columns) == 1 and dtype in (pl.String, pl.Categorical, pl.Enum) and spec.time_unit is None:
        form = _year_first(collect(plan.frame(folder).select(columns).head(_FIRST), plan.source).to_series(), spec.time_format)
        if form is not None:
            return replace(plan, time_form=form, found=TimeForm(form))
    return read_whole(folder, plan, TIME)


def _year_first(values: pl.Series, given: str | None) -> str | None:
    """The format of times with the year first, if one reads all of them."""
    result = None
    with suppress(InputError):  # the column is read whole, which says what is wrong
        result = parsed_times([values], values.name, given, None, None)
    if result is None:
        return None
    form = result.found.form
    clear = form is not None and form.startswith("%Y") and result.found == TimeForm(form) and result.note is None
    return form if clear and not result.bad.any() and not result.missing.any() else None


def repeated_ids(folder: Path, plan: Plan) -> NDArray[np.int64]:
    """Rows that repeat the id of an earlier row, sorted.

    Only hashes of the ids are held, 16 bytes a row; rows with equal hashes are compared by their ids.
    """
    assert plan.spec.id is not None
    query = plan.frame(folder).select(plan.spec.id)
    hashes = np.empty(plan.height, np.uint64)
    for number in range(plan.chunks):
        first, last = plan.chunk(number)
        hashes[first:last] = collect(query.slice(first, last - first), plan.source).to_series().hash(0).to_numpy()
    ordered = np.sort(hashes)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if not len(twice):
        return np.zeros(0, np.int64)
    rows = np.flatnonzero(np.isin(hashes, twice))
    del hashes
    parts = []
    for number in range(plan.chunks):
        first, last = plan.chunk(number)
        inside = rows[(rows >= first) & (rows < last)] - first
        parts.append(collect(query.slice(first, last - first), plan.source).to_series().gather(inside.astype(np.uint32)))
    repeated: NDArray[np.int64] = rows[~pl.concat(parts).is_first_distinct().to_numpy()]
    return repeated
