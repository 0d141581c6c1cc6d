"""Which column is the time of day beside one of dates: `hour`, `hhmm` or SAP's `CPUTM` hold only digits."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from balancer.data.role_names import plain_name
from balancer.tables.clock import clock_digits
from balancer.tables.profile import ColumnProfile

_NAME = re.compile(
    r"(?:(?:tx|txn|trx|trans|transaction|event|payment|purchase|order|booking|entry|posting|posted|created|local|the)_?)?"
    r"(?:hour|hours|hr|hh|hhmm|hh_mm|hhmmss|time|tm|clock|uhrzeit|zeit|stunde|hora|heure|ora|godzina|cputm|utime|uzeit|erzet)"
    r"(?:_?(?:of_day|hhmm|hhmmss|of_transaction|num|int|24))?"
)
"""Plain names of times of day; the last ones are those of SAP."""


def clock_columns(sample: pl.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns that are times of day in digits, by their name and all their values.

    Args:
        sample: Rows of the table.
        names: Columns to choose from.
    """
    found = []
    for name in names:
        dtype = sample.schema[name]
        if _NAME.fullmatch(plain_name(name)) and (dtype == pl.String or dtype.is_numeric()) and clock_digits(sample[name]) is not None:
            found.append(name)
    return found


def time_reason(column: ColumnProfile, time: str) -> str:
    """Why a column is the time, or a part of it.

    Args:
        column: Its profile.
        time: The column of the time, or the joined ones.
    """
    alone = column.name == time
    digits = "by its name" if alone else "times of day by name and values"
    what = {"date": "dates and times" if column.clock else "dates", "time": "times of day"}.get(column.kind, digits)
    return what if alone else f"{what}, part of {time}"
