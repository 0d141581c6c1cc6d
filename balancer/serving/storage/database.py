"""Transactions on SQLite or PostgreSQL, repeated when the database is unavailable or transactions conflict.

What is special: work is a function of a connection and runs in one transaction. The transaction happens
completely or not at all, so it can be repeated after a lost connection, a deadlock or a restart of the
database. What must not count twice is recognised by its id (scoring) or its number (sessions). On SQLite a
writer locks the database at the beginning (BEGIN IMMEDIATE), so that what it reads stays valid until it has
written. Work for a request begins in time or not at all (`Deadline`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from balancer.dependencies import require
from balancer.errors import InputError
from balancer.serving import tracing
from balancer.serving.metrics import DATABASE_SECONDS
from balancer.serving.storage.deadline import REQUEST
from balancer.serving.storage.disk import has_room, is_disk_full
from balancer.serving.storage.sqlite import Checkpoints, sqlite_engine, truncated
from balancer.serving.storage.troubles import reason_of

Result = TypeVar("Result")
POOL = 8
"""Connections per process, which is also the number of requests that it processes at once."""
MAX_CONFLICTS = 5
"""Attempts before a row that already exists is an error."""
SCHEMA_LOCK = 7_216_302
"""Number of the advisory lock of PostgreSQL that is held while tables are created."""


class UnavailableError(RuntimeError):
    """The database was not reached in time; repeating the work is safe."""


class DiskFullError(UnavailableError):
    """The database can't write to its disk; nothing was stored."""


