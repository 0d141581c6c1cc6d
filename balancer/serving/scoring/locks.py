"""Lock entities and context values for a batch, in one order, so that two batches do not wait for each other.

There is one exception: an entity that a worker remembers was erased by another one. It is then created after
the values are locked. If two batches then wait for each other, PostgreSQL ends one, which is tried again.

SQLite has one writer at a time and needs no locks. There the statements only read and change versions.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from balancer.serving.storage.driver import Change, Driver, each_of

_FOUND = 'SELECT id, name, "rows", version FROM entities WHERE tenant = :tenant AND name = ANY(:names) ORDER BY name'
_POSTGRES_FOUND = each_of(
    "names", 'SELECT id, name, "rows", version FROM entities WHERE tenant = :tenant AND name = given.element FOR UPDATE'
)
_BY_INDEX = "SELECT set_config('enable_seqscan', 'off', true)"
"""Until the end of the transaction the server reads single rows by an index, as `each_of` explains."""
_NEW = {
    "tenant": "text",
    "name": "text",
    "rows": "whole",
    "sum_cos": "whole",
    "sum_sin": "whole",
    "sum_level": "whole",
    "sum_square": "whole",
    "sum_amount": "float",
    "version": "whole",
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
_POSTGRES_VERSIONS = each_of(
    "texts",
    'SELECT "column", value, "rows", labels FROM context_versions WHERE tenant = :tenant AND "column" = :column AND value = given.element',
)

Values = list[tuple[str, str]]
Statement = tuple[str, Any]


class Locked(NamedTuple):
    """What a batch has locked."""

    entities: list[tuple[int, str, int, int]]
    """Id, name, number of rows and version of the entities that exist."""
    versions: dict[tuple[str, str], tuple[int, int]] | None
    """Version of the rows before the change, and of the labels, by column and value; None: not locked yet."""
    rows: list[tuple[Any, ...]]
    """The rows of the further statement."""


def lock(driver: Driver, tenant: str, names: Sequence[str], values: Values | None, active: Collection[str], further: Statement) -> Locked:
    """Lock entities, and perhaps context values, until the end of the transaction, and read more.

    Args:
        driver: A transaction that writes.
        tenant: Whose entities and values.
        names: Different names of entities, sorted.
        values: As for `lock_values`. None where entities may have to be created first: they come before the
            values in the order of locks.
        active: As for `lock_values`.
        further: Another statement and its parameters.
    """
    statements = _of_values(driver, tenant, values or [], active)
    found: Statement = (_found(driver), {"tenant": tenant, "names": list(names)})
    first: list[Statement] = [] if driver.is_sqlite else [(_BY_INDEX, {})]
    results = driver.together(*first, found, *statements, further)
    entities, *versions, rows = results[len(first) :]
    return Locked(_entities(entities), None if values is None else _versions(values, versions), rows)


def lock_values(driver: Driver, tenant: str, values: Values, active: Collection[str]) -> dict[tuple[str, str], tuple[int, int]]:
    """Lock context values until the end of the transaction, after all entities.

    Args:
        driver: A transaction that writes.
        tenant: Whose values.
        values: Columns and values, different and sorted.
        active: The columns whose values get rows; the versions of their rows are changed. Those of other
            columns are only read.

    Returns:
        As in `Locked`.
    """
    return _versions(values, driver.together(*_of_values(driver, tenant, values, active)))


def _of_values(driver: Driver, tenant: str, values: Values, active: Collection[str]) -> list[Statement]:
    """The statements that lock context values, or only read them."""
    statements: list[Statement] = []
    changed = [pair for pair in values if pair[0] in active]
    if changed and driver.is_sqlite:
        statements.append((_SQLITE_CHANGE, {"tenant": tenant, "pairs": json.dumps(changed)}))
    elif changed:
        columns, texts = [column for column, _ in changed], [value for _, value in changed]
        statements.append((_POSTGRES_CHANGE, {"tenant": tenant, "columns": columns, "texts": texts}))
    for column in {column for column, _ in values} - set(active):
        texts = [value for each, value in values if each == column]
        statements.append((_VERSIONS if driver.is_sqlite else _POSTGRES_VERSIONS, {"tenant": tenant, "column": column, "texts": texts}))
    return statements


def _versions(values: Values, results: Sequence[list[tuple[Any, ...]]]) -> dict[tuple[str, str], tuple[int, int]]:
    found = {(column, value): (int(rows), int(labels)) for each in results for column, value, rows, labels in each}
    return dict.fromkeys(values, (0, 0)) | found


def create(driver: Driver, tenant: str, names: Sequence[str]) -> list[tuple[int, str, int, int]]:
    """Create entities, unless another worker just has, and lock them; the result is as in `Locked`."""
    # An entity that was erased and comes back may get the same id. Its version tells workers that it is new.
    rows = [(tenant, name, 0, 0, 0, 0, 0, 0.0, secrets.randbits(48)) for name in sorted(names)]
    driver.write(Change("entities", _NEW, rows, "ON CONFLICT DO NOTHING"))
    return _entities(driver.rows(_found(driver), {"tenant": tenant, "names": list(names)}))


def _found(driver: Driver) -> str:
    return _FOUND if driver.is_sqlite else _POSTGRES_FOUND


def _entities(rows: list[tuple[Any, ...]]) -> list[tuple[int, str, int, int]]:
    return [(int(row[0]), row[1], int(row[2]), int(row[3])) for row in rows]
