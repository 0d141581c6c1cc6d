"""Times of day in a column of their own, and a date and a time of day that are two columns.

What is special: the two are added in whole microseconds, so a joined time has the same bits as the same time
in one column.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import polars as pl

from balancer.errors import InputError
from balancer.tables.numbers import NULL_WORDS
from balancer.tables.time_forms import CLOCKS, TimeForm, TimesResult
from balancer.tables.time_given import AS_TRAINED
from balancer.tables.time_text import read_text
from balancer.tables.times import parse_times
from balancer.tables.type_names import type_name

DAY_US = 86_400_000_000
_CLOCK = re.compile(r"\d{1,2}([:.h])\d{2}(?:\1\d{2}(?:[.,]\d{1,9})?)?( ?[ap]\.?m\.?)?|\d{1,2}( ?[ap]\.?m\.?)", re.IGNORECASE)
_FORMATS = tuple(
    f"%{hour}{mark}%M{seconds.replace(':', mark)}{half}"
    for mark in (":", ".", "h")
    for hour, half in (("H", ""), ("I", " %p"), ("I", "%p"))
    for seconds in ("", ":%S", ":%S%.f")
)
_HOURS_ONLY = ("%I %p", "%I%p")


def is_time_of_day(values: pl.Series) -> bool:
    """Whether a column holds times of day without a date, such as 13:45 or 1:45 PM."""
    if values.dtype == pl.Time:
        return True
    if values.dtype != pl.String:
        return False
    sample = values.drop_nulls().head(200).str.strip_chars()
    sample = sample.filter(~sample.str.to_lowercase().is_in(sorted(NULL_WORDS)))
    return bool(len(sample)) and all(_CLOCK.fullmatch(text) for text in sample)


def time_of_day(values: pl.Series, usual: str | None = None) -> tuple[pl.Series, str | None]:
    """Read times of day.

    Args:
        values: (N,) times, durations, text such as `13:45:10` or `1:45 PM`, or digits: hours, HHMM,
            HHMMSS, or seconds since midnight.
        usual: What the digits of the training table were, a key of `CLOCKS`.

    Returns:
        (N,) Int64 microseconds since midnight, null where the value is none; and what digits mean.

    Raises:
        InputError: If the column can't hold times of day.
    """
    if values.dtype == pl.Time:
        return values.to_physical() // 1000, None
    if values.dtype == pl.Duration:
        micro = values.cast(pl.Duration("us")).to_physical()
        return micro.set(~micro.is_between(0, DAY_US - 1), None), None
    text = values
    if values.dtype.is_float():
        text = values.cast(pl.Int64, strict=False).set(values != values.floor(), None)
    if not (values.dtype.is_numeric() or values.dtype == pl.String):
        raise InputError(f"column {values.name!r} is {type_name(values.dtype)}, not a time of day: give one such as 13:45:10")
    text = text.cast(pl.String).str.strip_chars()
    known = text.drop_nulls()
    known = known.filter(~known.str.to_lowercase().is_in(sorted(NULL_WORDS)))
    if len(known) and bool(known.str.contains(r"^\d{1,6}$").all()):
        return _digits(text, usual)
    best, fewest = pl.repeat(None, len(text), dtype=pl.Int64, eager=True), len(text)
    day = pl.repeat("2000-01-01 ", len(text), dtype=pl.String, eager=True) + text
    for form in (*_FORMATS, *_HOURS_ONLY):
        micro = read_text(day, "%Y-%m-%d " + form)
        if micro.null_count() < fewest:
            best, fewest = micro, micro.null_count()
    return best % DAY_US, None


def _digits(text: pl.Series, usual: str | None) -> tuple[pl.Series, str | None]:
    number = text.cast(pl.Int64, strict=False)
    most = int(number.max() or 0)  # type: ignore[arg-type]
    parts = (number // 10_000, number // 100 % 100, number % 100)
    sizes: list[tuple[str, tuple[pl.Series, pl.Series, pl.Series], bool]] = [
        ("hours", (number, number * 0, number * 0), most < 24 and bool((text.str.len_bytes() <= 2).fill_null(True).all())),
        ("HHMM", (number // 100, number % 100, number * 0), most < 2400),
        ("HHMMSS", parts, most < 240_000),
    ]
    for shown, (hour, minute, second), fits in sizes:
        good = (hour < 24) & (minute < 60) & (second < 60) & (number >= 0)
        if usual == shown or (usual is None and fits and bool(good.fill_null(True).all())):
            return ((hour * 3600 + minute * 60 + second) * 1_000_000).set(~good.fill_null(False), None), shown
    return (number * 1_000_000).set(~number.is_between(0, 86_399), None), "seconds"


def clock_digits(values: pl.Series) -> str | None:
    """What whole numbers (N,) or digits are as times of day: hours, HHMM or HHMMSS; None for others."""
    text = values if values.dtype == pl.String else values.cast(pl.Int64, strict=False).cast(pl.String)
    text = text.str.strip_chars().drop_nulls()
    text = text.filter(~text.str.to_lowercase().is_in(sorted(NULL_WORDS)))
    if not len(text) or not bool(text.str.contains(r"^\d{1,6}(?:\.0+)?$").all()):
        return None
    found = _digits(text.str.replace(r"\.0+$", ""), None)[1]
    return None if found == "seconds" else found


def parse_joined(day: pl.Series, clock: pl.Series, *, form: str | None = None, usual: TimeForm | None = None) -> TimesResult:
    """Read a date and a time of day that are two columns.

    Args:
        day: (N,) dates.
        clock: (N,) times of day.
        form: The format of the two, joined by a space, if it was given; or that of the date alone.
        usual: How the dates of the training table were read.

    Raises:
        InputError: As `parse_times`; or if a date has a time of day of its own.
    """
    name = f"{day.name}+{clock.name}"
    if form is not None and ("%H" in form or "%I" in form):
        text = [_written(each) for each in (day, clock)]
        width = 2 * sum(form.count(each) for each in ("%H", "%I", "%M", "%S"))
        if bool(text[1].drop_nulls().str.contains(r"^\d{1,6}$").all()) and form.endswith(("%H", "%H%M", "%H%M%S")):
            text[1] = text[1].str.zfill(width)  # a number has lost its zeros: 15 is 0015
        return parse_times((text[0] + " " + text[1]).alias(name), form=form)
    date = parse_times(day, form=form, usual=usual, step=False)
    rest = np.mod(date.seconds, 86_400.0)
    if (rest != 0).any():
        row = int(np.argmax(rest != 0))
        remedy = f"give --time {day.name} alone" if usual is None else AS_TRAINED
        raise InputError(f"column {day.name!r}: row {row + 1} has a time of day of its own ({day[row]!r}): {remedy}")
    micro, digits = time_of_day(clock, None if usual is None else usual.clock)
    note = None
    if digits is not None:
        note = f"digits in {clock.name} are read as " + (
            "seconds since midnight" if digits == "seconds" else f"times of day, {CLOCKS[digits]}"
        )
    none = micro.is_null().to_numpy()
    missing = date.missing | _missing(clock)
    bad = (date.bad | none) & ~missing
    whole = np.rint(date.seconds * 1e6).astype(np.int64) + micro.fill_null(0).to_numpy()
    why = date.why if date.bad.any() else f"has no time of day that can be read in {clock.name!r}"
    notes = "; ".join(each for each in (date.note, note) if each)
    return TimesResult(np.where(bad | missing, 0.0, whole / 1e6), missing, bad, why, replace(date.found, clock=digits), notes or None)


def _written(values: pl.Series) -> pl.Series:
    return values.cast(pl.String).str.strip_chars()


def _missing(values: pl.Series) -> np.ndarray:
    if values.dtype != pl.String:
        return values.is_null().to_numpy()
    lower = values.str.strip_chars().str.to_lowercase()
    return (lower.is_in(sorted(NULL_WORDS)) | values.is_null()).fill_null(True).to_numpy()
