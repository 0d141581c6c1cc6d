"""Columns that together are one column: `card1+addr1` as a key, `date+time` as a time.

This module needs no polars, because the flags of commands are read with it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

JOINED = "+"
MISSING = "\\N"
"""A missing part in a joined value. No text is the same, because backslashes of texts are doubled."""


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


def join_texts(texts: Sequence[str | None]) -> str | None:
    """Join the parts of one key, with the result of `balancer.tables.keys.join_columns`.

    >>> join_texts(["a", "b+c"]), join_texts(["a+b", "c"]), join_texts(["a", None])
    ('a+b\\\\+c', 'a\\\\+b+c', 'a+\\\\N')
    """
    if len(texts) == 1:
        return texts[0]
    if all(text is None for text in texts):
        return None
    return JOINED.join(MISSING if text is None else text.replace("\\", "\\\\").replace(JOINED, "\\+") for text in texts)
