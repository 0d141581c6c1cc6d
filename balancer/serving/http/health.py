"""Whether a worker is ready, found out without waiting for the connections and threads of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from balancer.serving.storage.database import Database, DiskFullError, UnavailableError

READY_SECONDS = 2.0
"""Seconds after which the database is said not to answer."""


class Readiness:
    """Looks whether the database answers, has the tables of this version, and can write.

    What is special: one thread with one connection looks, and whoever asks meanwhile gets its answer.

    Args:
        url: Of the database.
        requests: The connections of the requests, which know whether the last write found the disk full.
        model_missing: Whether a model that should be in service is not loaded yet.
    """

    def __init__(self, url: str, requests: Database, model_missing: Callable[[], bool]) -> None:
        self._database = Database(url, patience=READY_SECONDS / 2, statement_seconds=0.75 * READY_SECONDS, connections=1)
        self._requests, self._model_missing = requests, model_missing
        self._thread = ThreadPoolExecutor(1, "ready")
        self._look: asyncio.Future[str | None] | None = None

    async def problem(self) -> str | None:
        """Say why the worker is not ready; None if it is."""
        if self._look is None or self._look.done():
            self._look = asyncio.get_running_loop().run_in_executor(self._thread, self._found)
        look = self._look  # by the time this one has ended, another request may have begun the next
        done, _ = await asyncio.wait({look}, timeout=READY_SECONDS)
        return look.result() if done else "the database does not answer; check that it is running"

    def close(self) -> None:
        """End the thread and its connection."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._database.close()

    def _found(self) -> str | None:
        try:
            if not self._database.ready():
                return "the tables of the database are not of this version; restart balancer serve"
            was_full = self._requests.disk_full
            if not self._database.has_room(probe=was_full):
                return "the disk of the database is full or can't be written; free space on it"
        except DiskFullError as error:
            return str(error)
        except UnavailableError as error:
            return f"{error}; check that the database is running"
        if was_full:
            self._requests.disk_full = False
        return "the model is not loaded yet; ask again" if self._model_missing() else None
