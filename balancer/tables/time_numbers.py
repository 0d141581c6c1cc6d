"""Times as numbers: digits that are dates, or numbers of units since 1970, 1900 or another origin."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
import polars as pl

from balancer.errors import InputError
from balancer.tables.time_forms import LATEST, SECONDS, UNIT_NAMES, TimeForm, TimesResult, mask, result_of, sample_of
from balancer.tables.time_given import AS_TRAINED, ambiguous, by_format
from balancer.tables.time_text import missing_directive, read_text, shown_format, usual_format

MOST_STEPS = 1e6
"""Largest number that the name of a column makes a number of minutes, hours or days."""
_EXCEL = (32_874.0, 54_789.0)
"""Excel's numbers of the first days of 1990 and 2050."""
_EXCEL_1970 = 25_569.0
_DIGITS = {
    6: ("%Y%m", "%y%m%d", "%d%m%y"),
    8: ("%Y%m%d", "%d%m%Y", "%m%d%Y"),
    10: ("%Y%m%d%H",),
    12: ("%Y%m%d%H%M", "%y%m%d%H%M%S"),
    14: ("%Y%m%d%H%M%S",),
    17: ("%Y%m%d%H%M%S%3f",),
}
"""Formats of dates that are only digits, by their number of digits."""
_SHORT = ("%Y%m", "%y%m%d", "%d%m%y", "%y%m%d%H%M%S")
"""Formats that other numbers fit too, so that nearly all values must be plausible dates."""
_PLAUSIBLE, _RECENT = (
    tuple(int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1e6) for year in years) for years in ((1900, 2100), (1990, 2050))
)
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC).timestamp()
"""A number that is milliseconds since 1970 only because it is large is not read if it is before this."""
_DATE_NAME = re.compile(r"(?:.*[_ ])?(?:date|datum|dat|fecha|data|day|dt|tag|jour|dia)(?:[_ ].*)?|.*(?:date?|datum)", re.IGNORECASE)
_MOST_EXCEL_DAYS = 7_305
_NAMED_UNITS = ((r"steps?|(.*_)?(hours?|hrs?)", "h"), (r"(.*_)?days?(_?(no|num|number|index))?", "d"), (r"(.*_)?(minutes?|mins?)", "min"))


