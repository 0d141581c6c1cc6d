"""Ranking metrics of many score vectors at once, by one sort each; equal to scikit-learn's.

A population of students is scored on the same rows every epoch, so the metrics are batched: ``label`` and
``weight`` are shared, ``score`` has one row per student. NumPy alone, because the sampler's core needs them
too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Reward = Literal["f1", "average_precision", "partial_auc"]
REWARDS: tuple[Reward, ...] = ("f1", "average_precision", "partial_auc")
PARTIAL_AUC_FPR = 0.01
_TINY = 1e-12


@dataclass(frozen=True)
class RankingMetrics:
    """Metrics of M score vectors against one label vector; all (M,) float64."""

    f1: NDArray[np.float64]
    """F1 at its best threshold."""
    average_precision: NDArray[np.float64]
    partial_auc: NDArray[np.float64]
    """Area under the ROC curve up to a false-positive rate of .01, divided by .01: the mean recall there."""

    def named(self, reward: Reward) -> NDArray[np.float64]:
        """The metric with the name ``reward``."""
        return {"f1": self.f1, "average_precision": self.average_precision, "partial_auc": self.partial_auc}[reward]


def ranking_metrics(positive: NDArray[np.bool_], score: NDArray[Any], weight: NDArray[Any]) -> RankingMetrics:
    """Metrics of binary scores.

    Args:
        positive: (n,) label.
        score: (M, n) scores.
        weight: (n,) weight of each row.

    Returns:
        Metrics (M,). All are 0 where no row is positive, and the partial AUC also where no row is negative.
    """
    order = np.argsort(-score, axis=1)
    ranked = np.take_along_axis(score, order, axis=1)
    weight = np.asarray(weight, dtype=np.float64)
    gain = np.where(positive, weight, 0.0)
    hits, alarms = gain[order], np.where(positive, 0.0, weight)[order]
    true_positive, false_positive = np.cumsum(hits, axis=1), np.cumsum(alarms, axis=1)
    num_positive, num_negative = gain.sum(), weight.sum() - gain.sum()
    # A threshold can't separate equal scores: only the last row of each run of ties is a point of a curve.
    last = np.ones(score.shape, dtype=bool)
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    f1 = np.where(last, 2.0 * true_positive / (true_positive + false_positive + max(num_positive, _TINY)), 0.0).max(axis=1)
    precision = true_positive / np.maximum(true_positive + false_positive, _TINY)
    if not last.all():
        position = np.where(last, np.arange(score.shape[1]), score.shape[1])
        end = np.minimum.accumulate(position[:, ::-1], axis=1)[:, ::-1]
        precision = np.take_along_axis(precision, end, axis=1)
    average_precision = (hits * precision).sum(axis=1) / max(num_positive, _TINY)
    return RankingMetrics(f1, average_precision, _partial_auc(true_positive, false_positive, last, num_positive, num_negative))


def _partial_auc(
    true_positive: NDArray[np.float64],
    false_positive: NDArray[np.float64],
    last: NDArray[np.bool_],
    num_positive: float,
    num_negative: float,
) -> NDArray[np.float64]:
    """(M,) area under each ROC curve up to ``PARTIAL_AUC_FPR`` by trapezoids, divided by that rate."""
    area = np.zeros(len(true_positive))
    if num_positive <= 0 or num_negative <= 0:
        return area
    limit = PARTIAL_AUC_FPR
    for student in range(len(area)):
        points = last[student]
        fpr = np.concatenate([[0.0], false_positive[student, points] / num_negative])
        recall = np.concatenate([[0.0], true_positive[student, points] / num_positive])
        inside = int(np.searchsorted(fpr, limit, side="right"))
        at_limit = np.interp(limit, fpr, recall) if inside < len(fpr) else recall[-1]
        area[student] = np.trapezoid(np.append(recall[:inside], at_limit), np.append(fpr[:inside], limit)) / limit
    return area


def macro_metrics(label: NDArray[np.integer[Any]], score: NDArray[Any], weight: NDArray[Any]) -> RankingMetrics:
    """Mean of :func:`ranking_metrics` over all classes but class 0, each against the rest.

    With two classes these are the metrics of class 1. A class without a row among ``label`` can't be measured
    and is left out of the mean.

    Args:
        label: (n,) class index.
        score: (M, n, K) class probabilities.
        weight: (n,) how many rows each represents.

    Returns:
        Metrics (M,).
    """
    present = [c for c in range(1, score.shape[2]) if (label == c).any()]
    if not present:
        zero = np.zeros(len(score))
        return RankingMetrics(zero, zero, zero)
    each = [ranking_metrics(label == c, score[:, :, c], weight) for c in present]
    return RankingMetrics(
        np.mean([m.f1 for m in each], axis=0),
        np.mean([m.average_precision for m in each], axis=0),
        np.mean([m.partial_auc for m in each], axis=0),
    )
