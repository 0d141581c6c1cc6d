"""The transaction store: every column once, sorted by entity and time, and windows of history by one gather.

What is special: overlapping windows are never materialised. A window is two integers (the entity's first row, the target row), so memory
grows with rows, not with rows x length; a batch is one `take` over contiguous rows of `values`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
        lengths = target - first + 1
        index = first[:, None] + np.arange(length)
        padding = index > target[:, None]
        # A padded position reads the target (a row surely in cache) and is zeroed after: one gather without branches.
        np.minimum(index, target[:, None], out=index)
        window = self.values.take(index, axis=0)
        window[padding] = 0.0
        return window, lengths
