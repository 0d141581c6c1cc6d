"""Ranks as threads of one process, which exchange arrays as processes do: fast tests of several ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Result = TypeVar("Result")


class FakeRank:
    """One of several ranks; :func:`on_ranks` makes them."""

    def __init__(self, rank: int, size: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._slots, self._barrier = rank, size, slots, barrier
        self.sent: list[int] = []
        """Bytes of each array that was exchanged."""

    def gather(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        self.sent.append(values.nbytes)
        self._slots[self.rank] = values.copy()
        self._barrier.wait(10)
        every = [part.copy() for part in self._slots]
        self._barrier.wait(10)
        return every

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.sum(self.gather(values), axis=0))

    def stop(self) -> None:
        """Let the other ranks not wait for this one."""
        self._barrier.abort()


def on_ranks(size: int, function: Callable[[FakeRank], Result]) -> list[Result]:
    """What ``function`` returns on each of ``size`` ranks; an error of a rank ends all."""
    slots: list[Any] = [None] * size
    barrier = threading.Barrier(size)

    def run(rank: int) -> Result:
        group = FakeRank(rank, size, slots, barrier)
        try:
            return function(group)
        except Exception:
            group.stop()
            raise

    with ThreadPoolExecutor(size) as pool:
        started = [pool.submit(run, rank) for rank in range(size)]
        errors = [error for each in started if (error := each.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [each.result() for each in started]
