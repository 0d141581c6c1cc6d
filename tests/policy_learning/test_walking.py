"""The loop in which policies train students: which student trains under which policy, and errors that name
the policy."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from balancer.envs.population import PopulationStack
from balancer.envs.problem import synthetic_problem
from balancer.envs.vec_env import PopulationEpisode
from balancer.errors import InputError
from balancer.policy_learning.walking import PolicyWalk, fitting_bias, walk_policies
from balancer.sampling.constant_policy import COMPENSATED, PLAIN_MANY, DefaultPolicy
from balancer.sampling.observation import Observation
from balancer.sampling.policies import FALLBACK, AutoPolicy, ConstantPolicy, OutsideTraining, StartPolicy, compensates, load_policy
from balancer.sampling.weights import SamplingWeights

PROBLEM = synthetic_problem(3, rows=1_000)
STORED = Path(__file__).parents[1] / "stored" / "0.1" / "policy"
"""A policy of version 0.1."""


def _episode(compensated: np.ndarray | None = None) -> PopulationEpisode:
    stack = PopulationStack(PROBLEM, groups=2, siblings=3, batch_size=32, compensated=compensated)
    return PopulationEpisode(stack, epochs=3, steps_per_epoch=2)


class _Spy:
    """A policy that notes what it saw; its answer is the weights given."""

    name = "spy"

    def __init__(self, weights: SamplingWeights) -> None:
        self.weights, self.seen = weights, list[Observation]()

    def act(self, observation: Observation) -> SamplingWeights:
        self.seen.append(observation)
        return self.weights


def test_students_start_with_the_bias_that_fits_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero with the sampler's loss, else the log of the first shares; or a bias of one's own."""
    shares = [np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.06, 0.04]), np.array([0.2, 0.4, 0.4])]
    policies = [_Spy(SamplingWeights(share, class_importance=0.5)) for share in shares]
    added: list[np.ndarray] = []
    monkeypatch.setattr(PopulationStack, "add_bias", lambda self, bias: added.append(bias))
    compensated = np.array([True, False, False] * 2)
    walk_policies(_episode(compensated), policies)
    assert len(added) == 1  # once, before the first epoch
    expected = np.stack([np.zeros(3), np.log(shares[1] * 3), np.log(shares[2] * 3)])
    np.testing.assert_allclose(added[0], np.tile(expected, (2, 1)))
    walk_policies(_episode(compensated), policies, bias=lambda weights, with_loss: np.full((6, 3), float(len(weights) + with_loss.sum())))
    np.testing.assert_array_equal(added[1], np.full((6, 3), 8.0))


def test_scores_at_the_start_are_the_shares() -> None:
    """A network that knows nothing predicts what is drawn, without an epoch of training."""
    share = np.array([0.9, 0.06, 0.04])
    episode = _episode()
    episode.stack._parameters[-2].zero_()  # the weights of the last layer
    episode.stack.add_bias(fitting_bias([SamplingWeights(share)] * 6, np.zeros(6, dtype=bool)))
    np.testing.assert_allclose(episode.stack.score(PROBLEM.x_val)[0, :5], np.tile(share, (5, 1)), atol=1e-6)


def test_learned_policies_of_both_versions_train_side_by_side() -> None:
    """Those of version 0.1 answer with K + 2 numbers, from their own start, and without compensation."""
    old, new = load_policy(STORED, num_classes=3), AutoPolicy("ppo")
    assert (compensates(old), compensates(new)) == (False, True)
    episode = _episode(np.array([compensates(old), compensates(new), False] * 2))
    walk = PolicyWalk(episode)
    starts = walk.weights[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideTraining)
        for _ in range(3):
            walk.train_epoch([old, new, StartPolicy()])
    assert (starts[0].hardness, starts[0].class_importance) == (0.0, 0.0)
    assert (starts[1].hardness, starts[1].class_importance) == (COMPENSATED.hardness, COMPENSATED.class_importance)
    assert walk.weights[0].to_dict() != starts[0].to_dict()
    assert walk.weights[0].class_importance == 0
    assert walk.weights[0].share[1:].sum() <= max(episode.share_limit, 1 - episode.prior[0]) + 1e-9
    assert walk.weights[1].to_dict() != starts[1].to_dict()


def test_policies_see_whether_their_student_compensates() -> None:
    policies = [_Spy(SamplingWeights(np.full(3, 1 / 3))) for _ in range(3)]
    walk_policies(_episode(np.array([True, False, True] * 2)), policies)
    assert [[seen.compensated for seen in policy.seen] for policy in policies] == [[True] * 6, [False] * 6, [True] * 6]
    mixed = [DefaultPolicy(), DefaultPolicy(), ConstantPolicy(0.3)]
    weights = walk_policies(_episode(np.array([True, False, True] * 2)), mixed).weights
    prior = _episode().prior
    for found, constant in zip(weights[:2], (COMPENSATED, PLAIN_MANY), strict=True):
        assert (found.hardness, found.class_importance) == (constant.hardness, constant.class_importance)
        np.testing.assert_allclose(found.share, constant.weights(prior).share, rtol=1e-6)  # policies see the prior in float32


def test_student_i_trains_under_policy_i_of_the_cycle() -> None:
    episode, finished = _episode(), list[int]()
    policies = [ConstantPolicy(0.4, 0.5), StartPolicy(), FALLBACK]
    walk = walk_policies(episode, policies, finished.append)
    weights, metrics = walk.weights, walk.metrics
    assert finished == [1, 2, 3]
    assert metrics.f1.shape == (6,)
    for student, policy in enumerate(policies * 2):
        expected = (0.4, 0.5) if policy is policies[0] else (None, 1.0) if policy is FALLBACK else (None, 0.0)
        assert weights[student].hardness == expected[1]
        if expected[0] is not None:
            assert weights[student].share[1:].sum() == pytest.approx(expected[0])
    fallback = FALLBACK.weights(episode.prior, episode.share_limit)
    assert weights[2].to_dict() == weights[5].to_dict() == fallback.to_dict()


def test_an_epoch_at_a_time_is_the_whole_walk() -> None:
    policies = [load_policy(name, num_classes=3) for name in ("rule", "random", "schedule")]
    whole = walk_policies(_episode(), policies)
    weights, metrics = whole.weights, whole.metrics
    walk = PolicyWalk(_episode())
    assert not walk.metrics.f1.any()
    for _ in range(3):
        walk.train_epoch(policies)
    assert [each.to_dict() for each in walk.weights] == [each.to_dict() for each in weights]
    np.testing.assert_array_equal(walk.metrics.average_precision, metrics.average_precision)


def test_an_answer_that_can_not_be_used_is_refused_by_name() -> None:
    class Wrong:
        name = "wrong"

        def act(self, observation: Observation) -> np.ndarray:
            return np.full(5, np.nan)

    with pytest.raises(InputError, match=r"policy 'wrong' answered .* not finite"):
        walk_policies(_episode(), [StartPolicy(), Wrong(), StartPolicy()])
