"""Transactions on SQLite or PostgreSQL, repeated when the database is unavailable or transactions conflict.

What is special: work is a function of a connection and runs in one transaction. The transaction happens
completely or not at all, so it can be repeated after a lost connection, a deadlock or a restart of the
database. What must not count twice is recognised by its id (scoring) or its number (sessions). On SQLite a
writer locks the database at the beginning (BEGIN IMMEDIATE), so that what it reads stays valid until it has
written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError

from balancer.dependencies import require
from balancer.errors import InputError

Result = TypeVar("Result")
POOL = 8
"""Connections per process, which is also the number of requests that it processes at once."""
MAX_CONFLICTS = 5
"""Attempts before a row that already exists is an error."""
SCHEMA_LOCK = 7_216_302
"""Number of the advisory lock of PostgreSQL that is held while tables are created."""


class UnavailableError(RuntimeError):
    """The database was not reached in time; repeating the work is safe."""


class Database:
    """The connections of one process to a database.

    Args:
        url: `sqlite:///file.db`, or `postgresql://user:password@host/name`.
        patience: Seconds to keep trying while the database is unavailable.
    """

    def __init__(self, url: str, *, patience: float = 20.0) -> None:
        self.patience = patience
        self.engine = _engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in a transaction that does not write, and return its result."""
        return self._run(work, write=False)

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Run `work` in a transaction and return its result; attempts that fail have no effect."""
        return self._run(work, write=True)

    def _run(self, work: Callable[[Connection], Result], *, write: bool) -> Result:
        deadline, pause, conflicts = time.monotonic() + self.patience, 0.01, 0
        while True:
            try:
                with self.engine.connect().execution_options(balancer_write=write) as connection, connection.begin():
                    return work(connection)
            except IntegrityError:
                # Another transaction has created the same row since this one read; the next attempt sees it.
                conflicts += 1
                if conflicts == MAX_CONFLICTS:
                    raise
            except DBAPIError as error:
                if not _is_transient(error):
                    raise
                if time.monotonic() + pause > deadline:
                    raise UnavailableError(f"the database did not answer within {self.patience:g} s") from error
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

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
        except UnavailableError as error:
            raise InputError(
                f"--database {self.shown}: {error.__cause__ or error}; check that it is running and that this user can connect"
            ) from error
        except OperationalError as error:
            raise InputError(f"--database {self.shown} can't be used: {error.orig}; check that it exists and can be written") from error
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
        """The URL without the password."""
        return self.engine.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def head_revision() -> str | None:
    """Return the newest revision of the tables."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def alembic_config() -> Config:
    """Return the configuration with which Alembic finds the revisions."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed.render_as_string(hide_password=False))
        if parsed.get_backend_name() != "postgresql":
            raise InputError(f"--database is a {parsed.get_backend_name()} URL: give sqlite:///file.db or postgresql://user@host/name")
        require("psycopg", "--database postgresql://")
        return create_engine(parsed.set(drivername="postgresql+psycopg"), pool_size=POOL, max_overflow=0)
    except (ArgumentError, NoSuchModuleError) as error:
        raise InputError(f"--database is not a URL ({error}): give sqlite:///file.db or postgresql://user@host/name") from error


def _sqlite(url: str) -> Engine:
    path = make_url(url).database
    if not path or path == ":memory:":
        raise InputError("--database names no file: give sqlite:///FILE, because a database in memory would be lost with the process")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"--database {url}: the folder {Path(path).parent} does not exist; create it first")
    engine = create_engine(url, connect_args={"timeout": 30.0}, pool_size=POOL, max_overflow=0)

    @event.listens_for(engine, "connect")
    def opened(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy begins the transactions
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("balancer_write") else "BEGIN")

    return engine


def _is_transient(error: DBAPIError) -> bool:
    """Whether another attempt may succeed: the database was unavailable, or transactions conflicted."""
    state = getattr(error.orig, "sqlstate", None) or ""
    if error.connection_invalidated or state[:2] in ("08", "57") or state in ("40001", "40P01", "53300"):
        return True
    if not isinstance(error, OperationalError):
        return False
    message = str(error.orig).lower()
    return any(text in message for text in ("locked", "busy", "connection", "server closed", "terminating", "starting up", "shutting down"))
