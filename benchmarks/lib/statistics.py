"""Statistics of repeated measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

from scipy import stats


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of ``values`` and ends of its 95 % interval by Student's t, None for a single value."""
    center = mean(values)
    if len(values) < 2:
        return center, None, None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return center, center - half, center + half


def corrected_interval(values: Sequence[float], test_per_train: float) -> tuple[float, float | None, float | None]:
    """Mean of differences over random splits of one table and its 95 % interval, None for a single value.

    Splits share rows, so their differences are correlated. The corrected resampled t interval (Nadeau and
    Bengio, 2003) takes the variance of the mean as the variance of the values times ``1 / n +
    test_per_train``.

    Args:
        values: n differences.
        test_per_train: Test rows of a split, divided by its training rows.
    """
    center = mean(values)
    if len(values) < 2:
        return center, None, None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) * math.sqrt(1.0 / len(values) + test_per_train)
    return center, center - half, center + half
