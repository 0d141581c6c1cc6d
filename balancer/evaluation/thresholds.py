"""The alarm threshold: the best F1 on rows that neither trained the model nor chose its weights.

Special: it lies in the middle between the lowest score that raises an alarm and the next lower one, not on a score. A threshold on a
score hangs on the last bit of one row, and another machine's rounding would move that row across it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from balancer.errors import InputError


def tune_threshold(score: ArrayLike, label: ArrayLike) -> float:
    """Threshold with the best F1 for ``score >= threshold``; of several equally good ones the highest, which raises the fewest alarms.

    Parameters
    ----------
    score
        (n,) probability of fraud.
    label
        (n,) class index, 0 legitimate, -1 unlabelled (such rows are left out).

    Raises
    ------
    InputError
        When no row is a fraud.
    """
    labels = np.asarray(label)
    scores = np.asarray(score, dtype=np.float64)[labels >= 0]
    fraud = labels[labels >= 0] > 0
    if not fraud.any():
        raise InputError(
            "the validation rows that tune the threshold have no fraud: widen the validation part in [split], or give more data"
        )
    from sklearn.metrics import precision_recall_curve  # takes a second to import, and the service needs no scikit-learn

    precision, recall, thresholds = precision_recall_curve(fraud, scores)
    precision, recall = precision[:-1], recall[:-1]  # the last point stands for no alarm at all and has no threshold
    # Rounded, so that equal F1 compare equal whatever their order of arithmetic.
    f1 = np.round(2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny), 12)
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))
    lowest = float(thresholds[best])
    below = scores[scores < lowest]
    if not len(below):
        return lowest
    middle = (lowest + float(below.max())) / 2
    return middle if middle > below.max() else lowest
