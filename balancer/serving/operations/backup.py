"""Copy the database of a service to a file, and back.

SQLite copies itself while the service runs, since in its WAL mode a reader does not stop writers. PostgreSQL
is copied by its own programs, pg_dump and pg_restore; the password is given to them in their environment,
never as an argument.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

from sqlalchemy import inspect

from balancer.errors import InputError, MissingFileError, UnwritableFileError, reason_of
from balancer.files import atomic_path, check_new_file
from balancer.serving.operations.migration import Revisions, revisions
from balancer.serving.storage.database import Database

SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"
_MAGIC = {b"SQLite format 3\0": SQLITE, b"PGDMP": POSTGRESQL}
_PROGRAMS = "/usr/lib/postgresql"
"""Where Debian installs the programs of PostgreSQL, by version."""


def backup(database: Database, target: Path, *, overwrite: bool = False) -> Revisions:
    """Write a database to a file that only its owner can read; the service may be running.

    Args:
        database: The database.
        target: The file.
        overwrite: Whether an existing file may be replaced.

    Returns:
        The revision of its tables.

    Raises:
        InputError: The file exists or can't be written, or the programs of PostgreSQL are missing or fail.
    """
    file = database.engine.url.database
    check_new_file(target, "FILE", overwrite=overwrite, inputs={"--database": Path(str(file)) if database.is_sqlite else None})
    found = revisions(database)
    if found.current is None:
        raise InputError(f"--database {database.shown} has no tables, so there is nothing to back up; check the name")
    with atomic_path(target, private=True) as temporary:
        if database.is_sqlite:
            _copy_sqlite(Path(str(file)), temporary)
        else:
            program = _program("pg_dump")
            _run(database, program, "--format=custom", "--no-owner", "--no-privileges", f"--file={temporary}")
    return found


def restore(database: Database, source: Path, *, overwrite: bool = False) -> Revisions:
    """Fill a database from a file of `backup`.

    Args:
        database: The database, without tables; no service may be running on it.
        source: The file.
        overwrite: Whether tables that are there are replaced.

    Returns:
        The revision of the tables that were restored.

    Raises:
        InputError: The file is no backup or one of the other database, there are tables already, or the
            programs of PostgreSQL are missing or fail.
    """
    kind = kind_of(source)
    wanted = SQLITE if database.is_sqlite else POSTGRESQL
    if kind != wanted:
        raise InputError(f"{source} is a backup of {kind}, and --database {database.shown} is {wanted}: name a database of {kind}")
    tables = database.read(lambda connection: inspect(connection).get_table_names())
    if tables and not overwrite:
        raise InputError(
            f"--database {database.shown} has tables already: stop the service and add --overwrite to replace them, or name another database"
        )
    if kind == SQLITE:
        file = Path(str(database.engine.url.database))
        if file.exists() and file.samefile(source):
            raise InputError(f"{source} is the database itself: give the file of a backup")
        _check_sound(source)
        database.close()
        try:
            file.touch(mode=0o600)
        except OSError as error:
            raise UnwritableFileError(
                f"--database {database.shown} can't be written ({reason_of(error)}): check its permissions"
            ) from error
        _copy_sqlite(source, file)
    else:
        program = _program("pg_restore")
        database.close()
        clean = ("--clean", "--if-exists") if tables else ()
        _run(database, program, "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", *clean, str(source))
    return revisions(database)


def kind_of(source: Path) -> str:
    """Return which database a backup is of.

    Raises:
        InputError: There is no such file, or it is no backup.
    """
    if not source.is_file():
        raise MissingFileError(f"{source} does not exist: check the path of the backup")
    with source.open("rb") as file:
        begin = file.read(16)
    for magic, kind in _MAGIC.items():
        if begin.startswith(magic):
            return kind
    raise InputError(f"{source} is no backup: give a file that balancer service backup wrote")


def _check_sound(source: Path) -> None:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as connection:
            sound = connection.execute("PRAGMA quick_check").fetchone()[0] == "ok"
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError as error:
        raise InputError(f"{source} is damaged or not complete: restore another backup") from error
    if not sound:
        raise InputError(f"{source} is damaged: restore another backup")
    if "alembic_version" not in tables:
        raise InputError(f"{source} is an SQLite file, but not of this service: give a file that balancer service backup wrote")


def _copy_sqlite(source: Path, target: Path) -> None:
    """Copy all pages in one transaction, so that an interrupted copy changes nothing."""
    try:
        with (
            contextlib.closing(sqlite3.connect(source, timeout=30)) as old,
            contextlib.closing(sqlite3.connect(target, timeout=5)) as new,
        ):
            old.backup(new)
            new.execute("PRAGMA journal_mode = DELETE")  # one file; the service turns its WAL on again
    except sqlite3.DatabaseError as error:
        busy = "locked" in str(error) or "busy" in str(error)
        what = "is in use; stop the service first" if busy else "can't be written; check the space on its disk and its permissions"
        raise InputError(f"{target} {what}") from error


def _program(name: str) -> str:
    """The path of a program of PostgreSQL, the newest of several.

    Raises:
        InputError: It is not installed.
    """
    found = sorted(Path(_PROGRAMS).glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]) if path.parts[-3].isdecimal() else 0.0)
    path = str(found[-1]) if found else shutil.which(name)
    if path is None:
        raise InputError(f"{name} is not installed here: install the client programs of PostgreSQL (Debian: postgresql-client)")
    return path


def _run(database: Database, program: str, *arguments: str) -> None:
    """Run a program of PostgreSQL on the database.

    Raises:
        InputError: It failed.
    """
    url = database.engine.url
    query = {name: value for name, value in url.query.items() if isinstance(value, str)}
    given = {
        "PGHOST": url.host or query.get("host"),
        "PGPORT": None if url.port is None else str(url.port),
        "PGUSER": url.username,
        "PGPASSWORD": None if url.password is None else str(url.password),
        "PGSSLMODE": query.get("sslmode"),
        "PGSSLROOTCERT": query.get("sslrootcert"),
    }
    environment = os.environ | {name: value for name, value in given.items() if value is not None}
    name = str(url.database).replace("\\", "\\\\").replace("'", "\\'")
    command = [program, f"--dbname=dbname='{name}'", "--no-password", *arguments]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise InputError(
            f"{Path(program).name} failed on {database.shown} ({said.partition('error: ')[2] or said}): "
            "check that it is running, that this user may do it, and that the program is not older than the server"
        )
