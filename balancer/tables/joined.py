"""Columns that together are one column: `card1+addr1` as a key, `date+time` as a time."""

from __future__ import annotations

from collections.abc import Collection

JOINED = "+"


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
