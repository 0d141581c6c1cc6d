"""Read text by a format that was given, and say what is wrong with a format or with its absence."""

from __future__ import annotations

import re

import numpy as np
import polars as pl

from balancer.errors import InputError
from balancer.names import quoted
from balancer.tables.time_forms import TimeForm, TimesResult, mask, result_of
from balancer.tables.time_text import formats_of, missing_directive, read_text, shown_format

AS_TRAINED = "write times as the table of training does"
_RARE = ("%G-W%V-%u", "%GW%V%u", "%Y-%j", "%Y/%j", "%Y.%j")
"""Formats that no column is read by unless they are given."""
_ZONE_WORD = re.compile(r" ([A-Z]{3,4})(?= \d{4}$)")


def by_format(text: pl.Series, form: str, given: str) -> TimesResult:
    """Read (N,) text by the format `form`, which the user wrote as `given`.

    Raises:
        InputError: If the format names no day, or reads no row.
    """
    lacks = missing_directive(form)
    if lacks in ("year", "month"):
        raise InputError(f"--time-format {given!r} has no {lacks}: give the format of a whole date, such as %d/%m/%Y %H:%M")
    micro = read_text(text, form)
    result = result_of(micro, text, f"can't be read by --time-format {given!r}", TimeForm(form))
    if result.bad.any() and not (~(result.bad | result.missing)).any():
        row = int(np.argmax(result.bad))
        raise InputError(
            f"column {text.name!r}: --time-format {given!r} reads no row; the first is {quoted(text[row])} (row {row + 1}): correct the format, "
            "or leave it out"
        )
    return result


def ambiguous(text: pl.Series, form: str, rival: str, *, flags: bool) -> InputError:
    """The error of a column that two formats read as different times."""
    row = int(np.argmax(mask(read_text(text, form) != read_text(text, rival))))
    forms = " or ".join(repr(shown_format(each, text)) for each in (form, rival))
    remedy = "say which with --time-format" if flags else AS_TRAINED
    return InputError(f"column {text.name!r}: {text[row]!r} can be read as {forms}, and so can every row: {remedy}")


def unreadable(sample: pl.Series, *, flags: bool) -> InputError:
    """The error of text (n distinct values) that no usual format reads; it names a format that does."""
    first = sample[0]
    usual = "write times as 2024-05-31 13:45:00, or as a number of seconds" if flags else AS_TRAINED
    found = next((form for form in _proposals(first) if read_text(sample, form).null_count() <= 0.1 * len(sample)), None)
    remedy = f'give --time-format "{shown_format(found, sample)}", or {usual}' if flags and found else usual
    if re.search(r"[^\W\d_]{3,}", first) and re.search(r"\d", first) and not found:
        remedy += "; names of months are read in English only"
    return InputError(f"column {sample.name!r}: {quoted(first)} can't be read as a time: {remedy}")


def _proposals(text: str) -> list[str]:
    """Formats that may read a text in which other characters stand around a time."""
    found = list(_RARE)
    zone = _ZONE_WORD.search(text)
    if zone is not None:
        found += [form.replace(" %Y", f" {zone[1]} %Y") for form in formats_of(_ZONE_WORD.sub("", text))]
    edges = [
        place for place in range(len(text) + 1) if place in (0, len(text)) or not (text[place - 1].isalnum() and text[place].isalnum())
    ]
    spans = sorted(((start, stop) for start in edges for stop in edges if stop - start >= 8), key=lambda span: span[0] - span[1])
    for start, stop in spans:
        for form in formats_of(text[start:stop]):
            found.append(text[:start].replace("%", "%%") + form + text[stop:].replace("%", "%%"))
    return found
