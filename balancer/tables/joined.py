"""Columns that together are one column: `card1+addr1` as a key, `date+time` as a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import polars as pl

JOINED = "+"
MISSING = "\\N"
"""A missing part in a joined value. Texts can't be confused with it, because their own backslashes are doubled."""


def parts(name: str, columns: Collection[str]) -> tuple[str, ...]:
    """The columns of the table that `name` stands for.

    Args:
        name: A column of the table, or several names joined by `+`.
        columns: The columns of the table. A column with exactly this name comes first.

    Returns:
        One or more names. A name that is neither comes back as it is, so that the caller can report it.
    """
    if name in columns or JOINED not in name:
        return (name,)
    return tuple(part.strip() for part in name.split(JOINED))


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


def join_texts(texts: Sequence[str | None]) -> str | None:
    """Join the parts of one key, with the result of `join_columns`.

    >>> join_texts(["a", "b+c"]), join_texts(["a+b", "c"]), join_texts(["a", None])
    ('a+b\\\\+c', 'a\\\\+b+c', 'a+\\\\N')
    """
    if len(texts) == 1:
        return texts[0]
    if all(text is None for text in texts):
        return None
    return JOINED.join(MISSING if text is None else text.replace("\\", "\\\\").replace(JOINED, "\\+") for text in texts)
