"""The times of the rows of a table, and when the labels of its frauds became known.

What is special: a table without a time has its rows in order; their times are their numbers. When scoring,
the rows of such a table come after all rows of the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checks import RowCheck, accept_times
from balancer.data.spec import DAY, Spec
from balancer.errors import InputError
from balancer.names import counted
from balancer.tables.clock import parse_joined
from balancer.tables.times import UNIT_NAMES, TimeForm, TimesResult, parse_time, parse_times, reads

AFTER_TRAINING = 2.0**40
"""Number of the first row to score of a table without a time."""
NO_TIME = (
    "the table has no time (--time none): its rows are taken in their order, fields that need a time are left out, and labels count as "
    "known at once"
)


@dataclass(frozen=True, eq=False)
class RowTimes:
    """Times of N rows."""

    seconds: NDArray[np.float64]
    """(N,) seconds, or row numbers where the table has no time."""
    found: TimeForm
    """How they were read."""
    notes: tuple[str, ...] = ()


def read_times(
    frame: pl.DataFrame, spec: Spec, columns: Sequence[str], check: RowCheck, *, usual: TimeForm | None = None, later: bool = False
) -> RowTimes:
    """Read the times of a table.

    Args:
        frame: The table.
        spec: Roles of its columns.
        columns: The columns that make the time: one, or a date and a time of day; none without a time.
        check: Collects the rows without a time.
        usual: How the training table was read, where it has been read before.
        later: Whether rows without a time come after those of training.

    Raises:
        InputError: As :func:`balancer.data.checks.check_time`.
    """
    if spec.time is None:
        return RowTimes(np.arange(frame.height, dtype=np.float64) + (AFTER_TRAINING if later else 0.0), TimeForm(), (NO_TIME,))
    form, unit = (spec.time_format, spec.time_unit) if usual is None else (None, None)
    result = _parsed([frame[name] for name in columns], spec.time, form, unit, usual)
    values = frame[columns[0]] if len(columns) == 1 else frame[columns[0]].alias(spec.time)
    seconds = accept_times(result, values, check)
    kept = seconds[check.keep]
    notes = [] if usual is not None else [note for note in (result.note, short_span(spec, result.found, kept)) if note]
    return RowTimes(seconds, result.found, tuple(notes))


def time_of(raw: Mapping[str, Any], spec: Spec, columns: Sequence[str], usual: TimeForm) -> float:
    """Read the time of one transaction as `read_times` reads that of a table with this one row.

    Raises:
        InputError: If it can't be read, or if the spec has no time.
    """
    assert spec.time is not None, "the service refuses such a run"
    if len(columns) == 1:
        return parse_time(raw[columns[0]], usual=usual, name=spec.time)
    try:
        series = [pl.Series(name, [raw[name]]) for name in columns]
    except (OverflowError, TypeError, pl.exceptions.PolarsError):
        raise InputError("is not a time: give a date and a time of day") from None
    result = _parsed(series, spec.time, None, None, usual)
    if result.missing[0] or result.bad[0]:
        raise InputError(f"{result.why or 'is missing'}: give a date and a time of day")
    return float(result.seconds[0])


def _parsed(columns: Sequence[pl.Series], name: str, form: str | None, unit: str | None, usual: TimeForm | None) -> TimesResult:
    if len(columns) == 1:
        return parse_times(columns[0], form=form, unit=unit, usual=usual)
    if len(columns) > 2:
        raise InputError(f"--time {name} joins {len(columns)} columns: give one column, or date+time")
    return parse_joined(columns[0], columns[1], form=form, usual=usual)


def read_reports(values: pl.Series, spec: Spec, found: TimeForm, check: RowCheck) -> NDArray[np.float64]:
    """Read the dates on which frauds were reported.

    Args:
        values: (N,) the column `label_date`; null where nothing was reported.
        spec: Roles of the columns.
        found: How the times of the rows were read, which decides between day and month.
        check: Collects rows with another value.

    Returns:
        (N,) seconds; NaN where nothing was reported.

    Raises:
        InputError: If the column can't be read, or as `RowCheck.reject`.
    """
    hints = [form for form in (spec.time_format, found.form) if form]
    hints += [form.replace("T", " ").split(" ")[0] for form in hints]
    text = values.cast(pl.String) if values.dtype in (pl.Categorical, pl.Enum) else values
    hint = next((form for form in hints if text.dtype == pl.String and reads(text, form)), None)
    result = parse_times(text, usual=None if hint is None else TimeForm(form=hint), step=False)
    check.reject(result.bad, values, result.why or "is not a date", "give a date, or leave it empty where there was no report")
    return np.where(result.missing | result.bad, np.nan, result.seconds)


def dated_labels(reports: NDArray[np.float64], seconds: NDArray[np.float64] | None, delay: float) -> NDArray[np.int16]:
    """Labels of a table that has only the dates of reports.

    Args:
        reports: (N,) seconds; NaN where nothing was reported.
        seconds: (N,) times of the rows; None without a time.
        delay: Seconds after which a row without a report counts as legitimate.

    Returns:
        (N,) 1 where a report is present; else 0, or -1 for rows younger than the delay at the last time of
        the table.
    """
    label = (~np.isnan(reports)).astype(np.int16)
    if seconds is not None and len(seconds):
        label[(label == 0) & (seconds > seconds.max() - delay)] = -1
    return label


def label_times(
    seconds: NDArray[np.float64], reports: NDArray[np.float64] | None, label: NDArray[np.int16], delay: float
) -> NDArray[np.float64] | None:
    """Times of the rows as context fields see their labels, so that a late report is not known early.

    A label is known a delay after the time of its row. A fraud that was reported later than that counts as a
    row of a later time. None where no report is late.
    """
    if reports is None:
        return None
    late = (label > 0) & (reports - delay > seconds)
    return np.where(late, reports - delay, seconds) if late.any() else None


def assumed(spec: Spec, found: TimeForm) -> str | None:
    """What the numbers of the time column are taken as, for messages; None where they are no numbers."""
    return None if found.unit is None else f"{spec.time!r} are taken as {UNIT_NAMES[found.unit]}"


def short_span(spec: Spec, found: TimeForm, seconds: NDArray[np.float64]) -> str | None:
    """A note where numbers that were taken as seconds span less than a day."""
    span = float(seconds.max() - seconds.min()) if len(seconds) else 0.0
    if found.unit != "s" or spec.time_unit is not None or not 0 < span < DAY:
        return None
    return f"numbers in {spec.time} are read as seconds, so the table spans {span / 3600:.3g} hours; --time-unit h or d says otherwise"


def unlearned(
    label: NDArray[np.int16], train: NDArray[np.bool_], seconds: NDArray[np.float64], reports: NDArray[np.float64]
) -> tuple[NDArray[np.int16], str | None]:
    """Take the label from training rows whose fraud was reported after the last training row.

    Args:
        label: (N,) class index.
        train: (N,) whether a row is a training row.
        seconds: (N,) times of the rows.
        reports: (N,) seconds; NaN where nothing was reported.

    Returns:
        (N,) labels, and a note if there are such rows.
    """
    if not train.any():
        return label, None
    late = train & (label > 0) & (reports > seconds[train].max())
    if not late.any():
        return label, None
    note = f"{counted(int(late.sum()), 'fraud')} of the training period, reported after its end: unlabelled in training"
    return np.where(late, np.int16(-1), label), note


def without_delay(spec: Spec) -> Spec:
    """The spec with the delay that counts: none, where the table has no time."""
    return spec if spec.time is not None else replace(spec, label_delay=0.0)
