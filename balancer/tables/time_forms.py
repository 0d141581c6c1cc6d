"""How a column holds its times, and what reading it gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.tables.numbers import NULL_WORDS

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
CLOCKS = {"hours": "%H", "HHMM": "%H%M", "HHMMSS": "%H%M%S", "seconds": ""}
"""What the digits of a time of day can be, as directives."""
_SAMPLE = 1000

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TimeForm:
    """How a column holds its times: the format of text or of digits, or the unit of numbers."""

    form: str | None = None
    unit: str | None = None
    """One of `SECONDS`, or `excel`."""
    clock: str | None = None
    """What the digits of a time of day in a column of its own are: a key of `CLOCKS`."""

    def __bool__(self) -> bool:
        return self.form is not None or self.unit is not None or self.clock is not None


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


def mask(values: pl.Series) -> Mask:
    """A Boolean column as an array; null is False."""
    return values.fill_null(False).to_numpy()


def sample_of(text: pl.Series) -> pl.Series:
    """Up to 2,000 distinct values: the first ones, and others from the whole column."""
    text = text.drop_nulls()
    return pl.concat([text.head(_SAMPLE), text.gather_every(max(1, len(text) // _SAMPLE))]).unique(maintain_order=True)


def result_of(micro: pl.Series, values: pl.Series, why: str = "", found: TimeForm = TimeForm(), note: str | None = None) -> TimesResult:
    """The result of (N,) microseconds; a value that has none is missing or bad."""
    missing, none = mask(values.is_null()), mask(micro.is_null())
    if (none & ~missing).any() and values.dtype == pl.String:
        missing |= none & mask(values.str.to_lowercase().is_in(sorted(NULL_WORDS)))
    return TimesResult(micro.fill_null(0).to_numpy() / 1e6, missing, none & ~missing, why, found, note)
