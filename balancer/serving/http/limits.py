"""How much of a worker the running requests may take together: their number, and the bytes of their bodies.

What is special: no key may take all of it. A key has at most three quarters of the requests and half of the
bytes, so that one client that is too fast or too slow does not stop the others.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

SMALL = 65_536
"""Bytes of a body that are received without asking; uvicorn buffers so much for each connection anyway."""


def error_body(error: str) -> bytes:
    """The body of an answer with an error, as every part of the service writes it."""
    return json.dumps({"error": error}, ensure_ascii=False, separators=(",", ":")).encode()


class RefusalError(Exception):
    """A request is answered with an error before it reaches its route.

    Args:
        status: HTTP status.
        error: What is wrong, and the remedy.
        headers: Further headers of the answer.
    """

    def __init__(self, status: int, error: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.headers = status, error, headers or {}


class RequestLimit:
    """Counts the requests of a worker that are running.

    Args:
        most: Most of them.
    """

    def __init__(self, most: int) -> None:
        self._most, self._most_of_key = most, max(1, most * 3 // 4)
        self._running: Counter[str] = Counter()
        self._total = 0

    def _most_for(self, key: str) -> int:
        return self._most_of_key if key else self._most  # without keys there is only one client to be fair to

    @contextmanager
    def running(self, key: str) -> Iterator[None]:
        """Count a request of a key.

        Raises:
            RefusalError: Too many are running.
        """
        if self._total >= self._most:
            raise RefusalError(503, f"{self._most} requests are running; send the same request again", {"Retry-After": "1"})
        if self._running[key] >= self._most_for(key):
            raise RefusalError(429, f"{self._most_for(key)} requests of this key are running; send less at once", {"Retry-After": "1"})
        self._running[key] += 1
        self._total += 1
        try:
            yield
        finally:
            self._total -= 1
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]


class ByteLimit:
    """Lends bytes to large bodies, in the order in which they ask.

    Args:
        most: Bytes that are lent at once; a body that is larger gets them all.
    """

    def __init__(self, most: int) -> None:
        self._most, self._free = most, most
        self._lent: Counter[str] = Counter()
        self._waiting: list[tuple[str, int, asyncio.Future[None]]] = []

    @property
    def is_wanted(self) -> bool:
        """Whether others wait for bytes."""
        return bool(self._waiting)

    async def take(self, key: str, size: int) -> int:
        """Wait until `size` bytes are free for a key.

        Returns:
            What to give back.
        """
        size = min(size, self._most)
        if not self._waiting and self._fits(key, size):
            self._lend(key, size)
            return size
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (key, size, turn)
        self._waiting.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(key, size)
            else:
                self._waiting.remove(entry)
                self._serve()
            raise
        return size

    def give_back(self, key: str, size: int) -> None:
        """Return what `take` has lent."""
        self._free += size
        self._lent[key] -= size
        if not self._lent[key]:
            del self._lent[key]
        self._serve()

    def _fits(self, key: str, size: int) -> bool:
        share = self._most // 2 if key else self._most
        return size <= self._free and (not self._lent[key] or self._lent[key] + size <= share)

    def _lend(self, key: str, size: int) -> None:
        self._free -= size
        self._lent[key] += size

    def _serve(self) -> None:
        """Serve who waits, in order; a key that has its share is passed over until it gives some back."""
        for entry in list(self._waiting):
            key, size, turn = entry
            if size > self._free:
                return  # later ones that are smaller would keep this one waiting for ever
            if self._fits(key, size):
                self._waiting.remove(entry)
                self._lend(key, size)
                turn.set_result(None)
