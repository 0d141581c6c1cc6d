"""Formats of times written as text: which formats a text can have, and reading a column by one of them.

What is special: the formats of a text follow from its shape (digits, marks, letters), so a handful of formats
is tried and not every combination of a date with a time. A column is read by one format; a value whose year
would have fewer than four digits in it is not read.
"""

from __future__ import annotations

import re

import polars as pl

EARLIEST_YEAR = 1000
_WEEKDAY = re.compile(r"(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*(,? +)", re.IGNORECASE)
_DAYS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(r"\d{4}(?P<a>[-/. ])\d{1,2}(?P<b>[-/. ])\d{1,2}"), ("%Y{a}%m{b}%d",)),
    (re.compile(r"\d{1,2}(?P<a>[-/. ])\d{1,2}(?P<b>[-/. ])\d{4}"), ("%d{a}%m{b}%Y", "%m{a}%d{b}%Y")),
    (re.compile(r"\d{1,2}(?P<a>[-/. ])\d{1,2}(?P<b>[-/. ])\d{2}"), ("%d{a}%m{b}%y", "%m{a}%d{b}%y", "%y{a}%m{b}%d")),
    (re.compile(r"\d{1,2}(?P<a>[-/. ]?)[A-Za-z]{3,9}(?P<b>[-/. ,]{0,2})\d{4}"), ("%d{a}%B{b}%Y",)),
    (re.compile(r"\d{1,2}(?P<a>[-/. ]?)[A-Za-z]{3,9}(?P<b>[-/. ,]{0,2})\d{2}"), ("%d{a}%B{b}%y",)),
    (re.compile(r"\d{4}(?P<a>[-/. ])[A-Za-z]{3,9}(?P<b>[-/. ])\d{1,2}"), ("%Y{a}%B{b}%d",)),
    (re.compile(r"[A-Za-z]{3,9}(?P<a>[-/. ]{1,2})\d{1,2}(?P<b>[-/ ]|, ?)\d{4}"), ("%B{a}%d{b}%Y",)),
    (re.compile(r"\d{8}"), ("%Y%m%d",)),
)
"""Shapes of dates with their formats; `a` and `b` are the marks between the parts."""
_MONTHS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[A-Za-z]{3,9}(?P<a>[-/. ]?|, ?)\d{4}"), "%B{a}%Y"),
    (re.compile(r"[A-Za-z]{3,9}(?P<a>[-/. ])\d{2}"), "%B{a}%y"),
    (re.compile(r"\d{4}(?P<a>[-/. ])[A-Za-z]{3,9}"), "%Y{a}%B"),
    (re.compile(r"\d{4}(?P<a>[-/])\d{1,2}"), "%Y{a}%m"),
    (re.compile(r"\d{1,2}(?P<a>[-/])\d{4}"), "%m{a}%Y"),
)
"""Shapes of months without a day."""
_MONTH_NAMES = frozenset(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])
_NAME = re.compile(r"[^\W\d_]{3,}")
_CLOCK = re.compile(
    r"(?P<sep> *- +| *[T_:]|,? +)(?P<hour>\d{1,2})"
    r"(?:(?P<mark>[:.h])(?P<minute>\d{2})(?:(?P=mark)(?P<second>\d{2})(?P<part>[.,]\d{1,9})?)?|(?P<close>\d{2}(?:\d{2}(?:[.,]\d{1,9})?)?))?"
    r"(?P<half> ?[ap]\.?m\.?)?(?P<zone> ?(?:z|utc|gmt|[+-]\d{2}(?::?\d{2})?))?",
    re.IGNORECASE,
)
_YEAR_LAST = re.compile(r"(?P<day>[A-Za-z]{3,9} +\d{1,2}) +(?P<clock>\d{1,2}:\d{2}(:\d{2})?) +\d{4}")
_ZONE = r"(?i)(?:z|utc|gmt)$"
_HALF = r"(?i)([ap])\.?m\.?"


