"""The statements of the path that scores, on the bare driver of the database.

What is special: SQLAlchemy builds a cursor and a result for each statement, which cost more than the
statements themselves. Here a statement is a fixed text that both databases accept, lists are one parameter,
and the rows of a batch are written by one statement. On PostgreSQL the statements of a batch are sent
together, so that they cost one journey.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

Values = Mapping[str, Any]
_PARAMETER = re.compile(r":([a-z_0-9]+)")
_TYPES = {"whole": "bigint", "float": "double precision", "text": "text", "bytes": "text", "flag": "boolean", "json": "text"}

_ENCODE = msgspec.json.Encoder().encode


class Change(NamedTuple):
    """Rows to insert into a table, or to change there."""

    table: str
    columns: Mapping[str, str]
    """Kind of each column: whole, float, text, bytes, flag or json (a text of JSON)."""
    rows: Sequence[tuple[Any, ...]]
    """Values in the order of the columns."""
    conflict: str = ""
    """What to do where a row exists, `ON CONFLICT ...`."""
    key: str | None = None
    """The first column, if rows that exist are changed; None: rows are inserted."""


class Driver:
    """The driver's connection inside a transaction.

    Args:
        connection: A transaction, which its owner commits.
    """

    def __init__(self, connection: Connection) -> None:
        raw: Any = connection.connection.driver_connection
        self.raw = raw
        self.is_sqlite = connection.dialect.name == "sqlite"
        self._connection = connection
        self._cursor = self.raw.cursor()

    def rows(self, statement: str, values: Values | None = None) -> list[tuple[Any, ...]]:
        """Run a statement, and return its rows.

        Args:
            statement: SQL with parameters as `:name`; `ANY(:names)` compares with any element of a list.
            values: Values of the parameters; lists of texts or numbers are allowed.
        """
        with self._explained():
            self._cursor.execute(*self._prepared(statement, values or {}))
            found: list[tuple[Any, ...]] = self._cursor.fetchall()
            return found

    def together(self, *statements: tuple[str, Values]) -> list[list[tuple[Any, ...]]]:
        """Run statements one after the other, on PostgreSQL in one journey, and return the rows of each."""
        if self.is_sqlite:
            return [self.rows(statement, values) for statement, values in statements]
        with self._explained(), self.raw.pipeline():
            cursors = []
            for statement, values in statements:
                cursors.append(self.raw.cursor())
                cursors[-1].execute(*self._prepared(statement, values))
            return [cursor.fetchall() for cursor in cursors]

    def many(self, statement: str, values: Sequence[Values]) -> None:
        """Run a statement without lists for each of some values."""
        with self._explained():
            if values:
                self._cursor.executemany(statement if self.is_sqlite else _postgres_text(statement), values)

    def write(self, *changes: Change) -> None:
        """Insert or change rows of some tables, on PostgreSQL by one statement for all.

        On PostgreSQL no two rows of a change may have the same key.
        """
        changes = tuple(change for change in changes if change.rows)
        with self._explained():
            if self.is_sqlite:
                for change in changes:
                    self._cursor.executemany(*_sqlite_write(change))
            elif changes:
                statement = _postgres_write(tuple((each.table, tuple(each.columns.items()), each.conflict, each.key) for each in changes))
                # psycopg would look for parameters in this long text again and again.
                cursor = self._connection.dialect.loaded_dbapi.RawCursor(self.raw)
                cursor.execute(statement, [given for each in changes for given in _lists(each.columns, each.rows)])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise the driver's errors as those of SQLAlchemy, which `Database` knows."""
        dialect = self._connection.dialect
        try:
            yield
        except dialect.loaded_dbapi.Error as error:
            is_lost = dialect.is_disconnect(error, self.raw, None)
            if is_lost:
                self._connection.invalidate(error)
            raise DBAPIError.instance(
                None, None, error, dialect.loaded_dbapi.Error, connection_invalidated=is_lost, dialect=dialect
            ) from error

    def _prepared(self, statement: str, values: Values) -> tuple[str, Values]:
        if not self.is_sqlite:
            return _postgres_text(statement), values
        lists = {name: _ENCODE(value).decode() for name, value in values.items() if isinstance(value, list)}
        return _sqlite_text(statement), ({**values, **lists} if lists else values)


