"""Codes of texts: their positions among sorted distinct values."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

Codes = NDArray[np.int32]


def distinct_names(values: pl.Series) -> pl.Series:
    """The distinct texts without null, sorted as :func:`balancer.data.schema.distinct` sorts them."""
    return values.drop_nulls().unique().sort()


def coded(values: pl.Series, names: pl.Series) -> Codes:
    """(N,) position of each text in sorted distinct `names`; -1 where null or not among them."""
    if not len(names):
        return np.full(len(values), -1, np.int32)
    codes = values.cast(pl.Enum(names), strict=False).to_physical().cast(pl.Int32)
    return codes.fill_null(-1).to_numpy()


def translated(codes: Codes, table: Codes) -> Codes:
    """(N,) codes of another list of names.

    Args:
        codes: (N,) codes; -1 is null.
        table: (D,) the other code of each.
    """
    return np.append(table, np.int32(-1))[codes]


def cuts_of(counts: NDArray[np.int64], parts: int) -> NDArray[np.int64]:
    """Cut codes into ranges with about the same number of rows.

    Args:
        counts: (D,) rows of each code.
        parts: Number of ranges; with fewer codes, or a code of many rows, some are empty.

    Returns:
        (parts + 1,) first code of each range, and D.
    """
    total = np.cumsum(counts)
    wanted = (int(counts.sum()) * np.arange(1, parts, dtype=np.int64)) // parts
    # The code at which the rows before it come nearest to what is wanted.
    after = np.searchsorted(total, wanted, side="left")
    before = np.concatenate((np.zeros(1, np.int64), total))
    low, high = np.abs(before[after] - wanted), np.abs(before[np.minimum(after + 1, len(total))] - wanted)
    inner = np.where(high < low, np.minimum(after + 1, len(total)), after)
    return np.concatenate((np.zeros(1, np.int64), np.maximum.accumulate(inner), np.array([len(counts)])))
