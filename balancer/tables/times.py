"""Times as tables hold them: text in many formats, numbers in several units, digits that are dates.

What is special: the whole column decides. Formats are tried on a sample of distinct values, and those that
read most of it are tried on every row, so a column is ambiguous only if two formats read all of it as
different times. What was found (`TimeForm`) is kept with the trained run, so that a table of a few rows, or a
single transaction of the service, is read as the training table was.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.names import quoted
from balancer.tables.numbers import NULL_WORDS
from balancer.tables.time_text import formats_of, missing_directive, read_text, usual_format, with_parts_of_seconds
from balancer.tables.type_names import type_name

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0, "d": 86_400.0}
"""Seconds of each unit of a time that is a number."""
UNIT_NAMES = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "min": "minutes",
    "h": "hours",
    "d": "days",
    "excel": "Excel's days since 1900",
}
LATEST = 1e11
"""Latest time in seconds (the year 5138). A larger number is in a smaller unit."""
MOST_STEPS = 1e6
"""Largest number that the name of a column makes a number of minutes, hours or days."""
_EXCEL = (32_874.0, 54_789.0)
"""Excel's numbers of the first days of 1990 and 2050."""
_EXCEL_1970 = 25_569.0
_DIGITS = {
    8: ("%Y%m%d", "%d%m%Y", "%m%d%Y"),
    10: ("%Y%m%d%H",),
    12: ("%Y%m%d%H%M",),
    14: ("%Y%m%d%H%M%S",),
    17: ("%Y%m%d%H%M%S%3f",),
}
"""Formats of dates that are only digits, by their number of digits."""
_PLAUSIBLE = tuple(int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1e6) for year in (1900, 2100))
_NAMED_UNITS = ((r"steps?|(.*_)?(hours?|hrs?)", "h"), (r"(.*_)?days?(_?(no|num|number|index))?", "d"), (r"(.*_)?(minutes?|mins?)", "min"))
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_SAMPLE = 1000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TimeForm:
    """How a column holds its times: the format of text or of digits, or the unit of numbers."""

    form: str | None = None
    unit: str | None = None
    """One of `SECONDS`, or `excel`."""

    def __bool__(self) -> bool:
        return self.form is not None or self.unit is not None


@dataclass(frozen=True, eq=False)
class TimesResult:
    """The times of a column of N rows."""

    seconds: NDArray[np.float64]
    """(N,) seconds since 1970, UTC, or since the origin of the column; 0 where there is none."""
    missing: Mask
    """(N,) whether the row has no time."""
    bad: Mask
    """(N,) whether the row has something that is not read as a time."""
    why: str = ""
    """The predicate of a bad row in a message."""
    found: TimeForm = TimeForm()
    """How the times were read."""
    note: str | None = None
    """What was found rather than given, for the user."""


def parse_times(
    values: pl.Series, *, form: str | None = None, unit: str | None = None, usual: TimeForm | None = None, step: bool = True
) -> TimesResult:
    """Read a column of times.

    Args:
        values: (N,) datetimes, dates, durations, numbers, or text.
        form: The format that was given (`--time-format`); no other is tried for text and digits.
        unit: The unit that was given (`--time-unit`) for numbers.
        usual: How the training table was read. It is tried first.
        step: Whether the name of the column may say that small numbers are minutes, hours or days.

    Raises:
        InputError: If the column can't hold times, nothing reads it, or two formats read it differently.
    """
    name, dtype = values.name, values.dtype
    if dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        return _text(values.str.strip_chars(), form, unit, usual or TimeForm(), step)
    if dtype in (pl.Datetime, pl.Date):
        return _result(values.cast(pl.Datetime("us", getattr(dtype, "time_zone", None))).to_physical(), values)
    if dtype == pl.Duration:
        return _result(values.cast(pl.Duration("us")).to_physical(), values)
    if dtype == pl.Null:
        return _result(pl.repeat(None, len(values), dtype=pl.Int64, eager=True), values)
    if dtype == pl.Time:
        raise InputError(f"column {name!r} holds times of day without a date: join it with the column of the date, --time date+{name}")
    if not dtype.is_numeric():
        raise InputError(f"column {name!r} is {type_name(dtype)}, not a time: give a datetime, a date, a number of seconds or text")
    numbers = values if dtype.is_integer() else values.cast(pl.Float64)
    return _numbers(numbers, form, unit, usual or TimeForm(), step)


