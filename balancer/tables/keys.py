"""Join columns of a table to one key."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from balancer.tables.joined import JOINED, MISSING


def join_columns(columns: Sequence[pl.Series], name: str) -> pl.Series:
    """Join columns to one key. Rows have the same key only if they have the same value in each column.

    Args:
        columns: (N,) texts each, normal forms of the parts; null is missing.
        name: Name of the result.

    Returns:
        (N,) texts; null where every part is missing.
    """
    if len(columns) == 1:
        return columns[0].alias(name)
    frame = pl.DataFrame([column.alias(str(place)) for place, column in enumerate(columns)])
    every = [pl.col(each) for each in frame.columns]
    texts = [
        each.str.replace_all("\\", "\\\\", literal=True).str.replace_all(JOINED, "\\+", literal=True).fill_null(MISSING) for each in every
    ]
    key = pl.when(~pl.all_horizontal(each.is_null() for each in every)).then(pl.concat_str(texts, separator=JOINED))
    return frame.select(key.alias(name)).to_series()
