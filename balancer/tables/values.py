"""One normal form of categories, keys and ids: equal values give the same text, whatever type a file has.

What is special: a library changes the type of a column as soon as one cell is missing (1 becomes 1.0), and
systems write the same name in several ways. A value is compared by its normal form in training, history,
scoring and the service, so it is the same value everywhere. `normal_form` converts a column, `normal_text`
one value of a request, with equal results.
"""

from __future__ import annotations

import datetime as dt
import decimal
import math
import re
import unicodedata

import polars as pl

from balancer.errors import InputError
from balancer.tables.options import NORMAL
from balancer.tables.type_names import type_name

NOBODY = frozenset({"nan", "null", "none", "nil", "nat", "na", "n/a", "#n/a", "<na>", "\\n"})
"""Words, in lower case, that stand for a missing value where a column was written as text. As the name of a
card or customer they would make one history of all rows without a name."""
WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
"""White space by the Unicode standard; `str.strip` alone removes four separators of files too."""
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")
_MOST_WHOLE = 2.0**63
"""Whole floats from here on are written with an exponent."""
_TRUTH = ("true", "false")
_OTHERS = ("Cn", "Cs")
"""Unicode categories of text that polars composes or refuses: characters that Python does not know yet, and
halves of characters. All others are composed alike by every version of Unicode."""


def normal_form(values: pl.Series) -> pl.Series:
    """Convert a column of categories, keys or ids to text that is equal for equal values.

    1, 1.0, "1" and "1.0" are "1"; -0.0 is "0"; true, "True" and "TRUE" are "true"; a date is its ISO text,
    and so is a datetime at midnight. Text is composed (Unicode NFC), without white space around it; "01"
    stays "01", and "1.50" stays as it is written.

    Args:
        values: (N,) the column.

    Returns:
        (N,) text; null for null, NaN, and empty or blank text.

    Raises:
        InputError: If the column has a dtype without such a text, for example a list.

    >>> normal_form(pl.Series([1.0, -0.0, 2.5, None])).to_list()
    ['1', '0', '2.5', None]
    """
    dtype = values.dtype
    if dtype == pl.String:
        return _text_form(values)
    if dtype in (pl.Categorical, pl.Enum):
        return _text_form(values.cast(pl.String))
    if dtype.is_float():
        return _float_form(values)
    if dtype.is_decimal():
        digits = values.cast(pl.String).str.replace(r"\.0+$", "")
        text = digits.str.replace(r"(\.[0-9]*[1-9])0+$", "${1}")
        return text.set(text == "-0", "0")
    if isinstance(dtype, pl.Datetime):
        moments = values if dtype.time_zone is None else values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return moments.dt.to_string("%Y-%m-%dT%H:%M:%S%.f").str.strip_suffix("T00:00:00")
    if dtype.is_integer() or dtype in (pl.Boolean, pl.Date, pl.Time, pl.Null):
        return values.cast(pl.String)
    raise InputError(
        f"column {values.name!r} is {type_name(dtype)}, which can't be a category, a key or an id: convert it to text, or leave it out"
    )


def normal_text(value: object) -> str | None:
    """Convert one value as `normal_form` converts a column that holds it.

    Args:
        value: A number, text, truth value, date, or None.

    Raises:
        InputError: If it is anything else, or text that is not valid Unicode.

    >>> normal_text(7.0), normal_text(" TRUE "), normal_text("")
    ('7', 'true', None)
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float) and (math.isnan(value) or (value.is_integer() and abs(value) < _MOST_WHOLE)):
        return None if math.isnan(value) else str(int(value))
    if isinstance(value, str) and value.isascii():
        return _ascii_text(value)
    if isinstance(value, str) and (value.isprintable() or all(unicodedata.category(each) not in _OTHERS for each in value)):
        text = value.strip(WHITE)
        return _ascii_text(text) if text.isascii() else unicodedata.normalize("NFC", text)
    if not isinstance(value, str | float | decimal.Decimal | dt.date | dt.time) and not hasattr(value, "dtype"):
        raise InputError(f"a {type(value).__name__} can't be a category, a key or an id: give text or a number")
    try:
        found: str | None = normal_form(pl.Series([value]))[0]
    except UnicodeEncodeError:
        raise InputError(f"{value!r} has half of a character (a surrogate), which no file can hold: correct the text") from None
    return found


def plain_form(values: pl.Series) -> pl.Series:
    """Convert a column to text as earlier versions did: 1.0 is "1.0", and text stays as it is."""
    return values.cast(pl.String)


def form_of(values: pl.Series, form: str) -> pl.Series:
    """Convert a column to its `NORMAL` or `PLAIN` form."""
    return normal_form(values) if form == NORMAL else plain_form(values)


def is_nobody(values: pl.Series) -> pl.Series:
    """Whether each of (N,) normal forms is a word that stands for a missing value; null is not."""
    short = values.str.len_bytes() <= max(map(len, NOBODY))
    if not short.any():
        return short.fill_null(False)
    return (short & values.str.to_lowercase().is_in(list(NOBODY))).fill_null(False)


def _text_form(values: pl.Series) -> pl.Series:
    text = values.str.strip_chars()
    composed = text.str.len_bytes() != text.str.len_chars()
    if composed.any():
        text = _where(composed, text.str.normalize("NFC"), text)
    whole = text.str.ends_with("0") & text.str.contains(r"^-?[0-9]+\.0+$")
    if whole.any():
        text = _where(whole, text.str.replace(r"\.0+$", ""), text)
    lower = text.str.len_bytes().is_in([4, 5])
    if lower.any():
        small = text.str.to_lowercase()
        text = _where(lower & small.is_in(list(_TRUTH)), small, text)
    for found, meant in (("-0", "0"), ("", None)):
        same = text == found
        if same.any():
            text = text.set(same, meant)
    return text


def _ascii_text(value: str) -> str | None:
    text = value.strip(WHITE)
    if not text:
        return None
    if text[-1] == "0":
        found = _WHOLE.fullmatch(text)
        text = text if found is None else found[1]
        return "0" if text == "-0" else text
    return text.lower() if len(text) in (4, 5) and text.lower() in _TRUTH else text


def _float_form(values: pl.Series) -> pl.Series:
    values = values.fill_nan(None)
    whole = (values == values.floor()) & (values.abs() < _MOST_WHOLE)
    if not whole.any():
        return values.cast(pl.String)
    numbers = values.cast(pl.Int64, strict=False).cast(pl.String)
    return numbers if whole.drop_nulls().all() else _where(whole, numbers, values.cast(pl.String))


def _where(mask: pl.Series, one: pl.Series, other: pl.Series) -> pl.Series:
    """`one` where the mask is true, else `other`."""
    return one.zip_with(mask.fill_null(False), other)