class Database:
    """The connections of one process to a database.

    Args:
        url: `sqlite:///file.db`, or `postgresql://user:password@host/name`.
        patience: Seconds to keep trying while the database is unavailable.
        statement_seconds: Most seconds of one statement on PostgreSQL; 0 for no limit, for commands that read
            or change much at once.
        connections: Most connections.
    """

    def __init__(self, url: str, *, patience: float = 20.0, statement_seconds: float = 0.0, connections: int = POOL) -> None:
        self.patience = patience
        self.engine = _engine(
            url, statement_seconds, {"pool_size": connections, "max_overflow": 0, "pool_timeout": max(1.0, patience), "pool_use_lifo": True}
        )
        self._given = make_url(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self.disk_full = False
        """Whether the last write failed because the disk is full."""
        file = self.engine.url.database
        self._checkpoints = Checkpoints(file) if self.is_sqlite and file is not None else None

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in a transaction that does not write, and return its result."""
        return self._run(work, write=False)

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in a transaction and return its result; attempts that fail have no effect."""
        return self._run(work, write=True)

    def _run(self, work: Callable[[Connection], Result], *, write: bool) -> Result:
        begun, kind = time.perf_counter(), "write" if write else "read"
        try:
            return self._tried(work, write=write)
        finally:
            seconds = time.perf_counter() - begun
            DATABASE_SECONDS.labels(kind).observe(seconds)
            tracing.record(f"database {kind}", seconds)

    def _tried(self, work: Callable[[Connection], Result], *, write: bool) -> Result:
        deadline, pause, conflicts = time.monotonic() + self.patience, 0.01, 0
        request = REQUEST.get()
        if request is not None:
            if not request.begin():
                raise UnavailableError("the request waited too long to begin")
            deadline = min(deadline, request.end_by)
        while True:
            try:
                with self.engine.connect().execution_options(balancer_write=write) as connection, connection.begin():
                    result = work(connection)
                if write:
                    self.disk_full = False
                    if self._checkpoints is not None:
                        self._checkpoints.committed()
                return result
            except IntegrityError:
                # Another transaction has created the same row since this one read; the next attempt sees it.
                conflicts += 1
                if conflicts == MAX_CONFLICTS:
                    raise
            except PoolTimeoutError as error:
                raise UnavailableError("all connections to the database were in use") from error
            except DBAPIError as error:
                if is_disk_full(error):
                    self.disk_full = True
                    raise DiskFullError(
                        "the disk of the database is full or can't be written, so nothing was stored; free space on it"
                    ) from error
                if not _is_transient(error):
                    raise
                if time.monotonic() + pause > deadline:
                    raise UnavailableError("the database did not answer in time") from error
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def erased(self, seconds: float = 1.0) -> bool:
        """Overwrite deleted rows also where the database keeps them longer, on SQLite in its write-ahead log.

        Call this after the transaction of an erasure.

        Args:
            seconds: Most seconds to wait. What takes longer is done in a thread.

        Returns:
            Whether it is done.
        """
        return self._checkpoints is None or self._checkpoints.truncate(seconds)

    def has_room(self, *, probe: bool) -> bool:
        """Whether the database can write to its disk.

        Args:
            probe: Whether to find out by writing. Otherwise only the free space of a file's disk counts.
        """
        file = self.engine.url.database
        if self.is_sqlite and file is not None:
            return has_room(Path(file).absolute().parent, probe=probe)
        return not probe or self._can_write()

    def _can_write(self) -> bool:
        """Whether PostgreSQL can write a table of about a megabyte, which is given up at once."""
        try:
            with self.engine.connect() as connection:
                connection.execute(text("CREATE TEMPORARY TABLE room AS SELECT md5(random()::text) FROM generate_series(1, 20000)"))
                connection.rollback()
        except DBAPIError:
            return False
        return True

    def upgrade(self) -> None:
        """Create or upgrade the tables; several processes may call this at once.

        Raises:
            InputError: If the database can't be opened, or was created by a newer version.
        """

        def work(connection: Connection) -> None:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SCHEMA_LOCK})
            if MigrationContext.configure(connection).get_current_revision() != head_revision():
                config = alembic_config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

        try:
            self.write(work)
            file = self.engine.url.database
            if self.is_sqlite and file is not None:
                truncated(file)  # an erasure may have been interrupted before this was done
        except (UnavailableError, DBAPIError) as error:
            raise InputError(self.explained(error)) from error
        except Exception as error:
            if "Can't locate revision" in str(error):
                raise InputError(
                    f"--database {self.shown} was created by a newer version of balancer; install that version, or name another database"
                ) from error
            raise

    def ready(self) -> bool:
        """Whether the database answers and has the tables of this version."""
        return self.read(lambda connection: MigrationContext.configure(connection).get_current_revision()) == head_revision()

    @property
    def shown(self) -> str:
        """The URL as it was given, without the password."""
        url = self._given
        hidden = {name: "***" for name in url.query if "password" in name.lower()}  # the driver takes one from there too
        return url.update_query_dict(hidden).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")

    def explained(self, error: UnavailableError | DBAPIError) -> str:
        """Say in one line what is wrong with the database, and what to do."""
        if isinstance(error, DiskFullError):
            return f"--database {self.shown}: {error}, and start it again; nothing counts twice"
        reason = reason_of(error)
        what = f"--database {self.shown} can't be used: {reason}"
        if "is locked" in reason:
            return f"{what}, because another program writes to it for long; start it again, nothing counts twice"
        if isinstance(error, UnavailableError):
            return f"{what}; check that it is running and that this user can connect, and start it again: nothing counts twice"
        return f"{what}; check that it is a database of this service and that this user can write it, and start it again"

    def close(self) -> None:
        """Close all connections."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        self.engine.dispose()


@cache
def head_revision() -> str | None:
    """Return the newest revision of the tables."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def alembic_config() -> Config:
    """Return the configuration with which Alembic finds the revisions."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _engine(url: str, seconds: float, pool: dict[str, Any]) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return sqlite_engine(parsed.render_as_string(hide_password=False), pool)
        if parsed.get_backend_name() != "postgresql":
            raise InputError(f"--database is a {parsed.get_backend_name()} URL: give sqlite:///file.db or postgresql://user@host/name")
        require("psycopg", "--database postgresql://")
        from balancer.serving.storage.postgres import connect

        engine = create_engine(parsed.set(drivername="postgresql+psycopg"), **pool)

        @event.listens_for(engine, "do_connect")
        def connects(_: Any, __: Any, arguments: Any, options: Any) -> Any:
            return connect(seconds, *arguments, **options)

        return engine
    except (ArgumentError, NoSuchModuleError) as error:
        raise InputError(f"--database is not a URL ({error}): give sqlite:///file.db or postgresql://user@host/name") from error


def _is_transient(error: DBAPIError) -> bool:
    """Whether another attempt may succeed: the database was unavailable, or transactions conflicted."""
    state = getattr(error.orig, "sqlstate", None) or ""
    if error.connection_invalidated or state[:2] in ("08", "57") or state in ("40001", "40P01", "53300", "55P03"):
        return True
    if not isinstance(error, OperationalError):
        return False
    message = str(error.orig).lower()
    return any(text in message for text in ("locked", "busy", "connection", "server closed", "terminating", "starting up", "shutting down"))
