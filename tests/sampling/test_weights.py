"""SamplingWeights: a residual of zero, bounds of actions, JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.sampling.weights import (
    MAX_HARDNESS,
    MAX_REPEATS,
    SamplingWeights,
    class_prior,
    minority_share,
    move,
    share_limit,
    start_weights,
)

PRIORS = [np.array([0.99, 0.01]), class_prior(np.array([10_000, 5, 50, 30])), np.full(10, 0.1), np.array([0.9, 0.1, 0.0])]


@pytest.mark.parametrize("prior", PRIORS)
def test_zero_keeps(prior: np.ndarray) -> None:
    start = start_weights(prior)
    kept = start.moved(np.zeros(len(prior) + 2), prior)
    np.testing.assert_allclose(kept.share, start.share, atol=1e-12)
    assert (kept.hardness, kept.floor) == (start.hardness, start.floor)


@given(st.integers(0, 3), st.integers(0, 2**31), st.integers(1, 10**6))
def test_any_walk_stays_in_bounds(case: int, seed: int, budget: int) -> None:
    prior, rng = PRIORS[case], np.random.default_rng(seed)
    limit = share_limit(10_000 * prior, budget)
    weights = start_weights(prior, limit)
    high = max(limit, 1 - prior[0])
    assert 1 - weights.share[0] <= high + 1e-9
    for _ in range(12):
        weights = weights.moved(rng.uniform(-1.5, 1.5, len(prior) + 2), prior, limit)
        assert abs(weights.share.sum() - 1) < 1e-9
        assert 1 - prior[0] - 1e-9 <= 1 - weights.share[0] <= high + 1e-9
        assert 0 <= weights.hardness <= MAX_HARDNESS
        assert 0 <= weights.floor <= 1
        assert not weights.share[prior == 0].any()


def test_batched_equals_single() -> None:
    prior, rng = PRIORS[1], np.random.default_rng(0)
    share, action = rng.dirichlet(np.ones(4) * 5, 6), rng.uniform(-1, 1, (6, 6))
    moved, hardness, floor = move(share, np.ones(6), np.full(6, 0.1), action, prior)
    for i in range(6):
        one = SamplingWeights(share[i], 1.0, 0.1).moved(action[i], prior)
        np.testing.assert_allclose(one.share, moved[i], rtol=1e-12)
        assert (one.hardness, one.floor) == (pytest.approx(hardness[i]), pytest.approx(floor[i]))


def test_up_means_more() -> None:
    prior = PRIORS[0]
    start = start_weights(prior)
    assert start.share[1] == pytest.approx(np.sqrt(0.01) / (np.sqrt(0.01) + np.sqrt(0.99)))
    assert start.moved(np.array([0, 1, 0, 0]), prior).share[1] > start.share[1]
    assert start.moved(np.array([0, 0, 1, 0]), prior).hardness > 0


def test_share_limit_bounds_the_repeats_of_a_minority_row() -> None:
    counts = np.array([9_900, 60, 40])
    assert share_limit(counts, 100) == 0.5
    assert share_limit(counts, 100_000) * 100_000 / 100 == pytest.approx(MAX_REPEATS)


def test_json_is_exact() -> None:
    weights = SamplingWeights(minority_share(PRIORS[1], 0.3), 0.1 + 0.2, 1 / 3)
    back = SamplingWeights.from_dict(json.loads(json.dumps(weights.to_dict())))
    assert back.share.tobytes() == weights.share.tobytes()
    assert (back.hardness, back.floor) == (weights.hardness, weights.floor)


@pytest.mark.parametrize(
    ("share", "hardness", "floor", "message"),
    [([0.5, 0.6], 0, 0, "sum to 1"), ([1.0], 0, 0, "two or more"), ([0.5, 0.5], 4, 0, "hardness"), ([0.5, 0.5], 0, -1, "floor")],
)
def test_refuses(share: list[float], hardness: float, floor: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingWeights(np.array(share), hardness, floor)
