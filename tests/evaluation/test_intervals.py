"""Intervals of shares and of average precision."""

from __future__ import annotations

import numpy as np
import pytest

from balancer.evaluation.intervals import UNKNOWN, Interval, _Ordered, average_precisions, wilson
from balancer.evaluation.metrics import Ranking


@pytest.mark.parametrize(
    ("hits", "rows", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718), (29, 29, 0.8830, 1.0)],
)
def test_intervals_of_wilson_as_published(hits: int, rows: int, low: float, high: float) -> None:
    """After Newcombe (1998), table I, method 3."""
    found = wilson(hits, rows)
    assert found.value == hits / rows
    assert found.interval == pytest.approx((low, high), abs=1e-4)
    assert found.times(100).interval == pytest.approx((100 * low, 100 * high), abs=1e-2)


def test_without_rows_nothing_is_known() -> None:
    assert wilson(0, 0) == UNKNOWN == UNKNOWN.times(5)
    values, difference = average_precisions([False] * 9, [np.arange(9)] * 2, np.arange(9))
    assert values == [UNKNOWN, UNKNOWN] and difference == UNKNOWN


def test_a_weight_counts_as_so_many_rows() -> None:
    rng = np.random.default_rng(0)
    fraud, score, weight = rng.random(300) < 0.2, rng.random(300).round(1), rng.poisson(1.0, 300)
    expected = Ranking.of(np.repeat(fraud, weight), np.repeat(score, weight)).average_precision()
    assert _Ordered(fraud, score).average_precision(weight.astype(float)) == pytest.approx(expected, rel=1e-12)


def test_the_interval_has_the_right_width_and_a_pair_is_closer_than_its_parts() -> None:
    rng = np.random.default_rng(1)
    values = []
    for _ in range(60):
        fraud = rng.random(400) < 0.1
        values.append(Ranking.of(fraud, rng.normal(size=400) + fraud).average_precision())
    spread = np.quantile(np.array(values, np.float64), (0.025, 0.975))
    fraud = rng.random(400) < 0.1
    score = rng.normal(size=400) + fraud
    (one, two), difference = average_precisions(fraud, [score, score + 0.01 * rng.normal(size=400)], np.arange(400))
    assert one.interval is not None and difference.interval is not None
    assert 0.5 < np.diff(one.interval)[0] / np.diff(spread)[0] < 2
    assert np.diff(difference.interval)[0] < 0.3 * np.diff(one.interval)[0]
    assert isinstance(two, Interval) and difference.value == pytest.approx((two.value or 0) - (one.value or 0))
    # Rows of few entities say less than as many rows of many.
    (few, _), _ = average_precisions(fraud, [score, score], np.arange(400) // 100)
    assert few.interval is None or np.diff(few.interval)[0] >= 0
    assert average_precisions(fraud, [score, score], np.arange(400)) == average_precisions(fraud, [score, score], np.arange(400))
