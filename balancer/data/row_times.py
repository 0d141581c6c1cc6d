"""The times of the rows of a table, and when the labels of its frauds became known.

What is special: a table without a time has its rows in order; their times are their numbers. When scoring,
the rows of such a table come after all rows of the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.checks import RowCheck, accept_times
from balancer.data.spec import DAY, Spec
from balancer.errors import InputError
from balancer.names import counted, quoted
from balancer.tables.clock import parse_joined
from balancer.tables.time_text import shown_format
from balancer.tables.times import UNIT_NAMES, TimeForm, TimesResult, parse_time, parse_times, reads

AFTER_TRAINING = 2.0**40
"""Number of the first row to score of a table without a time."""
_ENOUGH = 50
_TAIL = 0.01
"""Share of the rows at each end that may be far from the others."""
_FAR = 10.0
"""How far, in spans of the other times."""
_YEAR = 365 * DAY
NO_TIME = (
    "the table has no time (--time none): its rows are taken in their order, fields that need a time are left out, and labels count as "
    "known at once"
)

FOUND_NO_TIME = (
    "no column looks like a time (--time names one), so the rows are taken in their order, fields that need a time are left out, and "
    "labels count as known at once; --split random draws the parts at random"
)


class Column(Protocol):
    """A column whose cells are only shown in messages."""

    @property
    def name(self) -> str:
        """Its name."""

    def __getitem__(self, row: int, /) -> Any:
        """The cell of a row."""


@dataclass(frozen=True, eq=False)
class RowTimes:
    """Times of N rows."""

    seconds: NDArray[np.float64]
    """(N,) seconds, or row numbers where the table has no time."""
    found: TimeForm
    """How they were read."""
    notes: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    """Warnings about times that are probably wrong."""


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
        return RowTimes(
            np.arange(frame.height, dtype=np.float64) + (AFTER_TRAINING if later else 0.0), TimeForm(), () if later else (NO_TIME,)
        )
    form, unit = (spec.time_format, spec.time_unit) if usual is None else (None, None)
    result = parsed_times([frame[name] for name in columns], spec.time, form, unit, usual)
    values = frame[columns[0]] if len(columns) == 1 else frame[columns[0]].alias(spec.time)
    seconds = accept_times(result, values, check)
    if usual is None:
        return examined_times(spec, result.found, result.note, values, seconds, check)
    note = _otherwise(spec.time, columns, frame, result.found, usual)
    return RowTimes(seconds, result.found, (note,) if note else ())


def examined_times(
    spec: Spec, found: TimeForm, note: str | None, values: Column, seconds: NDArray[np.float64], check: RowCheck
) -> RowTimes:
    """Examine the times of all rows of a table.

    Args:
        spec: Roles of its columns.
        found: How the times were read.
        note: What was found by reading them.
        values: (N,) the column.
        seconds: (N,) its times.
        check: The rows that are used.

    Raises:
        InputError: All rows have the same time.
    """
    kept = seconds[check.keep]
    notes = [each for each in (note, short_span(spec, found, kept)) if each]
    if len(kept) > 1 and spec.split.by == "time" and kept.min() == kept.max():
        raise InputError(
            f"column {spec.time!r}: all rows have the same time, so there are no earlier and later ones: name another column with --time, "
            "or draw the parts with --split random"
        )
    lonely = far_from_the_others(values, seconds, check)
    return RowTimes(seconds, found, tuple(notes), (lonely,) if lonely else ())


def far_from_the_others(values: Column, seconds: NDArray[np.float64], check: RowCheck) -> str | None:
    """A warning where a few times are far outside of all others, such as 9999-12-31 for "never".

    Args:
        values: (N,) the column.
        seconds: (N,) its times.
        check: The rows that are used.
    """
    known = seconds[check.keep]
    if len(known) < _ENOUGH:
        return None
    first, last = np.quantile(known, (_TAIL, 1 - _TAIL), method="nearest")
    reach = max(_FAR * float(last - first), _YEAR)
    far = check.keep & ((seconds < first - reach) | (seconds > last + reach))
    if not far.any() or last == first:
        return None
    row = int(np.argmax(far))
    number = int(far.sum())
    also = f" ({number:,} rows are)" if number > 1 else ""
    return (
        f"{check.place(values.name, row)}: {quoted(str(values[row]))} is far from the other times{also}: correct it, or leave it out of the "
        "table"
    )


def reported_early(values: Column, reports: NDArray[np.float64], seconds: NDArray[np.float64], check: RowCheck) -> str | None:
    """A warning where frauds were reported on a day before that of their row.

    Args:
        values: (N,) the column of the reports.
        reports: (N,) its times; NaN where nothing was reported.
        seconds: (N,) times of the rows.
        check: The rows that are used.
    """
    early = check.keep & (reports < np.floor(seconds / DAY) * DAY)
    if not early.any():
        return None
    return (
        f"{check.place(values.name, int(np.argmax(early)))}: {counted(int(early.sum()), 'report')} "
        f"{'is' if early.sum() == 1 else 'are'} dated before the row: check --label-date and --time"
    )


def _otherwise(name: str, columns: Sequence[str], frame: pl.DataFrame, found: TimeForm, usual: TimeForm) -> str | None:
    """A note where times are written in another way than in the table of training.

    Dates that begin with the year are the same in any way, and so are datetimes.
    """
    plain = found.form is None or found.form.startswith("%Y-")
    if found == usual or (plain and found.unit is None and found.clock == usual.clock) or (found.unit == "s" and not usual):
        return None

    def way(form: TimeForm, column: str) -> str:
        day = "datetimes" if form.form is None else shown_format(form.form, frame[column].cast(pl.String))
        day = UNIT_NAMES[form.unit] if form.unit is not None else day
        return f"{day} with {form.clock}" if form.clock is not None else day

    return f"times in {name} are read as {way(found, columns[0])}; in the table of training they were {way(usual, columns[0])}"


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
    result = parsed_times(series, spec.time, None, None, usual)
    if result.missing[0] or result.bad[0]:
        raise InputError(f"{result.why or 'is missing'}: give a date and a time of day")
    return float(result.seconds[0])


def parsed_times(columns: Sequence[pl.Series], name: str, form: str | None, unit: str | None, usual: TimeForm | None) -> TimesResult:
    """Read the times of N rows from one column (N,), or from a date and a time of day."""
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
    if _is_yes_or_no(text):
        raise InputError(
            f"column {values.name!r} (--label-date) holds no dates, but {quoted(str(text.drop_nulls()[0]))}: name the column with the date "
            "of the report, or this one with --label"
        )
    result = parse_times(text, usual=None if hint is None and check.roles else TimeForm(form=hint), step=False)
    check.reject(result.bad, values, result.why or "is not a date", "give a date, or leave it empty where there was no report")
    return np.where(result.missing | result.bad, np.nan, result.seconds)


def _is_yes_or_no(values: pl.Series) -> bool:
    """Whether a column (N,) holds only yes and no, in numbers or words."""
    names = values.drop_nulls().cast(pl.String, strict=False).str.strip_chars().str.to_lowercase().unique().head(5).to_list()
    names = [name for name in names if name]
    return bool(names) and set(names) <= {"0", "1", "0.0", "1.0", "true", "false", "yes", "no", "y", "n", "t", "f", "x"}


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
