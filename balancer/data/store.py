"""The transaction store: every column once, sorted by entity and time, and windows of history by one gather.

What is special: overlapping windows are never materialised. A window is two integers (the entity's first row, the target row), so memory
grows with rows, not with rows x length; a batch is one `take` over contiguous rows of `values`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Segments(NamedTuple):
    """Stretches of history that hold some targets."""

    first: NDArray[np.int64]
    """(S,) first row of each stretch, increasing."""
    last: NDArray[np.int64]
    """(S,) its last target: later rows are not needed."""
    segment: NDArray[np.int64]
    """(B,) which stretch a target belongs to."""
    position: NDArray[np.int64]
    """(B,) the target's place in it."""


@dataclass(frozen=True, eq=False)
class TransactionStore:
    """Columns of N transactions sorted by (entity, time, input order)."""

    values: NDArray[np.float32]
    """(N, C): numeric fields as they are, then categorical codes (exact in float32, 0 = unseen or null)."""
    num_numeric: int
    """How many of the C fields are numeric; the rest are codes."""
    time: NDArray[np.float64]
    """(N,) seconds since 1970-01-01, or the table's own seconds."""
    entity: NDArray[np.int32]
    """(N,) entity code."""
    start: NDArray[np.int64]
    """(N,) first row of the row's entity."""
    label: NDArray[np.int16]
    """(N,) class index, 0 = negative, -1 = unlabelled."""
    amount: NDArray[np.float64]
    """(N,) amount in the table's own unit (0 where the table has none)."""
    row: NDArray[np.int64]
    """(N,) position in the input table, from 0; -1 for rows of `history`."""

    def __len__(self) -> int:
        return len(self.time)

    def windows(self, rows: NDArray[np.integer], length: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The history of each target row: (B, length, C) float32, left-aligned, oldest first, zeros after; and (B,) lengths.

        The target itself is the last valid position, `lengths - 1`. Raises `ValueError` where `length` < 1.
        """
        if length < 1:
            raise ValueError(f"a window holds at least the row itself, not {length} rows")
        target = np.asarray(rows, dtype=np.int64)
        first = np.maximum(self.start[target], target - (length - 1))
        return self.stretches(first, target, length), target - first + 1

    def stretches(self, first: NDArray[np.int64], last: NDArray[np.int64], length: int) -> NDArray[np.float32]:
        """The rows `first` (B,) to `last` (B,), both included and at most `length` apart: (B, length, C) float32, zeros after."""
        index = first[:, None] + np.arange(length)
        padding = index > last[:, None]
        # A padded position reads the last row (surely in cache) and is zeroed after: one gather without branches.
        np.minimum(index, last[:, None], out=index)
        stretch = self.values.take(index, axis=0)
        stretch[padding] = 0.0
        return stretch

    def segments(self, rows: NDArray[np.integer], length: int) -> Segments:
        """Where each target row is judged in whole histories: one stretch of history for many targets.

        An entity's rows are cut into stretches of `length` that overlap by half, from its first row on; a target belongs to the one in whose later
        half it stands (to the first, if it is early). So it sees all its past up to `length // 2` rows and, past that, between `length // 2` and
        `length` rows, and what it sees is a function of the target alone.

        Raises:
            ValueError: `length` < 2.
        """
        if length < 2:
            raise ValueError(f"a segment holds at least two rows, not {length}")
        target, half = np.asarray(rows, dtype=np.int64), length // 2
        passed = target - self.start[target]
        begin = target - passed + np.maximum(passed // half - 1, 0) * half
        first, segment = np.unique(begin, return_inverse=True)
        last = np.zeros_like(first)
        np.maximum.at(last, segment, target)
        return Segments(first, last, segment, target - begin)