def each_of(elements: str, lookup: str) -> str:
    """A statement of PostgreSQL that looks up each element of a list by an index, in the order of the list.

    With `= ANY(list)` the server may read all rows of a tenant. It decides this while a table is small, and
    keeps the plan when the table has grown.

    Args:
        elements: Name of the parameter with the list of texts.
        lookup: A SELECT for one element, which is `given.element`.
    """
    return f"SELECT found.* FROM UNNEST(CAST(:{elements} AS text[])) AS given (element) CROSS JOIN LATERAL ({lookup}) AS found"


@cache
def _sqlite_text(statement: str) -> str:
    return re.sub(r"= ANY\(:([a-z_0-9]+)\)", r"IN (SELECT value FROM json_each(:\1))", statement)


@cache
def _postgres_text(statement: str) -> str:
    return _PARAMETER.sub(r"%(\1)s", statement.replace("%", "%%"))


def _sqlite_write(change: Change) -> tuple[str, Sequence[tuple[Any, ...]]]:
    """The statement of a change, and its parameters by row."""
    columns = tuple(change.columns)
    if change.key is None:
        return _sqlite_insert(change.table, columns, change.conflict), change.rows
    return _sqlite_update(change.table, columns), [(*row[1:], row[0]) for row in change.rows]


@cache
def _sqlite_insert(table: str, columns: tuple[str, ...], conflict: str) -> str:
    return f"INSERT INTO {table} ({_listed(columns)}) VALUES ({', '.join('?' * len(columns))}) {conflict}"


@cache
def _sqlite_update(table: str, columns: tuple[str, ...]) -> str:
    changes = ", ".join(f'"{name}" = ?' for name in columns[1:])
    return f"UPDATE {table} SET {changes} WHERE {columns[0]} = ?"


@cache
def _postgres_write(changes: tuple[tuple[str, tuple[tuple[str, str], ...], str, str | None], ...]) -> str:
    parts: list[str] = []
    first = 1  # number of the next parameter
    for table, columns, conflict, key in changes:
        given = _given(columns, first)
        first += len(columns)
        if key is None:
            names, chosen = _listed(name for name, _ in columns), ", ".join(_converted(*each) for each in columns)
            parts.append(f"INSERT INTO {table} ({names}) SELECT {chosen} FROM {given} {conflict}")
        else:
            new = ", ".join(f'"{name}" = {_converted(name, kind)}' for name, kind in columns[1:])
            parts.append(f'UPDATE {table} SET {new} FROM {given} WHERE {table}."{key}" = given."{key}"')
    *earlier, last = parts
    steps = ", ".join(f"step_{number} AS ({part})" for number, part in enumerate(earlier))
    return f"WITH {steps} {last}" if steps else last


def _given(columns: tuple[tuple[str, str], ...], first: int) -> str:
    """The rows of lists, one for each column, that are the parameters from number `first` on."""
    arrays = ", ".join(f"CAST(${number} AS {_TYPES[kind]}[])" for number, (_, kind) in enumerate(columns, first))
    return f"UNNEST({arrays}) AS given ({_listed(name for name, _ in columns)})"


def _converted(name: str, kind: str) -> str:
    """A column of `_given` in its own type."""
    column = f'given."{name}"'
    return f"CAST({column} AS json)" if kind == "json" else f"DECODE({column}, 'hex')" if kind == "bytes" else column


def _lists(columns: Mapping[str, str], rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Write the values of each column as an array of PostgreSQL, which psycopg does four times as slowly."""
    return [
        "{" + ",".join("NULL" if value is None else _WRITERS[kind](value) for value in values) + "}"
        for values, kind in zip(zip(*rows, strict=True), columns.values(), strict=True)
    ]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


_WRITERS: dict[str, Callable[[Any], str]] = {
    "whole": str,
    "float": lambda value: repr(float(value)),  # the shortest text that gives the same number again
    "text": _quoted,
    "json": _quoted,
    "bytes": lambda value: f'"{value.hex()}"',  # quoted, because nothing is no element
    "flag": lambda value: "t" if value else "f",
}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
