"""The statements of the path that scores, on the bare driver of the database.

What is special: SQLAlchemy builds a cursor and a result for each statement, which cost more than the
statements themselves. Here a statement is a fixed text that both databases accept, lists are one parameter,
and the rows of a batch are written by one statement. On PostgreSQL the statements of a batch are sent
together, so that they cost one journey.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

from sqlalchemy import Connection

Values = Mapping[str, Any]
_PARAMETER = re.compile(r":([a-z_0-9]+)")
_ARRAYS = {"whole": "bigint[]", "float": "double precision[]", "text": "text[]", "bytes": "bytea[]", "flag": "boolean[]", "json": "text[]"}


class Driver:
    """The driver's connection inside a transaction.

    Args:
        connection: A transaction, which its owner commits.
    """

    def __init__(self, connection: Connection) -> None:
        raw: Any = connection.connection.driver_connection
        self.raw = raw
        self.is_sqlite = connection.dialect.name == "sqlite"
        self._cursor = self.raw.cursor()

    def rows(self, statement: str, values: Values | None = None) -> list[tuple[Any, ...]]:
        """Run a statement, and return its rows.

        Args:
            statement: SQL with parameters as `:name`; `ANY(:names)` compares with any element of a list.
            values: Values of the parameters; lists of texts or numbers are allowed.
        """
        cursor = self._cursor
        cursor.execute(*self._prepared(statement, values or {}))
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found

    def together(self, *statements: tuple[str, Values]) -> list[list[tuple[Any, ...]]]:
        """Run statements one after the other, on PostgreSQL in one journey, and return the rows of each."""
        if self.is_sqlite:
            return [self.rows(statement, values) for statement, values in statements]
        with self.raw.pipeline():
            cursors = []
            for statement, values in statements:
                cursors.append(self.raw.cursor())
                cursors[-1].execute(*self._prepared(statement, values))
            return [cursor.fetchall() for cursor in cursors]

    @contextmanager
    def journey(self) -> Iterator[None]:
        """Send the statements inside together; their results may not be read inside."""
        with nullcontext() if self.is_sqlite else self.raw.pipeline():
            yield

    def many(self, statement: str, values: Sequence[Values]) -> None:
        """Run a statement without lists for each of some values."""
        if values:
            self._cursor.executemany(statement if self.is_sqlite else _postgres_text(statement), values)

    def insert(self, table: str, columns: Mapping[str, str], rows: Sequence[tuple[Any, ...]], conflict: str = "") -> None:
        """Insert rows by one statement.

        Args:
            table: Its name.
            columns: Kind of each column: whole, float, text, bytes, flag or json (a text of JSON).
            rows: Values in the order of `columns`; on PostgreSQL no two rows may conflict with each other.
            conflict: What to do where a row exists, `ON CONFLICT ...`.
        """
        if not rows:
            return
        if self.is_sqlite:
            self._cursor.executemany(_sqlite_insert(table, tuple(columns), conflict), rows)
        else:
            self._cursor.execute(
                _postgres_insert(table, tuple(columns.items()), conflict), [list(each) for each in zip(*rows, strict=True)]
            )

    def update(self, table: str, columns: Mapping[str, str], rows: Sequence[tuple[Any, ...]]) -> None:
        """Change rows by one statement.

        Args:
            table: Its name.
            columns: Kind of each column; the first one identifies a row.
            rows: Values in the order of `columns`.
        """
        if not rows:
            return
        if self.is_sqlite:
            self._cursor.executemany(_sqlite_update(table, tuple(columns)), [(*row[1:], row[0]) for row in rows])
        else:
            self._cursor.execute(_postgres_update(table, tuple(columns.items())), [list(each) for each in zip(*rows, strict=True)])

    def _prepared(self, statement: str, values: Values) -> tuple[str, Values]:
        if not self.is_sqlite:
            return _postgres_text(statement), values
        lists = {name: json.dumps(value) for name, value in values.items() if isinstance(value, list)}
        return _sqlite_text(statement), ({**values, **lists} if lists else values)


@cache
def _sqlite_text(statement: str) -> str:
    return re.sub(r"= ANY\(:([a-z_0-9]+)\)", r"IN (SELECT value FROM json_each(:\1))", statement)


@cache
def _postgres_text(statement: str) -> str:
    return _PARAMETER.sub(r"%(\1)s", statement.replace("%", "%%"))


@cache
def _sqlite_insert(table: str, columns: tuple[str, ...], conflict: str) -> str:
    return f"INSERT INTO {table} ({_listed(columns)}) VALUES ({', '.join('?' * len(columns))}) {conflict}"


@cache
def _postgres_insert(table: str, columns: tuple[tuple[str, str], ...], conflict: str) -> str:
    names = _listed(name for name, _ in columns)
    chosen = ", ".join(f'CAST("{name}" AS json)' if kind == "json" else f'"{name}"' for name, kind in columns)
    return f"INSERT INTO {table} ({names}) SELECT {chosen} FROM {_given(columns)} {conflict}"


@cache
def _sqlite_update(table: str, columns: tuple[str, ...]) -> str:
    changes = ", ".join(f'"{name}" = ?' for name in columns[1:])
    return f"UPDATE {table} SET {changes} WHERE {columns[0]} = ?"


@cache
def _postgres_update(table: str, columns: tuple[tuple[str, str], ...]) -> str:
    key, *others = (name for name, _ in columns)
    changes = ", ".join(f'"{name}" = given."{name}"' for name in others)
    return f'UPDATE {table} SET {changes} FROM {_given(columns)} WHERE {table}."{key}" = given."{key}"'


def _given(columns: tuple[tuple[str, str], ...]) -> str:
    """The rows of lists, one for each column, that are sent in binary form where it is shorter."""
    arrays = ", ".join(f"CAST(%{'s' if kind in ('text', 'json') else 'b'} AS {_ARRAYS[kind]})" for _, kind in columns)
    return f"UNNEST({arrays}) AS given ({_listed(name for name, _ in columns)})"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
