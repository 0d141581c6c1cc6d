"""Count the rows of a key up to a time, for all rows at once.

What is special: one sorted array of integers answers "how many rows of key k are at or before time t" for
millions of pairs (k, t) by binary search. Times are replaced by their rank among the distinct times, so key
and time fit into one int64 whatever the unit or the range of time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


class Timeline:
    """An index of rows sorted by (key, time).

    Args:
        key: (M,) non-negative integers, sorted.
        time: (M,) seconds, sorted within each key.
    """

    def __init__(self, key: Index, time: NDArray[np.float64]) -> None:
        self._moments, rank = np.unique(time, return_inverse=True)
        self._step = len(self._moments) + 1
        self._packed = key * self._step + rank

    def position(self, key: Index, bound: NDArray[np.float64], *, inclusive: bool = True) -> Index:
        """Find where the rows of `key` after `bound` begin.

        Args:
            key: (Q,) keys.
            bound: (Q,) seconds.
            inclusive: Whether rows exactly at `bound` count as before it.

        Returns:
            (Q,) number of rows that are sorted before: those of lower keys, and those of `key` up to `bound`.
        """
        rank = np.searchsorted(self._moments, bound, side="right" if inclusive else "left")
        return np.searchsorted(self._packed, key * self._step + rank)
