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
