"""ConstantPolicy: the ways of giving class shares, fixed weights, the fallback of a bundle, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from balancer.errors import InputError
from balancer.sampling import SamplingController
from balancer.sampling.constant_policy import FALLBACK, ConstantPolicy, PriorPower, fallback_from_dict, fallback_to_dict
from balancer.sampling.weights import SamplingWeights, share_limit

COUNTS = np.array([9_000, 900, 100])
PRIOR = COUNTS / COUNTS.sum()
ROOT = np.sqrt(PRIOR[1:]) / np.sqrt(PRIOR[1:]).sum()


def _weights(policy: ConstantPolicy, budget: int = 4_000) -> SamplingWeights:
    """Weights of a run of ``budget`` rows under ``policy``."""
    return SamplingController(PRIOR, policy, epochs=4, batch_budget=budget, train_counts=COUNTS, reward_counts=COUNTS).weights


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.4, np.array([0.6, *(0.4 * ROOT)])),
        (0.01, np.array([0.9, *(0.1 * ROOT)])),  # raised to the prior of the minority
        (None, PRIOR),
        ((0.2, 0.5, 0.3), np.array([0.2, 0.5, 0.3])),
        (PriorPower(0.0), np.array([0.5, 0.25, 0.25])),  # equal classes, within the limit
        (PriorPower(1.0), PRIOR),
    ],
)
def test_ways_of_giving_shares(share: Any, expected: np.ndarray) -> None:
    weights = _weights(ConstantPolicy(share, hardness=1.5, floor=0.1))
    np.testing.assert_allclose(weights.share, expected, rtol=1e-6)
    assert (weights.hardness, weights.floor) == (1.5, 0.1)


def test_the_limit_bounds_a_power_of_the_prior_only() -> None:
    counts = np.array([9_900, 60, 40])
    prior, limit = counts / 10_000, share_limit(counts, 40_000)
    assert limit == pytest.approx(8 * 0.01)

    def minority(policy: ConstantPolicy) -> float:
        controller = SamplingController(prior, policy, epochs=4, batch_budget=40_000, train_counts=counts, reward_counts=counts)
        return float(controller.weights.share[1:].sum())

    assert minority(ConstantPolicy(PriorPower(0.0))) == pytest.approx(limit)
    assert minority(ConstantPolicy(PriorPower(0.0), bounded=False)) == pytest.approx(2 / 3)
    assert minority(ConstantPolicy(0.4)) == pytest.approx(0.4)
    assert minority(ConstantPolicy((0.2, 0.5, 0.3))) == pytest.approx(0.8)


def test_fixed_weights_need_shares_by_class_and_no_hardness() -> None:
    weights = SamplingWeights(np.array([0.2, 0.5, 0.3]), 0.0, 0.1)
    fixed = ConstantPolicy.of(weights, "mine").fixed_weights()
    assert fixed is not None and fixed.to_dict() == weights.to_dict()
    assert ConstantPolicy((0.2, 0.5, 0.3), hardness=1.0).fixed_weights() is None
    assert all(ConstantPolicy(share, 0.0).fixed_weights() is None for share in (0.2, None, PriorPower()))


def test_a_fallback_survives_its_file() -> None:
    constant = ConstantPolicy(PriorPower(0.3), 1.25, 0.2, FALLBACK.name)
    assert fallback_from_dict(fallback_to_dict(constant)) == constant
    assert fallback_from_dict({}) == FALLBACK
    assert fallback_from_dict({"hardness": 2}) == ConstantPolicy(FALLBACK.share, 2.0, FALLBACK.floor, FALLBACK.name)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"hardness": 4.0}, "hardness"), ({"floor": -0.1}, "floor"), ({"share": PriorPower}, "share_power")],
)
def test_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PriorPower(1.5) if "share" in values else ConstantPolicy(**values)
