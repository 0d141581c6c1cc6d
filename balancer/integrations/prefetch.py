"""Batches of one epoch, made ahead of their use by threads or processes.

A queue belongs to one epoch: what another epoch needs is made by another queue, so no batch of an earlier
epoch can be left in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

from balancer.errors import InputError

_make: Callable[[int], Any] | None = None
"""In a worker process: makes a batch."""


class BatchQueue:
    """Makes batches 0 to ``number - 1`` in order, some of them ahead.

    Args:
        make: Makes a batch from its number. Processes get a copy of it when the first batch is asked for.
        number: Batches of the epoch.
        workers: Threads or processes.
        processes: Whether they are processes.
        ahead: Batches that are made ahead, at most.

    >>> queue = BatchQueue(lambda number: number * 10, 3, workers=2, processes=False, ahead=2)
    >>> [queue.next() for _ in range(3)], queue.empty
    ([0, 10, 20], True)
    """

    def __init__(self, make: Callable[[int], Any], number: int, *, workers: int, processes: bool, ahead: int) -> None:
        self._make, self._number, self._processes, self._ahead = make, number, processes, max(ahead, 1)
        self._asked = 0
        self._waiting: deque[Future[Any]] = deque()
        self._executor: Executor = (
            ProcessPoolExecutor(workers, initializer=_receive, initargs=(make,))
            if processes
            else ThreadPoolExecutor(workers, thread_name_prefix="balancer batch")
        )

    @property
    def empty(self) -> bool:
        """Whether all batches have been given."""
        return not self._waiting and self._asked == self._number

    def next(self) -> Any:
        """The next batch.

        Raises:
            InputError: All have been given.
            Exception: What making the batch raised.
        """
        while self._asked < self._number and len(self._waiting) < self._ahead:
            self._waiting.append(self._executor.submit(_made if self._processes else self._make, self._asked))
            self._asked += 1
        if not self._waiting:
            raise InputError(f"all {self._number} batches of the epoch have been given; begin the next epoch")
        return self._waiting.popleft().result()

    def close(self) -> None:
        """Drop what was made ahead."""
        self._waiting.clear()
        self._asked = self._number
        self._executor.shutdown(wait=self._processes, cancel_futures=True)


def _receive(make: Callable[[int], Any]) -> None:
    global _make
    _make = make


def _made(number: int) -> Any:
    assert _make is not None
    return _make(number)