def formats_of(text: str) -> list[str]:
    """The formats that the shape of a text can have, none where it is no time with a date.

    >>> formats_of("31/05/2024 13:45")
    ['%d/%m/%Y %H:%M', '%m/%d/%Y %H:%M']
    """
    start, prefix = 0, ""
    if weekday := _WEEKDAY.match(text):
        start, prefix = weekday.end(), "%a" + weekday[1]
    if whole := _YEAR_LAST.fullmatch(text, start):
        return [prefix + "%B %d " + ("%H:%M:%S" if whole[3] else "%H:%M") + " %Y"]
    found: list[str] = []
    for shape, forms in _DAYS:
        day = shape.match(text, start)
        if day is None:
            continue
        rest = text[day.end() :]
        clock = _CLOCK.fullmatch(rest)
        if rest and clock is None:
            continue
        marks = {key: value.replace("%", "%%") for key, value in day.groupdict().items()}
        tail = "" if clock is None else _clock_format(clock)
        found += [prefix + form.format(**marks) + tail for form in forms]
    for month, form in _MONTHS:
        if (whole := month.fullmatch(text)) is not None:
            found.append(form.format(a=whole["a"]))
    return list(dict.fromkeys(found))


def _clock_format(clock: re.Match[str]) -> str:
    mark = clock["mark"] or ""
    out = clock["sep"] + ("%I" if clock["half"] else "%H")
    if clock["close"]:
        out += "%M" + ("%S" if len(clock["close"]) > 2 else "") + ("%.f" if len(clock["close"]) > 4 else "")
    elif clock["minute"]:
        out += f"{mark}%M" + (f"{mark}%S" if clock["second"] else "") + ("%.f" if clock["part"] else "")
    if clock["half"]:
        out += (" " if clock["half"].startswith(" ") else "") + "%p"
    if clock["zone"]:
        out += (" " if clock["zone"].startswith(" ") else "") + "%#z"
    return out


def with_parts_of_seconds(form: str) -> str:
    """The same format with an optional fraction of the second."""
    return form if "%.f" in form or "%S" not in form else form.replace("%S", "%S%.f")


def usual_format(form: str) -> str:
    """A format as users of Python's `strptime` write it, in the directives that are used here."""
    form = form.replace("%S%f", "%S%3f").replace(",%f", "%.f")
    return form.replace(".%f", "%.f").replace("%-", "%").replace("%z", "%#z").replace("%b", "%B").replace("%h", "%B").replace("%A", "%a")


def shown_format(form: str, text: pl.Series) -> str:
    """A format as users of Python's `strptime` write it: `--time-format` reads the column by it again.

    Args:
        form: A format of `formats_of` or `usual_format`.
        text: Some values that it reads; names of months that all have three letters are `%b`.

    >>> shown_format("%d-%B-%y%.f", pl.Series(["3-Jan-24"]))
    '%d-%b-%y.%f'
    """
    first = text.drop_nulls().head(200)
    names = [name for value in first for name in _NAME.findall(value)]
    months = [name for name in names if name[:3].lower() in _MONTH_NAMES]
    if months and max(map(len, months)) == 3:
        form = form.replace("%B", "%b")
    if any(name[-3:].lower() == "day" for name in names):
        form = form.replace("%a", "%A")
    return form.replace("%#z", "%z").replace("%.f", ".%f").replace("%3f", "%f")


def missing_directive(form: str) -> str | None:
    """What a format lacks to name a day: `year`, `month` or `day`; None where it names one."""
    has = set(re.findall(r"%[-_0.#:]*([A-Za-z])", form))
    if has & set("sDFcx+"):
        return None
    if not has & set("YyGg"):
        return "year"
    if not has & set("mbBhjUWV"):
        return "month"
    return None if has & set("dejaAuw") else "day"


def read_text(text: pl.Series, form: str) -> pl.Series:
    """Read (N,) text by a format.

    Args:
        text: (N,) text without white space at its ends.
        form: A format of `formats_of` or `usual_format`.

    Returns:
        (N,) Int64 microseconds since 1970, null where the format does not read the text.
    """
    zoned = "%#z" in form
    if zoned:
        text = text.str.replace(_ZONE, "+00:00")
    if "%p" in form:
        text = text.str.replace(_HALF, "${1}M")
    if "%.f" in form:
        text = text.str.replace(r"(\d),(\d+)", "${1}.${2}")
    if ("%H" in form or "%I" in form) and "%M" not in form:
        text, form = text + "|00", form + "|%M"
    if missing_directive(form) == "day":
        text, form = text + "|01", form + "|%d"
    try:
        moments = text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC" if zoned else None, cache=False)
    except pl.exceptions.PolarsError:
        return pl.repeat(None, len(text), dtype=pl.Int64, eager=True)
    if zoned:
        moments = moments.dt.replace_time_zone(None)
    micro = moments.to_physical()
    earliest = -(1970 - EARLIEST_YEAR) * 365 * 86_400_000_000
    if micro.null_count() < len(micro) and (micro.min() or 0) < earliest:  # type: ignore[operator]
        micro = micro.set(micro < earliest, None)
    return micro