def seconds_of(value: float, usual: TimeForm) -> float | None:
    """Read one number at once, with the bits of `numbers_of`; None where only that can.

    Args:
        value: A whole or real number.
        usual: How the training table was read.
    """
    if usual.form is not None or usual.clock is not None or usual.unit == "excel" or not abs(value) <= 2**53:
        return None
    if usual.unit is None:  # seconds since 1970 from 1973 to 2286, which are no digits of a date
        whole = value == int(value)
        year, month, day = int(value) // 1_000_000, int(value) // 10_000 % 100, int(value) // 100 % 100
        date = whole and 1900 <= year <= 2100 and 1 <= month <= 12 and 1 <= day <= 31
        return float(value) if 1e8 <= value < 1e10 and not date else None
    if usual.unit == "ns" and isinstance(value, int):
        seconds = (value // 1000) / 1e6
    else:
        factor = SECONDS[usual.unit]
        seconds = float(value) * factor if factor >= 1 else float(value) / round(1 / factor)
    return seconds if max(abs(seconds), abs(value) * SECONDS[usual.unit]) <= LATEST else None


def digit_forms(text: str) -> tuple[str, ...]:
    """The formats of dates that are as many digits as a text."""
    return _DIGITS.get(len(text), ()) if text.isascii() and text.isdigit() else ()


def digits_of(text: pl.Series, sample: pl.Series, *, flags: bool) -> TimesResult | None:
    """Read digits as dates where most of the sample are plausible dates; None where they are numbers."""
    lengths = sample.str.len_chars()
    length = lengths.mode().max()
    forms = _DIGITS.get(length, ()) if isinstance(length, int) else ()
    counts = {}
    for form in forms:
        low, high = _RECENT if form in _SHORT else _PLAUSIBLE
        counts[form] = int(read_text(sample, form).is_between(low, high).sum())
        if form in _SHORT and counts[form] < 0.98 * len(sample):
            counts[form] = 0
    best = max(counts.values(), default=0)
    if best <= 0.5 * len(sample):
        return None
    parsed = {form: read_text(text, form) for form, count in counts.items() if count == best}
    fewest = min(micro.null_count() for micro in parsed.values())
    parsed = {form: micro for form, micro in parsed.items() if micro.null_count() == fewest}
    form = next(iter(parsed))
    rival = next((other for other, micro in parsed.items() if bool((micro != parsed[form]).any())), None)
    if rival is not None:
        raise ambiguous(text, form, rival, flags=flags)
    shown = shown_format(form, sample)
    if missing_directive(form) == "day":
        note = f"digits in {text.name} are months ({shown}), taken as the first day of each (--time-format, or --time-unit s for seconds)"
        return result_of(parsed[form], text, f"is not a month {shown} as the other rows are", TimeForm(form), note)
    note = f"digits in {text.name} are read as dates, {shown} (--time-format, or --time-unit s for seconds)"
    return result_of(parsed[form], text, f"is not a date {shown} as the other rows are", TimeForm(form), note)


def _as_digits(numbers: pl.Series, width: int) -> pl.Series:
    """Whole numbers as text of at least `width` digits, other numbers as null."""
    whole = numbers if numbers.dtype.is_integer() else numbers.set(numbers != numbers.round(), None).cast(pl.Int64, strict=False)
    return whole.cast(pl.Int64, strict=False).cast(pl.String).str.zfill(width)


def numbers_of(numbers: pl.Series, form: str | None, unit: str | None, usual: TimeForm, step: bool, flags: bool) -> TimesResult:
    """Read numbers: digits that are dates, or a number of units."""
    wanted = form if form is not None else usual.form if usual.form in [each for forms in _DIGITS.values() for each in forms] else None
    if wanted is not None and unit is None:
        width = len(datetime(2000, 1, 1, tzinfo=UTC).strftime(wanted.replace("%3f", "000"))) if "%" in wanted else 0
        text = _as_digits(numbers, width)
        if form is not None:
            return by_format(text, usual_format(form), form)
        if (micro := read_text(text, wanted)).null_count() == numbers.null_count():
            return result_of(micro, text, found=TimeForm(wanted))
    size = numbers.cast(pl.Float64).abs()
    finite = size.filter(size.is_finite())
    most = float(finite.max() or 0.0)  # type: ignore[arg-type]
    if unit is None and usual.unit is not None and (usual.unit == "excel" or most * SECONDS[usual.unit] <= LATEST):
        return _counted(numbers, usual.unit, None)
    if unit is not None:
        return _counted(numbers, unit, None)
    if usual.unit is None:
        text = _as_digits(numbers, 8 if 1e6 <= most < 1e8 else 12 if 1e10 <= most < 1e12 else 0)
        if most >= 1e5 and (sample := sample_of(text)).len() and (found := digits_of(text, sample, flags=flags)) is not None:
            lost = found.bad | (found.missing & mask(numbers.is_not_null()))
            return TimesResult(found.seconds, mask(numbers.is_null()), lost, found.why, found.found, found.note)
    typical = float(finite.median() or 0.0)  # type: ignore[arg-type]
    scale = next((each for each in ("s", "ms", "us", "ns") if typical * SECONDS[each] <= LATEST), "ns")
    name = numbers.name
    if scale != "s":
        if typical * SECONDS[scale] < _EARLIEST:
            year = datetime.fromtimestamp(typical * SECONDS[scale], UTC).year
            remedy = "give --time-unit, or --time-format if the digits are dates" if flags else AS_TRAINED
            raise InputError(
                f"column {name!r}: numbers such as {numbers[int(finite.arg_max() or 0)]} would be {UNIT_NAMES[scale]} of the year {year}, "
                f"which is not plausible: {remedy}"
            )
        return _counted(numbers, scale, f"numbers in {name} are read as {UNIT_NAMES[scale]} since 1970 (--time-unit)", epoch=True)
    named = next((each for pattern, each in _NAMED_UNITS if re.fullmatch(pattern, name, re.IGNORECASE)), None) if step else None
    if len(finite) and _is_excel(finite, name if step else "", small=named in ("h", "min")):
        return _counted(numbers, "excel", f"numbers in {name} are read as {UNIT_NAMES['excel']} (--time-unit)")
    if named is not None and most <= MOST_STEPS:
        return _counted(numbers, named, f"numbers in {name} are read as {UNIT_NAMES[named]} (--time-unit)")
    return _counted(numbers, "s", None)


def _is_excel(finite: pl.Series, name: str, *, small: bool) -> bool:
    """Whether positive numbers (n,) are Excel's days: all from 1990 to 2050, and some with a time of day.

    Whole days count where the name says a date, or where they are within 20 years and each has several rows.

    Args:
        finite: The numbers.
        name: Of the column.
        small: Whether the name says hours or minutes.
    """
    low, high = float(finite.min() or 0.0), float(finite.max() or 0.0)  # type: ignore[arg-type]
    if not (low >= _EXCEL[0] and high <= _EXCEL[1]):
        return False
    if bool((finite != finite.round()).any()):
        return True
    if small:
        return False
    return _DATE_NAME.fullmatch(name) is not None or (high - low <= _MOST_EXCEL_DAYS and 2 * finite.n_unique() <= len(finite))


def _counted(numbers: pl.Series, unit: str, note: str | None, *, epoch: bool = False) -> TimesResult:
    """Read numbers of a unit.

    Args:
        numbers: (N,) whole or real numbers.
        unit: One of `SECONDS`, or `excel`.
        note: For the user.
        epoch: Whether the size of the numbers decided the unit: a row that belongs to another unit is bad.
    """
    missing = mask(numbers.is_null())
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
