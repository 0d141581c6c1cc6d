"""Check one value of a transaction, and convert it as a column of a table with this value is converted.

What is special: what a library or a client makes of a value must not decide which card it is. So types are
strict (a truth value is no id, `1_000` is no number), and the common cases are decided by few comparisons.
"""

from __future__ import annotations

import math
import re
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace

import numpy as np
import polars as pl

from balancer.data.past import AMOUNT_LIMIT
from balancer.errors import InputError
from balancer.serving.texts import is_text, remedy_of
from balancer.tables.numbers import read_numbers
from balancer.tables.options import ReadOptions
from balancer.tables.times import TimeForm, parse_time
from balancer.tables.values import WHITE, normal_text

LARGEST = float(np.finfo(np.float32).max)
"""Largest value of a numeric column, which is a 32-bit float for the model."""
LARGEST_AMOUNT = AMOUNT_LIMIT
"""Largest amount: larger ones are clipped in sums, and one of them would hide all others of its card."""
_PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", re.ASCII)
_LONGEST_WHOLE = 3_000
"""Bits of a whole number that is shorter than the longest text."""


def is_missing(value: object, absent: AbstractSet[str]) -> bool:
    """Whether a value of a numeric column is missing, as in a table: null, NaN, or a word for it.

    Args:
        value: The value.
        absent: The words in lower case, from `balancer.tables.numbers.null_words`.
    """
    if isinstance(value, str):
        return value.strip().lower() in absent
    return value is None or (isinstance(value, float) and math.isnan(value))


def number_of(value: object, name: str, where: str, read: ReadOptions, *, most: float, truth: bool = False) -> float:
    """Convert a value of a numeric column or an amount.

    Args:
        value: The value, which is not missing.
        name: The column.
        where: The name of the transaction in messages, with a colon; empty for none.
        read: How the numbers of the training table are written, where they are text.
        most: The largest value: `LARGEST` or `LARGEST_AMOUNT`.
        truth: Whether true and false are 1 and 0.

    Raises:
        InputError: If it is no number, not finite, or too large.
    """
    if isinstance(value, str):
        value = _written(value, name, where, read)
    elif isinstance(value, bool) and truth:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        what = {type(None): "null", bool: "true or false"}.get(type(value), type(value).__name__)
        raise InputError(f"{where}column {name!r} is {what}, not a number; give a finite number")
    if -most <= value <= most:
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}column {name!r} is not finite; give a finite number")
    if most == LARGEST_AMOUNT:
        raise InputError(
            f"{where}column {name!r} is beyond the largest amount, {LARGEST_AMOUNT:g}; correct it, or give it in a larger unit"
        )
    raise InputError(f"{where}column {name!r} is beyond the range of 32-bit floats; scale it as in training")


def text_of(value: object, name: str, where: str, *, normal: bool) -> str | None:
    """Convert a value to text as for a column of a table, where 3, 3.0 and "3" are one; None is missing.

    Args:
        value: The value.
        name: The column.
        where: The name of the transaction in messages, with a colon; empty for none.
        normal: Whether values are compared by their normal form; otherwise as earlier versions did.

    Raises:
        InputError: If it is neither text nor a number nor a truth value, or can't be stored.
    """
    if isinstance(value, str):
        text: str | None = value.strip(WHITE)
    elif value is None or isinstance(value, bool | int | float):
        text = None if isinstance(value, int) and value.bit_length() > _LONGEST_WHOLE else str(value)
    else:
        raise InputError(f"{where}column {name!r} is {type(value).__name__}; give a text or a number")
    if text is None or not is_text(text):
        raise InputError(f"{where}column {name!r} {remedy_of()}")
    if normal or isinstance(value, bool):
        text = normal_text(value)
        if text is not None and not text.isascii() and not is_text(text):  # composing may make it longer
            raise InputError(f"{where}column {name!r} {remedy_of()}")
        return text
    return None if value is None else str(value) or None


def seconds_of(value: object, name: str, where: str, usual: TimeForm) -> float:
    """Convert a text or a number to seconds since 1970, as a column of a table with this value is read.

    Raises:
        InputError: If it is no time.
    """
    with suppress(InputError):  # the message is the same for whatever is wrong with it
        if not isinstance(value, str) or is_text(value.strip(WHITE)):
            return parse_time(value, usual=usual)
    raise InputError(f"{where}column {name!r} can't be read as a time; write it as 2026-05-31T13:45:00, or as a number of seconds")


def _written(text: str, name: str, where: str, read: ReadOptions) -> float:
    """A number that is text, as in a column of text in which the options decide the marks.

    The numbers of a column show its decimal mark, but one value alone does not: 12,5 beside 1,250 is another
    number than beside 12,75. So the mark is the one that was given, or else the point, and a comma without an
    option means nothing.
    """
    stripped = text.strip(WHITE)
    comma = read.decimal == "," or read.thousands == "."
    if _PLAIN.fullmatch(stripped) and not comma:
        return float(stripped)
    if stripped and is_text(stripped):
        mark = "," if comma else "."
        found = read_numbers(pl.Series([stripped]), read if read.decimal else replace(read, decimal=mark))
        number: float | None = found.values[0]
        if number is not None:
            if found.marks.decimal not in (None, mark):
                raise InputError(f"{where}column {name!r} is not written with the decimal mark of the run, {mark!r}; give it as a number")
            if "," in stripped and read.decimal is None and read.thousands not in (",", "."):
                raise InputError(
                    f"{where}column {name!r} has a comma, and the run does not say what it means; give it as a number, such as 12.5"
                )
            return number
    raise InputError(f"{where}column {name!r} is text, not a number; write a number")
