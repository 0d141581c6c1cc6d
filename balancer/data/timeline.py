"""Count the rows of a key up to a time, for all rows at once.

What is special: one sorted array of integers answers "how many rows of key k are at or before time t" for
millions of pairs (k, t) by binary search. Times are replaced by their rank among the distinct times, so key
and time fit into one int64 whatever the unit or the range of time. The distinct times of a table are found
once (`Moments`). A window begins at the same rank for all rows of one time, so it is looked up once for each
time and in ascending order, which is much faster than once for each row.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
Kind = TypeVar("Kind", bound=np.generic)


class Moments(NamedTuple):
    """The times of rows."""

    distinct: NDArray[np.float64]
    """(D,) seconds, ascending."""
    rank: NDArray[np.int32 | np.int64]
    """(N,) position in `distinct` of the time of each row."""

    @classmethod
    def of(cls, time: NDArray[np.float64]) -> Moments:
        """The moments of rows with these times (N,)."""
        distinct, rank = np.unique(time, return_inverse=True)
        return cls(distinct, rank.astype(np.int32 if len(distinct) < 1 << 31 else np.int64))

    def minus(self, seconds: float) -> Moments:
        """The moments `seconds` earlier."""
        return Moments(self.distinct - seconds, self.rank)

    def take(self, rows: Index) -> Moments:
        """The moments of some rows."""
        return Moments(self.distinct, self.rank[rows])


class Timeline:
    """An index of rows sorted by (key, time).

    Args:
        key: (M,) non-negative integers, sorted.
        time: Times of the M rows, sorted within each key.
    """

    def __init__(self, key: Index, time: Moments | NDArray[np.float64]) -> None:
        moments = time if isinstance(time, Moments) else Moments.of(time)
        self._moments = moments.distinct
        self._step = len(self._moments) + 1
        self._packed = key * self._step + moments.rank

    def position(self, key: Index, bound: Moments | NDArray[np.float64], *, inclusive: bool = True) -> Index:
        """Find where the rows of `key` after `bound` begin.

        Args:
            key: (Q,) keys.
            bound: Q times.
            inclusive: Whether rows exactly at `bound` count as before it.

        Returns:
            (Q,) number of rows that are sorted before: those of lower keys, and those of `key` up to `bound`.
        """
        times = bound.distinct if isinstance(bound, Moments) else bound
        rank = np.searchsorted(self._moments, times, side="right" if inclusive else "left")
        if isinstance(bound, Moments):
            rank = rank[bound.rank]
        return np.searchsorted(self._packed, key * self._step + rank)


def first_of_key(key: NDArray[np.integer]) -> Index:
    """(N,) index of the first row with the key of each row of a sorted (N,) `key`."""
    index = np.arange(len(key), dtype=np.int64)
    is_new = np.ones(len(key), dtype=np.bool_)
    is_new[1:] = key[1:] != key[:-1]
    return np.maximum.accumulate(np.where(is_new, index, 0))


def shifted(values: NDArray[Kind]) -> NDArray[Kind]:
    """(N,) the value of the row before each row; the first row has its own."""
    return np.concatenate((values[:1], values[:-1]))
