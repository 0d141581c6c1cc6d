"""Lock entities and context values for a batch, in one order, so that two batches never wait for each other.

SQLite has one writer at a time and needs no locks. There the statements only read and change versions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from balancer.serving.storage.driver import Driver

_FOUND = 'SELECT id, name, "rows", version FROM entities WHERE tenant = :tenant AND name = ANY(:names) ORDER BY name'
_NEW = {
    "tenant": "text",
    "name": "text",
    "rows": "whole",
    "sum_cos": "whole",
    "sum_sin": "whole",
    "sum_level": "whole",
    "sum_square": "whole",
    "sum_amount": "float",
}
_CHANGE = (
    'ON CONFLICT (tenant, "column", value) DO UPDATE SET "rows" = context_versions."rows" + 1 RETURNING "column", value, "rows" - 1, labels'
)
_SQLITE_CHANGE = (
    'INSERT INTO context_versions (tenant, "column", value, "rows", labels) '
    "SELECT :tenant, json_extract(value, '$[0]'), json_extract(value, '$[1]'), 1, 0 FROM json_each(:pairs) WHERE true " + _CHANGE
)
_POSTGRES_CHANGE = (
    'INSERT INTO context_versions (tenant, "column", value, "rows", labels) SELECT :tenant, given."column", given.value, 1, 0 '
    'FROM UNNEST(CAST(:columns AS text[]), CAST(:texts AS text[])) AS given ("column", value) ' + _CHANGE
)
_VERSIONS = (
    'SELECT "column", value, "rows", labels FROM context_versions WHERE tenant = :tenant AND "column" = :column AND value = ANY(:texts)'
)


def lock_entities(driver: Driver, tenant: str, names: Sequence[str]) -> list[tuple[int, str, int, int]]:
    """Lock entities until the end of the transaction, and create those that do not exist.

    Args:
        driver: A transaction that writes.
        tenant: Whose entities.
        names: Different names, sorted.

    Returns:
        Id, name, number of rows and version of each.
    """
    statement = _FOUND if driver.is_sqlite else f"{_FOUND} FOR UPDATE"
    found = driver.rows(statement, {"tenant": tenant, "names": list(names)})
    known = {row[1] for row in found}
    new = [name for name in names if name not in known]
    if new:
        driver.insert("entities", _NEW, [(tenant, name, 0, 0, 0, 0, 0, 0.0) for name in new], "ON CONFLICT DO NOTHING")
        found += driver.rows(statement, {"tenant": tenant, "names": new})
    return [(int(row[0]), row[1], int(row[2]), int(row[3])) for row in found]


def lock_values(
    driver: Driver, tenant: str, values: Sequence[tuple[str, str]], active: Collection[str]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Lock context values until the end of the transaction, and change the versions of their rows.

    Args:
        driver: A transaction that writes.
        tenant: Whose values.
        values: Columns and values, different and sorted.
        active: The columns whose values get rows. Those of other columns are neither locked nor changed.

    Returns:
        Version of the rows before the change, and of the labels, by column and value.
    """
    versions = dict.fromkeys(values, (0, 0))
    changed = [pair for pair in values if pair[0] in active]
    found: list[tuple[str, str, int, int]] = []
    if changed and driver.is_sqlite:
        found += driver.rows(_SQLITE_CHANGE, {"tenant": tenant, "pairs": json.dumps(changed)})
    elif changed:
        columns, texts = [column for column, _ in changed], [value for _, value in changed]
        found += driver.rows(_POSTGRES_CHANGE, {"tenant": tenant, "columns": columns, "texts": texts})
    for column in {column for column, _ in values} - set(active):
        texts = [value for each, value in values if each == column]
        found += driver.rows(_VERSIONS, {"tenant": tenant, "column": column, "texts": texts})
    return versions | {(column, value): (int(rows), int(labels)) for column, value, rows, labels in found}
