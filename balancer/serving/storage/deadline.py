"""When a request must have begun its transaction, and when its answer is due.

What is special: a request that has been answered with 503 must not be carried out later, and one whose
transaction is running must not be answered with 503, because its rows are then stored. `Deadline.begin` and
`Deadline.expire` exclude each other: the first one decides.
"""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar


class Deadline:
    """The time limit of one request.

    Args:
        seconds: The limit: half of it for the request to begin, nine tenths of it for the database.
    """

    __slots__ = ("_expired", "_lock", "begin_by", "begun", "end_by")

    def __init__(self, seconds: float) -> None:
        now = time.monotonic()
        self.begin_by = now + 0.5 * seconds
        self.end_by = now + 0.9 * seconds
        self.begun, self._expired = False, False
        self._lock = threading.Lock()

    def begin(self) -> bool:
        """Say that the transaction begins, from any thread.

        Returns:
            False if the request has already been answered: then nothing may be stored.
        """
        with self._lock:
            self.begun = not self._expired
            return self.begun

    def expire(self) -> bool:
        """Give the request up because it has waited too long.

        Returns:
            False if its transaction has begun: then its answer must be awaited.
        """
        with self._lock:
            self._expired = not self.begun
            return self._expired


REQUEST: ContextVar[Deadline | None] = ContextVar("balancer_request_deadline", default=None)
"""The deadline of the request that this code runs for; None outside requests. Threads that are started for a
request inherit it."""
