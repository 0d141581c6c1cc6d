"""Draws items of a stream to wanted class shares: rejection, with a bounded buffer for each class.

To draw an item, a class is drawn by its share, then an item of that class is taken from its buffer: one that
was not drawn yet, in the order of the stream, or else any that was. So the shares of what is drawn are those
wanted, whatever the stream holds at the moment. In between the stream is read. What does not fit into the
buffer of its class is rejected: the oldest items go first, those that were drawn before the others.

How much is read for each draw decides how often a rare item is drawn again. Of a class with prior ``p`` and
share ``s``, an item is drawn ``s / p / reads`` times on average. So ``s / p / repeats`` items of the stream
are read for each draw, at least one, and at most :data:`MOST_READS`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from balancer.errors import InputError
from balancer.sampling.weights import Floats

MOST_READS = 100.0
"""Items that are read for each draw, at most."""
LEAST_WAIT, MOST_WAIT = 10_000, 100_000
"""Items that are read until one of a class comes that is to be drawn; then others are drawn."""
_WAIT = 10.0
"""The same as a multiple of what is expected by the prior of the class."""
_OFTEN = 2.0
"""While few items of a class have come, they are drawn up to this multiple of ``repeats`` on average."""
_BLOCK = 1024
"""Random numbers that are drawn together, and draws between two estimates."""


class Counts(Protocol):
    """Where a :class:`ClassBuffers` counts."""

    def seen(self, code: int) -> None:
        """An item of class ``code`` was read."""

    def kept(self, code: int) -> None:
        """An item was drawn for the first time."""

    def repeated(self, code: int) -> None:
        """An item was drawn again."""


def reads_per_draw(share: Floats, prior: Floats, repeats: float) -> float:
    """Items of the stream that are read for each draw.

    Args:
        share: (K,) wanted shares.
        prior: (K,) prior of the stream.
        repeats: How often an item may be drawn on average.

    >>> reads_per_draw(np.array([0.9, 0.1]), np.array([0.999, 0.001]), 8)
    12.5
    """
    needed = float((share / np.maximum(prior, 1e-12)).max()) / repeats
    return min(max(needed, 1.0), MOST_READS)


class ClassBuffers:
    """Items of each class that were read and not yet rejected.

    Args:
        num_classes: K.
        size: Items of a class, at most.
        counts: Counts what is read and drawn.
        repeats: How often an item may be drawn on average; 1: only once.
    """

    def __init__(self, num_classes: int, size: int, counts: Counts, *, repeats: float) -> None:
        self._size, self._counts, self._repeats = size, counts, repeats
        self._fresh: list[deque[Any]] = [deque() for _ in range(num_classes)]
        self._used: list[list[Any]] = [[] for _ in range(num_classes)]
        self._left = [0.0] * num_classes  # draws until items of a class are drawn too often, on average

    def put(self, code: int, item: Any, random: float) -> None:
        """Add an item; ``random`` in [0, 1) selects which one is rejected where the buffer is full."""
        self._counts.seen(code)
        fresh, used = self._fresh[code], self._used[code]
        if len(fresh) + len(used) >= self._size:
            if used:
                used.pop(int(random * len(used)))
            else:
                fresh.popleft()
        fresh.append(item)

    def holds(self, code: int) -> bool:
        """Whether an item of class ``code`` can be drawn."""
        return bool(self._fresh[code] or self._used[code])

    def wants(self, code: int) -> bool:
        """Whether another item of class ``code`` should be read before one is drawn."""
        return not self._fresh[code] and (self._left[code] < 1.0 or not self._used[code])

    def take(self, code: int, random: float) -> Any:
        """Draw an item of class ``code``; ``random`` in [0, 1) selects among those drawn before."""
        if self._fresh[code]:
            item = self._fresh[code].popleft()
            if self._repeats > 1:
                self._used[code].append(item)
                self._left[code] += _OFTEN * self._repeats - 1.0
            self._counts.kept(code)
            return item
        self._counts.repeated(code)
        self._left[code] -= 1.0
        used = self._used[code]
        return used[int(random * len(used))]


def drawn_items(
    source: Iterator[tuple[int, Any]],
    buffers: ClassBuffers,
    share: Floats,
    prior: Floats,
    *,
    reads: Callable[[], float],
    most: int | None,
    rng: np.random.Generator,
) -> Iterator[Any]:
    """Items of an epoch.

    The result depends on the arguments alone.

    Args:
        source: Class and item, in the order of the stream. It ends where nothing more can be read in this
            epoch.
        buffers: Buffers of the K classes.
        share: (K,) wanted shares.
        prior: (K,) prior of the stream; it limits how long a class is waited for.
        reads: Returns the number of items that are read for each draw; it is asked now and then.
        most: Items of the epoch; None: as many as what is read is enough for.
        rng: Source of randomness.

    Yields:
        Items. Where the source ends, they end when as many are drawn as what was read is enough for.

    Raises:
        InputError: Only classes without a share come.
    """
    edges, uniform = np.cumsum(share), _uniform(rng)
    edges[np.flatnonzero(share)[-1] :] = 1.0
    patience = np.clip(_WAIT / np.maximum(prior, 1e-12), LEAST_WAIT, MOST_WAIT).astype(np.int64).tolist()
    count, last = 0, [0] * len(share)  # items read, and how many when the last one of each class came
    due, given, ended, starved = 0.0, 0, False, 0
    each = reads()

    def read() -> bool:
        """Read an item; return whether there was one."""
        nonlocal due, ended, count
        code, item = next(source, (-1, None))
        if code < 0:
            ended = True
            return False
        count += 1
        last[code] = count
        buffers.put(code, item, next(uniform))
        due += 1.0 / each
        return True

    while most is None or given < most:
        while due < 1.0 and not ended:
            read()
        if due < 1.0:
            return
        code = int(np.searchsorted(edges, next(uniform), side="right"))
        while buffers.wants(code) and count - last[code] < patience[code] and read():
            pass
        if not buffers.holds(code):
            left = np.where([buffers.holds(c) for c in range(len(share))], share, 0.0)
            if not left.any():  # whatever was read has no share
                starved += 1
                if starved > MOST_WAIT:
                    raise InputError(f"no item of a class with a share came among {MOST_WAIT} items; check classes and label")
                if not read():
                    return
                continue
            code = int(np.searchsorted(np.cumsum(left), next(uniform) * left.sum(), side="right"))
            code = min(code, int(np.flatnonzero(left)[-1]))
        starved = 0
        item = buffers.take(code, next(uniform))
        due -= 1.0
        given += 1
        if given % _BLOCK == 0:
            each = reads()
        yield item


def _uniform(rng: np.random.Generator) -> Iterator[float]:
    """Uniform random numbers in [0, 1), one after the other."""
    while True:
        yield from rng.random(_BLOCK).tolist()
