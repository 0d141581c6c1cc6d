"""Times as tables hold them: text in many formats, numbers in several units, digits that are dates.

What is special: the whole column decides. Formats are tried on a sample of distinct values, and those that
read most of it are tried on every row, so a column is ambiguous only if two formats read all of it as
different times. What was found (`TimeForm`) is kept with the trained run, so that a table of a few rows, or a
single transaction of the service, is read as the training table was.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

import polars as pl

from balancer.errors import InputError
from balancer.names import quoted
from balancer.tables.numbers import NULL_WORDS
from balancer.tables.time_forms import UNIT_NAMES, TimeForm, TimesResult, mask, result_of, sample_of
from balancer.tables.time_given import AS_TRAINED, ambiguous, by_format, unreadable
from balancer.tables.time_numbers import digit_forms, digits_of, numbers_of, seconds_of
from balancer.tables.time_text import formats_of, missing_directive, read_text, shown_format, usual_format, with_parts_of_seconds
from balancer.tables.type_names import type_name

_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:Z|[+-]\d\d:\d\d)?)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
    name, dtype, flags = values.name, values.dtype, usual is None
    if dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype == pl.String:
        return _text(values.str.strip_chars(), form, unit, usual or TimeForm(), step, flags)
    if dtype in (pl.Datetime, pl.Date):
        return result_of(values.cast(pl.Datetime("us", getattr(dtype, "time_zone", None))).to_physical(), values)
    if dtype == pl.Duration:
        return result_of(values.cast(pl.Duration("us")).to_physical(), values)
    if dtype == pl.Null:
        return result_of(pl.repeat(None, len(values), dtype=pl.Int64, eager=True), values)
    if dtype == pl.Time:
        remedy = f"join it with the column of the date, --time date+{name}" if flags else AS_TRAINED
        raise InputError(f"column {name!r} holds times of day without a date: {remedy}")
    if not dtype.is_numeric():
        raise InputError(f"column {name!r} is {type_name(dtype)}, not a time: give a datetime, a date, a number of seconds or text")
    numbers = values if dtype.is_integer() else values.cast(pl.Float64)
    return numbers_of(numbers, form, unit, usual or TimeForm(), step, flags)


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
    if isinstance(value, str) and form is None and unit is None and usual is not None and usual.form is not None:
        seconds = _by_fields(value.strip(), usual.form)
        if seconds is not None:
            return seconds
    if type(value) in (int, float) and form is None and unit is None:
        seconds = seconds_of(value, usual or TimeForm())  # type: ignore[arg-type]
        if seconds is not None:
            return seconds
    if isinstance(value, bool) or not isinstance(value, str | int | float | date):
        raise InputError(f"{'null' if value is None else type(value).__name__} is not a time: give a text or a number")
    try:
        column = pl.Series(name, [value])
    except (OverflowError, TypeError, pl.exceptions.PolarsError):
        raise InputError(f"{quoted(value)} is not a time: give a text or a number") from None
    result = parse_times(column, form=form, unit=unit, usual=usual or TimeForm())
    if result.missing[0] or result.bad[0]:
        raise InputError(f"{quoted(value)} {result.why or 'is not a time'}: write times as 2024-05-31T13:45:00, or as a number of seconds")
    return float(result.seconds[0])


@lru_cache(maxsize=64)
def _fields_of(form: str) -> tuple[re.Pattern[str], tuple[str, ...]] | None:
    """The pattern of the texts of a format that has only numbers of full width, and its directives."""
    names = tuple(re.findall(r"%(.)", form))
    if sorted(names) != sorted(set(names)) or not {"Y", "m", "d"} <= set(names) <= set("YmdHMS") or ("H" in names) != ("M" in names):
        return None
    pattern = re.sub(r"%(.)", lambda found: r"(\d{4})" if found[1] == "Y" else r"(\d\d)", re.escape(form).replace("\\%", "%"))
    return re.compile(pattern, re.ASCII), names


def _by_fields(text: str, form: str) -> float | None:
    """Read one text by the usual format, with the bits of `read_text`; None where only that can."""
    fields = _fields_of(form)
    found = None if fields is None else fields[0].fullmatch(text)
    if fields is None or found is None:
        return None
    value = dict(zip(fields[1], map(int, found.groups()), strict=True))
    try:
        moment = datetime(value["Y"], value["m"], value["d"], value.get("H", 0), value.get("M", 0), value.get("S", 0), tzinfo=UTC)
    except ValueError:
        return None
    return ((moment - _EPOCH) // timedelta(microseconds=1)) / 1e6 if moment.year > 1000 else None


def is_time(text: str) -> bool:
    """Whether one text can be read as a time in some format."""
    value = pl.Series([text.strip()])
    return any(read_text(value, form)[0] is not None for form in (*formats_of(text.strip()), *digit_forms(text.strip())))


def reads(text: pl.Series, form: str) -> bool:
    """Whether a format reads every text of a column that is no word for a missing value."""
    text = text.str.strip_chars()
    return not result_of(read_text(text, form), text).bad.any()


def looks_like_times(values: pl.Series) -> bool:
    """Whether a column of text (some of its rows) holds dates or moments and not numbers."""
    sample = sample_of(values.cast(pl.String).str.strip_chars())
    forms = {form for text in sample.head(50) for form in formats_of(text) or digit_forms(text)}
    return bool(len(sample)) and any(read_text(sample, form).null_count() <= 0.1 * len(sample) for form in forms)


def _text(text: pl.Series, form: str | None, unit: str | None, usual: TimeForm, step: bool, flags: bool) -> TimesResult:
    sample = sample_of(text)
    words = sample.str.to_lowercase().is_in(sorted(NULL_WORDS))
    sample = sample.filter(~words)
    if not len(sample):
        return result_of(pl.repeat(None, len(text), dtype=pl.Int64, eager=True), text)
    if form is not None and bool(sample.str.contains(r"^\d+\.0+$").all()):  # whole numbers that a library wrote as real ones
        return numbers_of(text.cast(pl.Float64, strict=False), form, unit, usual, step, flags)
    if form is not None:
        return by_format(text, usual_format(form), form)
    if usual.form is not None and (micro := read_text(text, usual.form)).null_count() == text.null_count():
        return result_of(micro, text, found=TimeForm(usual.form))
    numbers = sample.cast(pl.Float64, strict=False)
    if numbers.null_count() <= 0.5 * len(sample):
        if unit is None and usual.unit is None and (digits := digits_of(text, sample, flags=flags)) is not None:
            return digits
        whole = text.cast(pl.Int64, strict=False)
        read: pl.Series = whole if whole.null_count() == text.null_count() else text.cast(pl.Float64, strict=False)
        result = numbers_of(read, None, unit, usual, step, flags)
        unread = mask(read.is_null() & text.is_not_null())
        if not unread.any():
            return result
        missing = mask(text.str.to_lowercase().is_in(sorted(NULL_WORDS)) | text.is_null())
        named = UNIT_NAMES[result.found.unit or "s"]
        bad = result.bad | (unread & ~missing)
        why = result.why if result.bad.any() else f"is not a number of {named}, although other rows are"
        return TimesResult(result.seconds, missing, bad, why, result.found, result.note)
    return _by_shape(text, sample, usual, flags)


def _by_shape(text: pl.Series, sample: pl.Series, usual: TimeForm, flags: bool) -> TimesResult:
    """Read text by the one format that reads most rows."""
    shapes = dict.fromkeys(form for value in sample for form in formats_of(value))
    read = {form: len(sample) - read_text(sample, form).null_count() for form in [*shapes][:100]}
    best = max(read.values(), default=0)
    if best == 0:
        raise unreadable(sample, flags=flags)
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
        raise ambiguous(text, form, rival, flags=flags)
    note = None
    shown = shown_format(form, sample)
    if missing_directive(form) == "day":
        note = f"times in {text.name} are months ({shown}), taken as the first day of each"
    elif not form.startswith("%Y"):
        note = f"times in {text.name} are read as {shown} (--time-format)"
    return result_of(parsed[form], text, "can't be read in the time format of the column", TimeForm(form), note)


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


__all__ = ["UNIT_NAMES", "TimeForm", "TimesResult", "is_time", "looks_like_times", "parse_time", "parse_times", "reads"]
