"""Recognise that the disk of the database is full, and find out whether there is room again."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

from sqlalchemy.exc import DBAPIError

ROOM = 1_000_000
"""Bytes that must be free for the service to be ready."""
_MESSAGES = ("database or disk is full", "disk i/o error", "no space left on device", "could not extend file", "disk quota exceeded")
_SQLITE_CODES = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_POSTGRES_STATES = ("53100", "53000", "58030")


def is_disk_full(error: DBAPIError) -> bool:
    """Whether a statement failed because the database could not write to its disk."""
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in _SQLITE_CODES:
        return True
    if getattr(error.orig, "sqlstate", None) in _POSTGRES_STATES:
        return True
    message = str(error.orig).lower()
    return any(text in message for text in _MESSAGES)


def has_room(folder: Path, *, probe: bool) -> bool:
    """Whether files in a folder can grow.

    Args:
        folder: That of the database.
        probe: Whether to write `ROOM` bytes, which also finds a quota.
    """
    state = os.statvfs(folder)
    if state.f_bavail * state.f_frsize < ROOM:
        return False
    if not probe:
        return True
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * ROOM)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True
