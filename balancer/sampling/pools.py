"""Random subsets of rows by group, for scoring after an epoch, and how many rows each kept row represents."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from balancer.sampling.weights import Floats


def thinned_groups(
    groups: Iterable[tuple[NDArray[np.int64], int]],
    rng: np.random.Generator,
    *,
    weight: Floats | None = None,
    in_order: bool = False,
    shuffle: bool = True,
) -> tuple[NDArray[np.int64], Floats]:
    """Keep at most a given number of random rows of each group.

    Args:
        groups: For each group its rows (n,) and the largest number to keep.
        rng: Source of randomness; a group that is kept as a whole uses none of it.
        weight: (N,) how many rows each row of the table represents before; None: 1.
        in_order: Sort the kept rows within their group.
        shuffle: As in ``numpy.random.Generator.choice``: False is faster and gives other rows.

    Returns:
        The kept rows, group after group, and how many rows each represents (float64).

    >>> rows, represented = thinned_groups([(np.arange(10), 5), (np.arange(10, 12), 5)],
    ...     np.random.default_rng(0))
    >>> len(rows), represented.tolist()
    (7, [2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0])
    """
    kept_rows, represented = [], []
    for rows, most in groups:
        kept = rows
        if len(rows) > most:
            kept = rng.choice(rows, most, replace=False, shuffle=shuffle)
            kept = np.sort(kept) if in_order else kept
        kept_rows.append(kept)
        represented.append((np.ones(len(kept)) if weight is None else weight[kept]) * len(rows) / max(len(kept), 1))
    return np.concatenate(kept_rows), np.concatenate(represented)
