"""Number the versions of a context value: whether what a worker remembers of it still holds.

What is special: the row of a value is also its lock. A transaction that changes values writes their rows
first, in one order for all, so that two transactions do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, text

_CHANGED = text(
    'INSERT INTO context_versions (tenant, "column", value, "rows", labels) VALUES (:tenant, :column, :value, :rows, :labels) '
    'ON CONFLICT (tenant, "column", value) DO UPDATE SET "rows" = context_versions."rows" + excluded."rows", '
    "labels = context_versions.labels + excluded.labels"
)


def changed(
    connection: Connection, tenant: str, values: Iterable[tuple[str, str | None]], *, rows: bool = False, labels: bool = False
) -> None:
    """Give context values new versions; other writers of them wait until the end of the transaction.

    Args:
        connection: A transaction that writes. It holds the locks of all entities that it changes.
        tenant: Whose values.
        values: Columns and values; a value of None has no rows and is left out.
        rows: Whether their rows (`context_rows`) change.
        labels: Whether their labels (`labelled`) change.
    """
    named = sorted({(column, value) for column, value in values if value is not None})
    if named:
        added = {"tenant": tenant, "rows": int(rows), "labels": int(labels)}
        connection.execute(_CHANGED, [added | {"column": column, "value": value} for column, value in named])
