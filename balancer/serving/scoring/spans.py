"""Sums over the rows of a context value after a moment, however many rows it has.

What is special: rows are also counted by spans of time, each some times as long as the one before (minutes,
hours, days). A sum after a moment is that of the rows up to the end of its shortest span, of the spans up to
the end of the next longer one, and so on. Rows may be added and removed in any order, which sums kept per row
would not allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

EVER = -1e15
"""A moment before all rows, in seconds."""
CONTEXT = 'tenant = :tenant AND "column" = :column AND value = :value'
"""Condition on the rows of a context value."""


@dataclass(frozen=True)
class Level:
    """A table of sums by spans of one length."""

    table: str
    number: str
    """Column of the number of the span: span n is from n to n + 1 times its length."""
    seconds: int
    """Length of a span; a multiple of that of the level before."""
    where: str = ""
    """Condition on the rows of this level, where a table has several."""


def numbers(levels: Sequence[Level], time: float) -> list[int]:
    """Return the number of the span of each level that has `time`."""
    found = [int(time // levels[0].seconds)]
    for shorter, longer in pairwise(levels):
        found.append(found[-1] // (longer.seconds // shorter.seconds))
    return found


def parts(rows: str, row_sums: str, levels: Sequence[Level], span_sums: str, bound: str) -> list[str]:
    """Build the queries whose results add up to the sums over the rows after a moment.

    Args:
        rows: Table of the rows.
        row_sums: What is selected of the rows.
        levels: Tables of the spans, shortest first.
        span_sums: What is selected of the spans, with the same columns.
        bound: Name of the moment, for `bounds`.
    """
    queries = [f"SELECT {row_sums} FROM {rows} WHERE {CONTEXT} AND time > :{bound} AND time < :{bound}_end"]
    for place, level in enumerate(levels):
        end = f" AND {level.number} < :{bound}_end_{place}" if place + 1 < len(levels) else ""
        where = f" AND {level.where}" if level.where else ""
        queries.append(f"SELECT {span_sums} FROM {level.table} WHERE {CONTEXT}{where} AND {level.number} > :{bound}_{place}{end}")
    return queries


def bounds(levels: Sequence[Level], bound: str, time: float) -> dict[str, float]:
    """Return the values of the parameters in `parts`."""
    found = numbers(levels, time)
    values: dict[str, float] = {bound: time, f"{bound}_end": float((found[0] + 1) * levels[0].seconds)}
    for place, number in enumerate(found):
        values[f"{bound}_{place}"] = number
        if place + 1 < len(found):
            values[f"{bound}_end_{place}"] = (found[place + 1] + 1) * (levels[place + 1].seconds // levels[place].seconds)
    return values
