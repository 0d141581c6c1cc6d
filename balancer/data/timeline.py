"""Counting the rows of a key up to a moment, for all rows at once.

What is special: one sorted array of integers answers "how many rows of key k lie at or before moment t" for millions of (k, t) by binary
search. Moments are replaced by their rank among the distinct moments, so key and moment pack into one int64 whatever the unit or span of
time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


class Timeline:
    """Rows sorted by (key, time): `position(key, bound)` is where the rows of `key` after `bound` begin.

    Args:
        key: (M,) non-negative integers, sorted.
        time: (M,) seconds, sorted within each key.
    """

    def __init__(self, key: Index, time: NDArray[np.float64]) -> None:
        self._moments, rank = np.unique(time, return_inverse=True)
        self._step = len(self._moments) + 1
        self._packed = key * self._step + rank

    def position(self, key: Index, bound: NDArray[np.float64], *, inclusive: bool = True) -> Index:
        """(Q,) number of rows sorted before: those of lower keys, and of `key` at times <= `bound` (< `bound` where not `inclusive`)."""
        rank = np.searchsorted(self._moments, bound, side="right" if inclusive else "left")
        return np.searchsorted(self._packed, key * self._step + rank)
