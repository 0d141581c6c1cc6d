"""Open the database of a service, and move its tables to another revision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from alembic import command
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.serving.storage.database import SCHEMA_LOCK, Database, UnavailableError, alembic_config, head_revision

MIGRATE = "balancer service migrate"
NO_TABLES = "none"
"""How the revision of a database without tables is shown."""


class Revisions(NamedTuple):
    """The revision of the tables, and the newest one that this version knows."""

    current: str | None
    """None for a database without tables."""
    newest: str

    @property
    def is_newest(self) -> bool:
        """Whether nothing has to be done."""
        return self.current == self.newest


def open_database(url: str, *, create: bool = False, patience: float = 20.0) -> Database:
    """Open the database of a service; its tables must be those of this version.

    Args:
        url: Its URL.
        create: Whether tables are created in a database that has none.
        patience: Seconds to keep trying while it is unavailable.

    Raises:
        InputError: It does not exist, can't be reached, or has tables of another version.
    """
    database = Database(url, patience=patience)
    try:
        if not create:
            check_file_exists(database)
        found = revisions(database)
        if found.current is None and create:
            database.upgrade()
        else:
            require_newest(database, found)
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def used(database: Database) -> Iterator[Database]:
    """Use a database in a command, and close it at the end.

    Raises:
        InputError: It could not be reached, read or written; the message says why, and what to do.
    """
    try:
        yield database
    except (UnavailableError, DBAPIError) as error:
        raise InputError(database.explained(error)) from error
    finally:
        database.close()


def check_file_exists(database: Database) -> None:
    """Check that the file of an SQLite database is there, because opening it would create it.

    Raises:
        InputError: It is not.
    """
    file = database.engine.url.database
    if database.is_sqlite and file is not None and not Path(file).is_file():
        raise InputError(f"--database {database.shown} does not exist: check the name, or create it with {MIGRATE}")


def revisions(database: Database) -> Revisions:
    """Read the revision of the tables.

    Raises:
        InputError: The database can't be reached.
    """
    try:
        current = database.read(lambda connection: MigrationContext.configure(connection).get_current_revision())
    except (UnavailableError, DBAPIError) as error:
        raise InputError(database.explained(error)) from error
    newest = head_revision()
    assert newest is not None
    return Revisions(current, newest)


def require_newest(database: Database, found: Revisions | None = None) -> None:
    """Check that the tables are those of this version.

    Args:
        database: The database.
        found: What `revisions` returned, if the caller has it.

    Raises:
        InputError: They are older, newer, or not there.
    """
    found = revisions(database) if found is None else found
    if found.is_newest:
        return
    known = [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()]
    if found.current is not None and found.current not in known:
        raise InputError(
            f"--database {database.shown} was created by a newer version of balancer; install that version, or name another database"
        )
    what = "has no tables" if found.current is None else f"has tables of revision {found.current}, and this version needs {found.newest}"
    raise InputError(f"--database {database.shown} {what}: run {MIGRATE}")


def migrate(database: Database, revision: str | None = None, *, allow_loss: bool = False) -> tuple[Revisions, Revisions]:
    """Move the tables to a revision, in one transaction and one process at a time.

    Args:
        database: The database; an SQLite file is created.
        revision: The revision; None: the newest one.
        allow_loss: Whether the revision may be older, which drops what later versions have stored.

    Returns:
        The revisions before and after.

    Raises:
        InputError: There is no such revision, or it is older and `allow_loss` is False; or as
            `Database.upgrade`.
    """
    before = revisions(database)
    scripts = ScriptDirectory.from_config(alembic_config())
    order = [script.revision for script in scripts.walk_revisions()][::-1]
    wanted = order[-1] if revision is None else revision
    if wanted not in order:
        raise InputError(f"--to: there is no revision {wanted!r}; {nearest(wanted, order)}")
    if before.current is not None and before.current not in order:
        require_newest(database, before)
    older = before.current is not None and order.index(wanted) < order.index(before.current)
    if older and not allow_loss:
        raise InputError(
            f"--to {wanted} is older than the tables ({before.current}), and what later versions have stored is dropped: "
            "make a backup and add --allow-loss"
        )
    if revision is None:
        database.upgrade()
    else:
        database.write(lambda connection: _move(connection, wanted, down=older))
    return before, revisions(database)


def _move(connection: Connection, revision: str, *, down: bool) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SCHEMA_LOCK})
    config = alembic_config()
    config.attributes["connection"] = connection
    (command.downgrade if down else command.upgrade)(config, revision)
