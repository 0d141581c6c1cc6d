"""The transaction store: every column once, sorted by entity and time.

What is special: overlapping windows are never stored. A window is two integers (the first row of the entity,
the target row), so memory grows with the number of rows, not with rows x length. A batch is one `take` over
contiguous rows of `values`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Segments(NamedTuple):
    """Segments of history, each with one or more target rows."""

    first: NDArray[np.int64]
    """(S,) first row of each segment, increasing."""
    last: NDArray[np.int64]
    """(S,) last target row of each segment; later rows are not needed."""
    segment: NDArray[np.int64]
    """(B,) index of the segment that each target belongs to."""
    position: NDArray[np.int64]
    """(B,) position of each target in its segment."""


@dataclass(frozen=True, eq=False)
class TransactionStore:
    """Columns of N transactions sorted by (entity, time, input order)."""

    values: NDArray[np.float32]
    """(N, C) numeric fields, then categorical codes (exact in float32; 0 is unseen or null)."""
    num_numeric: int
    """Number of numeric fields among the C fields; the rest are codes."""
    time: NDArray[np.float64]
    """(N,) seconds since 1970-01-01, or seconds as given in the table."""
    entity: NDArray[np.int32]
    """(N,) entity code."""
    start: NDArray[np.int64]
    """(N,) first row of the entity."""
    label: NDArray[np.int16]
    """(N,) class index; 0 is negative, -1 is unlabelled."""
    amount: NDArray[np.float64]
    """(N,) amount in the unit of the table (0 where the table has no amount)."""
    row: NDArray[np.int64]
    """(N,) position in the input table, from 0; -1 for rows of `past`."""

    def copied(self) -> TransactionStore:
        """The same store with values in memory of its own, where they are a view of some columns."""
        return replace(self, values=np.ascontiguousarray(self.values))

    def __len__(self) -> int:
        return len(self.time)

    def windows(self, rows: NDArray[np.integer], length: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Read the history of each target row.

        Args:
            rows: (B,) target rows.
            length: Longest window, the target row included.

        Returns:
            The windows (B, length, C) float32, left-aligned, oldest row first, zeros after the target; and
            their lengths (B,). The target is at position `lengths - 1`.

        Raises:
            ValueError: If `length` is below 1.
        """
        if length < 1:
            raise ValueError(f"length is {length}: a window holds at least the target row")
        target = np.asarray(rows, dtype=np.int64)
        first = np.maximum(self.start[target], target - (length - 1))
        return self.slices(first, target, length), target - first + 1

    def slices(self, first: NDArray[np.int64], last: NDArray[np.int64], length: int) -> NDArray[np.float32]:
        """Read contiguous rows.

        Args:
            first: (B,) first rows.
            last: (B,) last rows, included; at most `length` rows from the first.
            length: Width of the result.

        Returns:
            (B, length, C) float32, zeros after the last row.
        """
        index = first[:, None] + np.arange(length)
        padding = index > last[:, None]
        # A padded position reads the last row, which is in the cache, and is set to zero afterwards: one
        # gather, no branch.
        np.minimum(index, last[:, None], out=index)
        # `take` would copy the whole array first where it is a view of some columns.
        values = self.values.take(index, axis=0) if self.values.flags.c_contiguous else self.values[index]
        values[padding] = 0.0
        return values

    def segments(self, rows: NDArray[np.integer], length: int) -> Segments:
        """Assign target rows to segments of history, so that one segment serves many targets.

        The rows of an entity are cut into segments of `length` rows that overlap by half, from the first row
        on. A target belongs to the segment in whose second half it is (or to the first segment, if it is in
        its first half). A target with up to `length // 2` earlier rows sees all of them; a later one sees
        between `length // 2` and `length` rows. Which rows a target sees depends on the target alone.

        Args:
            rows: (B,) target rows.
            length: Rows of a segment.

        Raises:
            ValueError: If `length` is below 2.
        """
        if length < 2:
            raise ValueError(f"length is {length}: a segment holds at least two rows")
        target, half = np.asarray(rows, dtype=np.int64), length // 2
        passed = target - self.start[target]
        begin = target - passed + np.maximum(passed // half - 1, 0) * half
        first, segment = np.unique(begin, return_inverse=True)
        last = np.zeros_like(first)
        np.maximum.at(last, segment, target)
        return Segments(first, last, segment, target - begin)
