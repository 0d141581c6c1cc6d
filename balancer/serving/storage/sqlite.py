"""SQLite: a file that only its owner can read, in which deleted data is overwritten.

What is special: SQLite keeps what was deleted in free pages and in its write-ahead log. Here deleted content
is overwritten with zeros (`secure_delete`), and after an erasure the log is written into the file and cut
off.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url

from balancer.errors import InputError

LOG = logging.getLogger("balancer.service")
BUSY_SECONDS = 1.0
"""Seconds that one attempt waits for another writer; `Database` tries again until its patience ends."""
CHECKPOINT_COMMITS = 512
"""Commits of a process after which its thread writes the log into the file."""
_MOST_PAGES = 16_384
"""Pages of the log (of 4 kB) at which a commit itself writes it into the file."""
_CHECKPOINT = f"wal_autocheckpoint = {_MOST_PAGES}"
_PAUSE = 0.25
_OTHERS = 0o077
"""Bits of a file's mode for anyone but its owner."""


def sqlite_engine(url: str, pool: dict[str, Any]) -> Engine:
    """Connect to a file, which is created at the first connection.

    Raises:
        InputError: If the URL names no file, or a file in a folder that does not exist.
    """
    path = make_url(url).database
    if not path or path == ":memory:":
        raise InputError("--database names no file: give sqlite:///FILE, because a database in memory would be lost with the process")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"--database {url}: the folder {Path(path).parent} does not exist; create it first")
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, **pool)

    @event.listens_for(engine, "do_connect")
    def opens(*_: Any) -> None:
        keep_private(Path(path))

    @event.listens_for(engine, "connect")
    def opened(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy begins the transactions
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON", _CHECKPOINT):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("balancer_write") else "BEGIN")

    return engine


def keep_private(path: Path) -> None:
    """Let nobody but the owner read a database, its write-ahead log and its index; create the file if needed.

    SQLite gives the log and the index the mode of the file.
    """
    if path.name.startswith("file:") or os.name != "posix":
        return
    if not path.exists():
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError:
            return  # SQLite says why the file can't be created
    for each in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        try:
            mode = each.stat().st_mode
            if mode & _OTHERS:
                each.chmod(mode & ~_OTHERS & 0o7777)
                LOG.warning("the file of the database could be read by other users; its mode is 0600 now")
        except FileNotFoundError:
            continue
        except OSError:
            LOG.warning("the file of the database can be read by other users, and its mode can't be changed; set it to 0600")


class Checkpoints:
    """Writes the write-ahead log into the file, in a thread of its own.

    What is special: SQLite would write the log into the file in the commit that fills it, and the request of
    that commit would wait for it. Here a commit does this only if the thread has not kept up.

    Args:
        path: The file of the database.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._commits, self._copied = 0, 0
        self._wanted, self._cut = 0, 0
        self._ends = False
        self._thread: threading.Thread | None = None

    def committed(self) -> None:
        """Count a commit. After some of them the log is written into the file."""
        self._commits += 1
        if self._commits - self._copied >= CHECKPOINT_COMMITS and self._changed.acquire(blocking=False):
            try:
                self._begin()
            finally:
                self._changed.release()

    def truncate(self, seconds: float) -> bool:
        """Write the log into the file and cut it off.

        Returns:
            Whether this was done within `seconds`. Otherwise it is done later.
        """
        with self._changed:
            self._wanted += 1
            mine = self._wanted
            self._begin()
            return self._changed.wait_for(lambda: self._cut >= mine, seconds)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(2 * BUSY_SECONDS)

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _is_due(self) -> bool:
        return self._wanted > self._cut or self._commits - self._copied >= CHECKPOINT_COMMITS

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ends or self._is_due())
                if not self._is_due():
                    return
                wanted, self._copied = self._wanted, self._commits
                cuts = wanted > self._cut
            worked = truncated(self._path) if cuts else checkpoint(self._path, "PASSIVE")
            with self._changed:
                if cuts and worked:
                    self._cut = wanted
                    self._changed.notify_all()
                if self._ends:
                    return
                if not worked:
                    self._changed.wait(_PAUSE)


def truncated(path: str) -> bool:
    """Write the log into the file and cut it off; returns whether it worked, because nobody was reading."""
    return checkpoint(path, "TRUNCATE")


def checkpoint(path: str, kind: str) -> bool:
    """Write the log into the file.

    Args:
        path: The file of the database.
        kind: `PASSIVE` writes what is possible while others read and write; `TRUNCATE` waits for them, and
            cuts the log off.

    Returns:
        Whether no other connection prevented it.
    """
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS)
        try:
            busy: int = connection.execute(f"PRAGMA wal_checkpoint({kind})").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error:
        return False  # it is tried again
    return busy == 0
