"""Scores of all ranks as one set of rows, the same to the bit on every rank and for every number of ranks.

Of two classes the ranks don't exchange rows: each counts its rows by class on a fixed grid of the score's
log-odds, and the counts, whole numbers, are summed. Each bin that is not empty becomes a row with the score
of the bin's centre, weighted by its count. A bin is :data:`WIDTH` wide, .003, so a score changes by less than
.15 % of its odds.

Of more classes the rows are gathered and sorted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.observation import ScoredRows
from balancer.sampling.ranks import Group
from balancer.sampling.weights import Floats

BINS = 16_384
"""Bins of the grid, for each class."""
LIMIT = 24.0
"""Log-odds beyond it count as this."""
WIDTH = 2 * LIMIT / BINS
"""Width of a bin in log-odds."""
_TINY = 1e-300
_CENTRES = (np.arange(BINS) + 0.5) * WIDTH - LIMIT


def pooled_rows(group: Group, label: NDArray[np.int64], score: Floats, *, exact: bool = False) -> ScoredRows:
    """Scored rows of all ranks.

    Args:
        group: The ranks.
        label: (n,) code of each row of this rank; n may be 0.
        score: (n, K) scores; of two classes the second column counts.
        exact: Whether to gather the rows of two classes too.

    Raises:
        InputError: No rank has a row.
    """
    if score.shape[1] == 2 and not exact:
        return _from_counts(group.sum(score_counts(label, score[:, 1])))
    label, score = (np.concatenate(group.gather(part)) for part in (label, score))
    order = np.lexsort((*score.T, label))
    return ScoredRows(label[order], score[order])


def score_counts(label: NDArray[np.int64], score: Floats) -> NDArray[np.int64]:
    """(2, BINS) rows of each of two classes by the log-odds of their ``score`` (n,)."""
    log_odds = np.log(np.maximum(score, _TINY)) - np.log(np.maximum(1.0 - score, _TINY))
    place = np.clip((log_odds + LIMIT) // WIDTH, 0, BINS - 1).astype(np.int64)
    return np.bincount(label * BINS + place, minlength=2 * BINS).reshape(2, BINS)


def _from_counts(counts: NDArray[np.int64]) -> ScoredRows:
    label, place = np.nonzero(counts)
    if not len(label):
        raise InputError("no scored rows: give the scores of at least one labelled row on one of the ranks")
    odds = np.exp(_CENTRES[place])
    return ScoredRows(label, np.stack([1.0 / (1.0 + odds), odds / (1.0 + odds)], axis=1), counts[label, place].astype(np.float64))


def gathered_training_rows(group: Group, rows: NDArray[np.int64], score: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Training rows of all ranks with their scores, sorted; of a row that several ranks scored, one."""
    rows, score = (np.concatenate(group.gather(part)) for part in (rows, score))
    rows, first = np.unique(rows, return_index=True)
    return rows, score[first]
