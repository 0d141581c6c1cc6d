"""Intervals of 95 % for shares and for average precision, so that few rows do not look like a result.

What is special: average precision of two models is resampled together and by entity. Rows of one entity
resemble each other, and only the difference on the same rows says which model is better. Each resample gives
every entity a weight that is Poisson distributed, which needs one sort for all resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.evaluation.metrics import Floats, Ranking
from balancer.sampling.seeding import generator

NORMAL = 1.959963984540054
"""Standard deviations within which 95 % of a normal distribution lie, on both sides together."""
RESAMPLES = 200
_LEAST = 20
"""Fewest resamples with frauds from which an interval is computed."""


class Interval(NamedTuple):
    """A value with its interval of 95 %."""

    value: float | None
    """None where it is not defined, as recall without frauds."""
    interval: tuple[float, float] | None
    """Low and high; None where there are too few rows."""

    def times(self, factor: float) -> Interval:
        """The same in other units."""
        if self.value is None or self.interval is None:
            return self
        return Interval(self.value * factor, (self.interval[0] * factor, self.interval[1] * factor))


UNKNOWN = Interval(None, None)


def wilson(hits: int, rows: int) -> Interval:
    """The share ``hits / rows`` and its interval after Wilson (1927), which is right for small shares too."""
    if rows <= 0:
        return UNKNOWN
    share, square = hits / rows, NORMAL**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    half = NORMAL * math.sqrt(share * (1 - share) / rows + square / (4 * rows**2)) / (1 + square / rows)
    low, high = 0.0 if hits == 0 else max(0.0, middle - half), 1.0 if hits == rows else min(1.0, middle + half)
    return Interval(share, (low, high))


def average_precisions(
    fraud: ArrayLike, scores: Sequence[ArrayLike], group: ArrayLike, *, seed: int = 0
) -> tuple[list[Interval], Interval]:
    """Average precision of two models on the same rows, and that of the second minus that of the first.

    Args:
        fraud: (n,) whether a row is a fraud.
        scores: For each of the two models, (n,) scores.
        group: (n,) number of the entity of each row; rows of one entity are resampled together.
        seed: Random seed.
    """
    frauds = np.asarray(fraud, dtype=bool)
    values = [Ranking.of(frauds, score).average_precision() for score in scores]
    if not frauds.any():
        return [UNKNOWN for _ in values], UNKNOWN
    _, groups = np.unique(np.asarray(group), return_inverse=True)
    ordered = [_Ordered(frauds, np.asarray(score, dtype=np.float64)) for score in scores]
    random, drawn = generator(seed, "average precision", len(frauds)), []
    for _ in range(RESAMPLES):
        weight = random.poisson(1.0, groups.max() + 1).astype(np.float64)[groups]
        if weight[frauds].any():
            drawn.append([each.average_precision(weight) for each in ordered])
    found = np.array(drawn).reshape(len(drawn), len(values))
    difference = None if None in values else float(np.subtract(values[1], values[0]))  # type: ignore[arg-type]
    return [_with(value, found[:, place]) for place, value in enumerate(values)], _with(difference, found[:, 1] - found[:, 0])


class _Ordered:
    """Rows in the order of their scores, to compute average precision with many weights.

    Args:
        fraud: (n,) whether a row is a fraud.
        score: (n,) score.
    """

    def __init__(self, fraud: NDArray[np.bool_], score: Floats) -> None:
        self._order = np.argsort(-score, kind="stable")
        ordered = score[self._order]
        self._last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self._fraud = fraud[self._order]

    def average_precision(self, weight: Floats) -> float:
        """Average precision where row i counts ``weight[i]`` times; some fraud must count."""
        ordered = weight[self._order]
        rows, hits = np.cumsum(ordered)[self._last], np.cumsum(ordered * self._fraud)[self._last]
        gained = np.diff(hits, prepend=0)
        return float(np.sum(gained * hits / np.maximum(rows, 1e-300)) / hits[-1])


def _with(value: float | None, drawn: Floats) -> Interval:
    if value is None or len(drawn) < _LEAST:
        return Interval(value, None)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(value, (float(low), float(high)))