def parse_time(
    value: object, *, form: str | None = None, unit: str | None = None, usual: TimeForm | None = None, name: str = "time"
) -> float:
    """Read one time, with the bits that `parse_times` gives to a column of this value alone.

    Args:
        value: Text or a number, as JSON holds them; a datetime or date.
        form: As in `parse_times`.
        unit: As in `parse_times`.
        usual: As in `parse_times`.
        name: The column.

    Raises:
        InputError: If the value is no time.
    """
    if isinstance(value, str) and form is None and _ISO.fullmatch(text := value.strip()):
        try:
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            if moment.year > 1000:
                return ((moment - _EPOCH) // timedelta(microseconds=1)) / 1e6
        except (ValueError, OverflowError):
            pass  # polars reads some texts that Python does not, such as the second 60
    if isinstance(value, bool) or not isinstance(value, str | int | float | date):
        raise InputError(f"{'null' if value is None else type(value).__name__} is not a time: give a text or a number")
    try:
        column = pl.Series(name, [value])
    except (OverflowError, TypeError, pl.exceptions.PolarsError):
        raise InputError(f"{quoted(value)} is not a time: give a text or a number") from None
    result = parse_times(column, form=form, unit=unit, usual=usual)
    if result.missing[0] or result.bad[0]:
        raise InputError(f"{quoted(value)} {result.why or 'is not a time'}: write times as 2024-05-31T13:45:00, or as a number of seconds")
    return float(result.seconds[0])


def is_time(text: str) -> bool:
    """Whether one text can be read as a time in some format."""
    value = pl.Series([text.strip()])
    return any(read_text(value, form)[0] is not None for form in (*formats_of(text.strip()), *_digit_forms(text.strip())))


def reads(text: pl.Series, form: str) -> bool:
    """Whether a format reads every text of a column that is no word for a missing value."""
    text = text.str.strip_chars()
    return not _result(read_text(text, form), text).bad.any()


def looks_like_times(values: pl.Series) -> bool:
    """Whether a column of text (some of its rows) holds dates or moments and not numbers."""
    sample = _sample(values.cast(pl.String).str.strip_chars())
    forms = {form for text in sample.head(50) for form in formats_of(text) or _digit_forms(text)}
    return bool(len(sample)) and any(read_text(sample, form).null_count() <= 0.1 * len(sample) for form in forms)


def _mask(values: pl.Series) -> Mask:
    return values.fill_null(False).to_numpy()


def _sample(text: pl.Series) -> pl.Series:
    """Up to 2,000 distinct values: the first ones, and others from the whole column."""
    text = text.drop_nulls()
    return pl.concat([text.head(_SAMPLE), text.gather_every(max(1, len(text) // _SAMPLE))]).unique(maintain_order=True)


def _result(micro: pl.Series, values: pl.Series, why: str = "", found: TimeForm = TimeForm(), note: str | None = None) -> TimesResult:
    """The result of (N,) microseconds; a value that has none is missing or bad."""
    missing, none = _mask(values.is_null()), _mask(micro.is_null())
    if (none & ~missing).any() and values.dtype == pl.String:
        missing |= none & _mask(values.str.to_lowercase().is_in(sorted(NULL_WORDS)))
    return TimesResult(micro.fill_null(0).to_numpy() / 1e6, missing, none & ~missing, why, found, note)


def _text(text: pl.Series, form: str | None, unit: str | None, usual: TimeForm, step: bool) -> TimesResult:
    sample = _sample(text)
    words = sample.str.to_lowercase().is_in(sorted(NULL_WORDS))
    sample = sample.filter(~words)
    if not len(sample):
        return _result(pl.repeat(None, len(text), dtype=pl.Int64, eager=True), text)
    if form is not None and bool(sample.str.contains(r"^\d+\.0+$").all()):  # whole numbers that a library wrote as real ones
        return _numbers(text.cast(pl.Float64, strict=False), form, unit, usual, step)
    if form is not None:
        return _by_format(text, usual_format(form), form)
    if usual.form is not None and (micro := read_text(text, usual.form)).null_count() == text.null_count():
        return _result(micro, text, found=TimeForm(usual.form))
    numbers = sample.cast(pl.Float64, strict=False)
    if numbers.null_count() <= 0.5 * len(sample):
        if unit is None and usual.unit is None and (digits := _digits(text, sample)) is not None:
            return digits
        whole = text.cast(pl.Int64, strict=False)
        read: pl.Series = whole if whole.null_count() == text.null_count() else text.cast(pl.Float64, strict=False)
        result = _numbers(read, None, unit, usual, step)
        unread = _mask(read.is_null() & text.is_not_null())
        if not unread.any():
            return result
        missing = _mask(text.str.to_lowercase().is_in(sorted(NULL_WORDS)) | text.is_null())
        named = UNIT_NAMES[result.found.unit or "s"]
        bad = result.bad | (unread & ~missing)
        why = result.why if result.bad.any() else f"is not a number of {named}, although other rows are"
        return TimesResult(result.seconds, missing, bad, why, result.found, result.note)
    return _by_shape(text, sample, usual)


def _by_format(text: pl.Series, form: str, given: str) -> TimesResult:
    lacks = missing_directive(form)
    if lacks is not None:
        raise InputError(f"--time-format {given!r} has no {lacks}: give the format of a whole date, such as %d/%m/%Y %H:%M")
    micro = read_text(text, form)
    result = _result(micro, text, f"can't be read by --time-format {given!r}", TimeForm(form))
    if result.bad.any() and not (~(result.bad | result.missing)).any():
        row = int(np.argmax(result.bad))
        raise InputError(
            f"column {text.name!r}: --time-format {given!r} reads no row; the first is {quoted(text[row])} (row {row + 1}): correct the format, "
            "or leave it out"
        )
    return result


def _by_shape(text: pl.Series, sample: pl.Series, usual: TimeForm) -> TimesResult:
    """Read text by the one format that reads most rows."""
    shapes = dict.fromkeys(form for value in sample for form in formats_of(value))
    read = {form: len(sample) - read_text(sample, form).null_count() for form in [*shapes][:100]}
    best = max(read.values(), default=0)
    if best == 0:
        first = sample[0]
        raise InputError(
            f"column {text.name!r}: {first!r} can't be read as a time: give --time-format, or write times as 2024-05-31 13:45:00, or as a "
            "number of seconds"
        )
    parsed = {form: read_text(text, form) for form, count in read.items() if count == best}
    if all(micro.null_count() > text.null_count() for micro in parsed.values()):
        for form in [form for form in parsed if with_parts_of_seconds(form) not in parsed]:
            parsed[with_parts_of_seconds(form)] = read_text(text, with_parts_of_seconds(form))
    fewest = min(micro.null_count() for micro in parsed.values())
    parsed = {form: micro for form, micro in parsed.items() if micro.null_count() == fewest}
    parsed = _year_first(parsed)
    form = usual.form if usual.form in parsed else next(iter(parsed))
    rival = next((other for other, micro in parsed.items() if bool((micro != parsed[form]).any())), None)
    if rival is not None and usual.form != form:
        raise _ambiguous(text, form, rival)
    note = None
    if not form.startswith("%Y"):
        note = f"times in {text.name} are read as {form.replace('%#z', '%z').replace('%.f', '.%f')} (--time-format)"
    return _result(parsed[form], text, "can't be read in the time format of the column", TimeForm(form), note)


def _ambiguous(text: pl.Series, form: str, rival: str) -> InputError:
    row = int(np.argmax(_mask(read_text(text, form) != read_text(text, rival))))
    return InputError(
        f"column {text.name!r}: {text[row]!r} can be read as {form!r} or {rival!r}, and so can every row: say which with --time-format"
    )


def _year_first(parsed: dict[str, pl.Series]) -> dict[str, pl.Series]:
    """Leave out the less plausible of year-first and year-last where a year has two digits.

    The wrong order takes days for years, so that a few months become decades.
    """
    first = {form: micro for form, micro in parsed.items() if form.startswith("%y")}
    last = {form: micro for form, micro in parsed.items() if not form.startswith("%y")}
    if not first or not last:
        return parsed

    def span(found: dict[str, pl.Series]) -> float:
        return min(float(micro.max() or 0) - float(micro.min() or 0) for micro in found.values())  # type: ignore[arg-type]

    return first if 10 * span(first) < span(last) else last


def _digit_forms(text: str) -> tuple[str, ...]:
    return _DIGITS.get(len(text), ()) if text.isascii() and text.isdigit() else ()


def _digits(text: pl.Series, sample: pl.Series) -> TimesResult | None:
    """Read digits as dates where most of the sample are plausible dates; None where they are numbers."""
    lengths = sample.str.len_chars()
    length = lengths.mode().max()
    forms = _DIGITS.get(length, ()) if isinstance(length, int) else ()
    counts = {}
    for form in forms:
        micro = read_text(sample, form)
        counts[form] = int((micro.is_between(_PLAUSIBLE[0], _PLAUSIBLE[1])).sum())
    best = max(counts.values(), default=0)
    if best <= 0.5 * len(sample):
        return None
    parsed = {form: read_text(text, form) for form, count in counts.items() if count == best}
    fewest = min(micro.null_count() for micro in parsed.values())
    parsed = {form: micro for form, micro in parsed.items() if micro.null_count() == fewest}
    form = next(iter(parsed))
    rival = next((other for other, micro in parsed.items() if bool((micro != parsed[form]).any())), None)
    if rival is not None:
        raise _ambiguous(text, form, rival)
    shown = form.replace("%3f", "%f")
    note = f"digits in {text.name} are read as dates, {shown} (--time-format, or --time-unit s for seconds)"
    return _result(parsed[form], text, f"is not a date {shown} as the other rows are", TimeForm(form), note)


def _as_digits(numbers: pl.Series, width: int) -> pl.Series:
    """Whole numbers as text of at least `width` digits, other numbers as null."""
    whole = numbers if numbers.dtype.is_integer() else numbers.set(numbers != numbers.round(), None).cast(pl.Int64, strict=False)
    return whole.cast(pl.Int64, strict=False).cast(pl.String).str.zfill(width)


def _numbers(numbers: pl.Series, form: str | None, unit: str | None, usual: TimeForm, step: bool) -> TimesResult:
    """Read numbers: digits that are dates, or a number of units."""
    wanted = form if form is not None else usual.form if usual.form in [each for forms in _DIGITS.values() for each in forms] else None
    if wanted is not None and unit is None:
        width = len(datetime(2000, 1, 1, tzinfo=UTC).strftime(wanted.replace("%3f", "000"))) if "%" in wanted else 0
        text = _as_digits(numbers, width)
        if form is not None:
            return _by_format(text, usual_format(form), form)
        if (micro := read_text(text, wanted)).null_count() == numbers.null_count():
            return _result(micro, text, found=TimeForm(wanted))
    size = numbers.cast(pl.Float64).abs()
    finite = size.filter(size.is_finite())
    most = float(finite.max() or 0.0)  # type: ignore[arg-type]
    if unit is None and usual.unit is not None and (usual.unit == "excel" or most * SECONDS[usual.unit] <= LATEST):
        return _counted(numbers, usual.unit, None)
    if unit is not None:
        return _counted(numbers, unit, None)
    if usual.unit is None:
        text = _as_digits(numbers, 8 if 1e6 <= most < 1e8 else 0)
        if most >= 1e6 and (sample := _sample(text)).len() and (found := _digits(text, sample)) is not None:
            lost = found.bad | (found.missing & _mask(numbers.is_not_null()))
            return TimesResult(found.seconds, _mask(numbers.is_null()), lost, found.why, found.found, found.note)
    typical = float(finite.median() or 0.0)  # type: ignore[arg-type]
    scale = next((each for each in ("s", "ms", "us", "ns") if typical * SECONDS[each] <= LATEST), "ns")
    name = numbers.name
    if scale != "s":
        return _counted(numbers, scale, f"numbers in {name} are read as {UNIT_NAMES[scale]} since 1970 (--time-unit)", epoch=True)
    if len(finite) and _is_excel(finite):
        return _counted(numbers, "excel", f"numbers in {name} are read as {UNIT_NAMES['excel']} (--time-unit)")
    named = next((each for pattern, each in _NAMED_UNITS if re.fullmatch(pattern, name, re.IGNORECASE)), None) if step else None
    if named is not None and most <= MOST_STEPS:
        return _counted(numbers, named, f"numbers in {name} are read as {UNIT_NAMES[named]} (--time-unit)")
    return _counted(numbers, "s", None)


def _is_excel(finite: pl.Series) -> bool:
    """Whether positive numbers (n,) are Excel's days: all from 1990 to 2050, and some with a time of day."""
    low, high = float(finite.min() or 0.0), float(finite.max() or 0.0)  # type: ignore[arg-type]
    return low >= _EXCEL[0] and high <= _EXCEL[1] and bool((finite != finite.round()).any())


def _counted(numbers: pl.Series, unit: str, note: str | None, *, epoch: bool = False) -> TimesResult:
    """Read numbers of a unit.

    Args:
        numbers: (N,) whole or real numbers.
        unit: One of `SECONDS`, or `excel`.
        note: For the user.
        epoch: Whether the size of the numbers decided the unit: a row that belongs to another unit is bad.
    """
    missing = _mask(numbers.is_null())
    if unit == "excel":
        seconds = np.round((numbers.cast(pl.Float64).fill_null(0.0).to_numpy() - _EXCEL_1970) * 86_400.0, 3)
    elif unit == "ns" and numbers.dtype.is_integer():
        seconds = (numbers.cast(pl.Int64) // 1000).fill_null(0).to_numpy() / 1e6
    else:
        raw = numbers.cast(pl.Float64).fill_null(0.0).to_numpy()
        factor = SECONDS[unit]
        seconds = raw * factor if factor >= 1 else raw / round(1 / factor)
    size = np.abs(seconds)
    bad = ~np.isfinite(seconds) & ~missing
    why = "is not a finite time"
    if not bad.any():
        with np.errstate(invalid="ignore"):
            bad = (size > LATEST) & ~missing
        why = f"is after the year 5000 if read as {UNIT_NAMES[unit]}"
        if epoch and not bad.any():
            bad = (size < LATEST * 1e-3) & ~missing
            why = f"is before April 1973 if read as {UNIT_NAMES[unit]}, as the other rows are"
    return TimesResult(np.where(bad | missing, 0.0, seconds), missing, bad, why, TimeForm(unit=unit), note)


__all__ = [
    *("SECONDS", "UNIT_NAMES", "TimeForm", "TimesResult"),
    *("is_time", "looks_like_times", "parse_time", "parse_times", "reads"),
]
