"""The loop in which policies train students: which student trains under which policy, and errors that name
the policy."""

from __future__ import annotations

import numpy as np
import pytest

from balancer.envs.population import PopulationStack
from balancer.envs.problem import synthetic_problem
from balancer.envs.vec_env import PopulationEpisode
from balancer.errors import InputError
from balancer.policy_learning.walking import PolicyWalk, walk_policies
from balancer.sampling.observation import Observation
from balancer.sampling.policies import FALLBACK, ConstantPolicy, StartPolicy, load_policy

PROBLEM = synthetic_problem(3, rows=1_000)


def _episode() -> PopulationEpisode:
    return PopulationEpisode(PopulationStack(PROBLEM, groups=2, siblings=3, batch_size=32), epochs=3, steps_per_epoch=2)


def test_student_i_trains_under_policy_i_of_the_cycle() -> None:
    episode, finished = _episode(), list[int]()
    policies = [ConstantPolicy(0.4, 0.5), StartPolicy(), FALLBACK]
    weights, metrics = walk_policies(episode, policies, finished.append)
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
    weights, metrics = walk_policies(_episode(), policies)
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
