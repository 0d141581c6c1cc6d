"""SamplingController: the first answer, exact resume, and no change after an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from balancer.errors import InputError
from balancer.sampling import SamplingController, SamplingWeights, ScoredRows, load_policy
from balancer.sampling.observation import Observation

COUNTS = np.array([980, 15, 5])


class _Hardening:
    """A residual policy for tests."""

    name = "hardening"

    def act(self, observation: Observation) -> np.ndarray:
        return np.tanh([*observation.per_class.sum(axis=1).tolist(), 0.4, -0.1])


def _controller(policy: str = "rule") -> SamplingController:
    chosen = _Hardening() if policy == "hardening" else load_policy(policy, num_classes=3)
    return SamplingController(COUNTS / 1000, chosen, epochs=5, batch_budget=5000, train_counts=COUNTS, reward_counts=COUNTS)


def _rows(seed: int) -> ScoredRows:
    rng = np.random.default_rng(seed)
    return ScoredRows(np.arange(120) % 3, rng.dirichlet(np.ones(3), 120), rng.choice([1.0, 5.0], 120))


def test_constant_holds_from_the_first_epoch() -> None:
    controller = _controller("constant:share=.2,hardness=1")
    before = controller.weights
    assert before.share[1:].sum() == pytest.approx(0.2)
    after = controller.update(_rows(0), _rows(1))
    np.testing.assert_allclose(after.share, before.share, rtol=1e-6)


@pytest.mark.parametrize("policy", ["rule", "hardening", "constant"])
def test_resume_is_exact(policy: str) -> None:
    one, two = _controller(policy), _controller(policy)
    one.update(_rows(0), _rows(1))
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert (two.epoch, two.metrics) == (one.epoch, one.metrics)
    for seed in (2, 4):
        a, b = (c.update(_rows(seed), _rows(seed + 1)) for c in (one, two))
        assert isinstance(a, SamplingWeights)
        assert a.share.tobytes() == b.share.tobytes()
        assert (a.hardness, a.floor) == (b.hardness, b.floor)


def test_refusal_changes_nothing() -> None:
    controller = _controller("rule")
    before = json.dumps(controller.state_dict())
    with pytest.raises(InputError, match="2 columns for 3 classes"):
        controller.update(_rows(0), ScoredRows(np.array([0, 1]), np.full((2, 2), 0.5)))
    assert json.dumps(controller.state_dict()) == before
    with pytest.raises(InputError, match="this run has 3"):
        controller.load_state_dict({"weights": {"share": [0.5, 0.5], "hardness": 0, "floor": 0}, "history": {}})


class _Says:
    """A policy that first answers with valid weights, and then with a given answer."""

    name = "own"

    def __init__(self, then: Callable[[], object]) -> None:
        self.then = then
        self.asked = 0

    def act(self, observation: Observation) -> Any:
        self.asked += 1
        return SamplingWeights(np.array([0.5, 0.3, 0.2])) if self.asked == 1 else self.then()


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (lambda: np.array([0.1, np.nan, 0, 0, 0]), "'own' answered .* not finite"),
        (lambda: np.zeros(4), "'own' must answer with SamplingWeights or 7 numbers"),
        (lambda: np.zeros(6), "'own' must answer with SamplingWeights or 7 numbers"),
        (lambda: None, "'own' must answer"),
        (lambda: SamplingWeights(np.array([0.5, 0.5])), "'own' answered shares for 2 classes"),
        (lambda: SamplingWeights(np.array([0.5, 0.4, 0.0])), "'own': class shares must"),
        (lambda: SamplingWeights(np.zeros(3)), "'own': class shares must"),
        (lambda: SamplingWeights(np.array([0.0, 0.0, 1.0])), "'own' gives all draws to classes without training rows"),
    ],
)
def test_a_policys_nonsense_is_refused_by_name(then: Callable[[], object], message: str) -> None:
    counts = np.array([980, 20, 0])
    controller = SamplingController(counts / 1000, _Says(then), epochs=5, batch_budget=5000, train_counts=counts, reward_counts=counts)
    before, seen = json.dumps(controller.state_dict()), controller.observation
    with pytest.raises(InputError, match=message):
        controller.update(_rows(0), _rows(1))
    assert json.dumps(controller.state_dict()) == before
    assert controller.observation is seen


def test_a_torn_state_changes_nothing() -> None:
    controller = _controller("rule")
    controller.update(_rows(0), _rows(1))
    before = json.dumps(controller.state_dict())
    state = json.loads(json.dumps(_controller("rule").state_dict()))
    del state["history"]["reward"]
    with pytest.raises(KeyError):
        controller.load_state_dict(state)
    assert json.dumps(controller.state_dict()) == before
