"""Tune the alarm threshold: the best F1 on rows that were not used for anything before.

What is special: the threshold is the midpoint between the lowest score that raises an alarm and the next
lower score. A threshold equal to a score would depend on the last bit of one row, and the rounding of another
machine could move that row across it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from balancer.errors import InputError


def tune_threshold(score: ArrayLike, label: ArrayLike, weight: ArrayLike | None = None) -> float:
    """Find the threshold with the best F1 for `score >= threshold`.

    Of several thresholds with the same F1 the highest is chosen, which raises the fewest alarms.

    Args:
        score: (n,) probability of fraud.
        label: (n,) class index; 0 is legitimate, -1 is unlabelled (these rows are left out).
        weight: (n,) how much each row counts; None: 1 each.

    Raises:
        InputError: If no row is a fraud.
    """
    labels = np.asarray(label)
    scores = np.asarray(score, dtype=np.float64)[labels >= 0]
    fraud = labels[labels >= 0] > 0
    if not fraud.any():
        raise InputError(
            "the validation rows that tune the threshold have no fraud: give validation a larger share in [split], or give more data"
        )
    from sklearn.metrics import precision_recall_curve  # slow to import, and the service does not need it

    weights = None if weight is None else np.asarray(weight, dtype=np.float64)[labels >= 0]
    precision, recall, thresholds = precision_recall_curve(fraud, scores, sample_weight=weights)
    precision, recall = precision[:-1], recall[:-1]  # the last point is no alarm at all and has no threshold
    # Rounded, so that equal values of F1 compare as equal whatever the order of the arithmetic.
    f1 = np.round(2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny), 12)
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    lowest = float(thresholds[best])
    below = scores[scores < lowest]
    if not len(below):
        return lowest
    middle = (lowest + float(below.max())) / 2
    return middle if middle > below.max() else lowest
