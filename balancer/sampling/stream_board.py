"""What the workers of a stream and the main process tell each other: counts, positions, shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from balancer.sampling.core_view import HAS_TORCH

if TYPE_CHECKING or HAS_TORCH:
    import torch

MOST_WORKERS = 64
"""Workers that a stream can count, at most."""
SEEN, KEPT, REPEATED = range(3)
NOW, START = range(2)
POSITION, SHARDS, DONE, ACTIVE, UNLABELLED = range(5)


class Board:
    """Numbers that the workers and the main process share.

    Each worker writes its own line of ``counts`` and ``numbers``; the main process writes the rest.
    """

    def __init__(self, num_classes: int) -> None:
        shapes = {"counts": (MOST_WORKERS, 2, 3, num_classes), "numbers": (MOST_WORKERS, 2, 5), "epoch": (1,), "share": (2, num_classes)}
        self._arrays: dict[str, Any] = {}
        for name, shape in shapes.items():
            array = np.zeros(shape, dtype=np.float64 if name == "share" else np.int64)
            self._arrays[name] = torch.from_numpy(array).share_memory_() if HAS_TORCH else array

    def _array(self, name: str) -> NDArray[Any]:
        array = self._arrays[name]
        shown: NDArray[Any] = array.numpy() if HAS_TORCH else array
        return shown

    @property
    def counts(self) -> NDArray[np.int64]:
        """(workers, 2, 3, K): now and at the beginning of the epoch; items seen, kept, repeated."""
        return self._array("counts")

    @property
    def numbers(self) -> NDArray[np.int64]:
        """(workers, 2, 5): now and at the beginning of the epoch.

        Items read in the present pass over the source, number of shards, epochs done since the last update,
        whether an epoch is in progress, items without a label.
        """
        return self._array("numbers")

    @property
    def epoch(self) -> NDArray[np.int64]:
        """(1,) number of the epoch after the last update."""
        return self._array("epoch")

    @property
    def share(self) -> NDArray[np.float64]:
        """(2, K) shares to draw with and prior, in the order of ``classes_``."""
        return self._array("share")


class Line:
    """The line of a worker on the board, as the buffers count on it."""

    def __init__(self, board: Board, worker: int) -> None:
        self.counts, self.numbers = board.counts[worker], board.numbers[worker]
        self._now = self.counts[NOW]

    def seen(self, code: int) -> None:
        """An item was read."""
        self._now[SEEN, code] += 1

    def kept(self, code: int) -> None:
        """An item was drawn for the first time."""
        self._now[KEPT, code] += 1

    def repeated(self, code: int) -> None:
        """An item was drawn again."""
        self._now[REPEATED, code] += 1
