"""The threshold has the best F1 there is, and lies between scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from balancer.errors import InputError
from balancer.evaluation.thresholds import tune_threshold


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=40).filter(lambda rows: any(row[0] for row in rows)))
def test_no_threshold_has_a_better_f1(rows: list[tuple[bool, int]]) -> None:
    label, score = np.array([int(row[0]) for row in rows]), np.array([row[1] / 8 for row in rows])
    threshold = tune_threshold(score, label)
    reached = f1_score(label, score >= threshold)
    assert reached == pytest.approx(max(f1_score(label, score >= other) for other in set(score)))
    # Of equally good ones the highest: the fewest alarms.
    assert all(
        f1_score(label, score >= other) < reached - 1e-9
        for other in set(score)
        if other > threshold and (score < other).sum() > (score < threshold).sum()
    )


def test_middle_between_neighbouring_scores() -> None:
    assert tune_threshold([0.1, 0.3, 0.7, 0.9], [0, 0, 1, 2]) == pytest.approx(0.5)
    assert tune_threshold([0.2, 0.4], [1, 1]) == 0.2  # nothing lower to keep away from


def test_neighbouring_floats_are_told_apart() -> None:
    low, high = 0.3, np.nextafter(0.3, 1)
    threshold = tune_threshold([low, high], [0, 1])
    assert low < threshold <= high


def test_row_order_and_unlabelled_rows_change_nothing() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(2_000) < 0.05).astype(int)
    score = np.round(rng.random(2_000) * 0.5 + label * 0.3, 2)
    order = rng.permutation(2_000)
    again = tune_threshold(np.append(score[order], 0.999), np.append(label[order], -1))
    assert again == tune_threshold(score, label)


def test_one_positive_is_enough_and_none_is_an_error() -> None:
    assert tune_threshold([0.2, 0.4, 0.8], [0, 0, 1]) == pytest.approx(0.6)
    with pytest.raises(InputError, match="no fraud"):
        tune_threshold([0.2, 0.4], [0, 0])
