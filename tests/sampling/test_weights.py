"""SamplingWeights: a residual of zero, bounds of actions, loss weights and offsets, JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.sampling.weights import (
    HALF_LIVES,
    IMPORTANCE_STEP,
    MAX_HARDNESS,
    MAX_REPEATS,
    SHARE_STEP,
    SamplingWeights,
    class_prior,
    class_weights,
    minority_share,
    move,
    share_limit,
    stacked,
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
    before = [SamplingWeights(rng.dirichlet(np.ones(4) * 5), 1.0, 0.1, *rng.random(2), rng.choice([0.3, np.inf])) for _ in range(6)]
    for size in (6, 8):
        action = rng.uniform(-1, 1, (6, size))
        moved = move(stacked(before), action, prior)
        for i in range(6):
            one, student = before[i].moved(action[i], prior), moved.student(i)
            np.testing.assert_allclose(one.share, student.share, rtol=1e-12)
            assert one.to_dict() | {"share": 0} == student.to_dict() | {"share": 0}
            np.testing.assert_allclose(moved.class_weight(prior)[i], one.class_weight(prior), rtol=1e-12)
            np.testing.assert_allclose(moved.logit_offset(prior)[i], one.logit_offset(prior), rtol=1e-12)


def test_up_means_more() -> None:
    prior = PRIORS[0]
    start = start_weights(prior)
    assert start.share[1] == pytest.approx(np.sqrt(0.01) / (np.sqrt(0.01) + np.sqrt(0.99)))
    assert start.moved(np.array([0, 1, 0, 0]), prior).share[1] > start.share[1]
    assert start.moved(np.array([0, 0, 1, 0]), prior).hardness > 0


def test_share_limit_bounds_the_repeats_of_a_minority_row() -> None:
    counts = np.array([9_900, 60, 40])
    assert share_limit(counts, 100) == 0.5
    for passes in (0.5, 1, 10, 300):  # in each pass, or in a run of less than one pass
        draws = share_limit(counts, int(10_000 * passes)) * 10_000 * passes
        assert draws / 100 == pytest.approx(MAX_REPEATS * max(1.0, passes))


@given(st.integers(0, 3), st.integers(0, 2**31), st.booleans())
def test_any_walk_of_all_numbers_stays_in_bounds(case: int, seed: int, recent: bool) -> None:
    prior, rng = PRIORS[case], np.random.default_rng(seed)
    weights = SamplingWeights(class_prior(prior), half_life=0.1 if recent else np.inf)
    for _ in range(12):
        weights = weights.moved(rng.uniform(-1.5, 1.5, len(prior) + 4), prior, limit=0.01)
        assert abs(weights.share.sum() - 1) < 1e-9
        assert not weights.share[prior == 0].any()
        assert 0 <= weights.hardness <= MAX_HARDNESS
        assert 0 <= weights.class_importance <= 1 and 0 <= weights.hardness_importance <= 1
        assert HALF_LIVES[0] <= weights.half_life < HALF_LIVES[1] or weights.half_life == math.inf
        assert weights.floor == SamplingWeights(prior).floor  # such residuals keep the floor


def test_each_of_all_numbers_moves_its_own_part() -> None:
    prior = PRIORS[0]
    start = SamplingWeights(np.array([0.7, 0.3]), 0.5, 0.05, 0.5, 0.5, 1.0)
    parts = ("share", "hardness", "class_importance", "hardness_importance", "half_life")

    def moved(place: int, value: float) -> dict[str, Any]:
        action = np.zeros(6)
        action[place] = value
        after = start.moved(action, prior, limit=0.01)
        return {name: getattr(after, name) for name in parts if not np.allclose(getattr(after, name), getattr(start, name))}

    share = moved(1, 1.0)["share"]
    assert np.log(share[1] / share[0]) == pytest.approx(np.log(0.3 / 0.7) + SHARE_STEP)
    assert moved(2, 1.0) == {"hardness": 1.5}
    assert moved(3, -1.0) == {"class_importance": 0.5 - IMPORTANCE_STEP}
    assert moved(4, 0.5) == {"hardness_importance": 0.5 + IMPORTANCE_STEP / 2}
    assert moved(5, 1.0) == {"half_life": 2.0}
    assert moved(5, -1.0) == {"half_life": 0.5}
    none = SamplingWeights(prior)
    assert none.moved(np.array([0, 0, 0, 0, 0, 1.0]), prior).half_life == math.inf
    assert none.moved(np.array([0, 0, 0, 0, 0, -1.0]), prior).half_life == HALF_LIVES[1] / 2
    kept = start.moved(np.zeros(6), prior, limit=0.01)
    np.testing.assert_allclose(kept.share, start.share)
    assert kept.to_dict() | {"share": 0} == start.to_dict() | {"share": 0}


SHARES = st.lists(st.floats(1e-4, 1), min_size=2, max_size=6)


@given(SHARES, st.integers(0, 2**31), st.floats(0, 1))
def test_class_weights_restore_a_part_of_the_prior(shares: list[float], seed: int, importance: float) -> None:
    share = np.array(shares) / sum(shares)
    prior = np.random.default_rng(seed).dirichlet(np.ones(len(share)))
    weights = SamplingWeights(share, class_importance=importance)
    weight, mass = weights.class_weight(prior), np.exp(weights.logit_offset(prior))
    assert (share * weight).sum() == pytest.approx(1)  # mean 1 over the drawn rows
    plain = (prior / share) ** importance
    np.testing.assert_allclose(weight, plain / (share * plain).sum(), rtol=1e-6)
    np.testing.assert_allclose(mass, np.maximum(share * weight, 1e-9), rtol=1e-6)
    assert mass.sum() == pytest.approx(1, abs=1e-6)
    for exponent, expected in ((0.0, share), (1.0, prior)):
        whole = SamplingWeights(share, class_importance=exponent)
        np.testing.assert_allclose(np.exp(whole.logit_offset(prior)), np.maximum(expected, 1e-9), rtol=1e-6, atol=1e-9)


def test_a_class_without_share_or_rows_has_no_weight() -> None:
    weight = class_weights(np.array([0.5, 0.5, 0.0]), 0.5, np.array([0.9, 0.0, 0.1]))
    assert weight[1:].tolist() == [0.0, 0.0]
    offset = SamplingWeights(np.array([0.5, 0.0, 0.5]), class_importance=1.0).logit_offset(np.array([0.5, 0.1, 0.4]))
    assert np.isfinite(offset).all()
    assert offset[1] == pytest.approx(np.log(1e-9))


def test_only_importance_compensates() -> None:
    share = np.array([0.5, 0.5])
    assert not SamplingWeights(share, 1.0, half_life=0.5).compensated
    assert SamplingWeights(share, class_importance=0.1).compensated
    assert SamplingWeights(share, hardness_importance=0.1).compensated
    assert SamplingWeights(share).class_weight(np.array([0.99, 0.01])).tolist() == [1.0, 1.0]


def test_another_order_of_classes_keeps_the_rest() -> None:
    weights = SamplingWeights(np.array([0.5, 0.3, 0.2]), 1.0, 0.1, 0.5, 0.25, 0.5)
    other = weights.reordered(np.array([2, 0, 1]))
    assert other.share.tolist() == [0.2, 0.5, 0.3]
    assert other.to_dict() | {"share": 0} == weights.to_dict() | {"share": 0}


def test_json_is_exact() -> None:
    share = minority_share(PRIORS[1], 0.3)
    for weights in (SamplingWeights(share, 0.1 + 0.2, 1 / 3), SamplingWeights(share, 0.1 + 0.2, 1 / 3, 1 / 7, 0.3, 1 / 11)):
        back = SamplingWeights.from_dict(json.loads(json.dumps(weights.to_dict(), allow_nan=False)))
        assert back.share.tobytes() == weights.share.tobytes()
        assert back._numbers() == weights._numbers()
    plain = SamplingWeights(share).to_dict()
    assert set(plain) == {"share", "hardness", "floor"}  # as in version 0.1
    assert SamplingWeights.from_dict(plain)._numbers() == (0.0, SamplingWeights(share).floor, 0.0, 0.0, math.inf)


@pytest.mark.parametrize(
    ("share", "hardness", "floor", "message"),
    [([0.5, 0.6], 0, 0, "sum to 1"), ([1.0], 0, 0, "two or more"), ([0.5, 0.5], 4, 0, "hardness"), ([0.5, 0.5], 0, -1, "floor")],
)
def test_refuses(share: list[float], hardness: float, floor: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingWeights(np.array(share), hardness, floor)


@pytest.mark.parametrize(
    ("name", "value"),
    [("class_importance", 1.1), ("class_importance", -0.1), ("hardness_importance", 2.0), ("half_life", 0.0), ("half_life", float("nan"))],
)
def test_refuses_exponents_and_half_lives(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        SamplingWeights(np.array([0.5, 0.5]), **{name: value})
