"""The one loop that walks policies through students."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from balancer.envs.vec_env import PopulationEpisode
from balancer.sampling.observation import Observation
from balancer.sampling.policies import Policy, answered
from balancer.sampling.scores import REWARDS, RankingMetrics
from balancer.sampling.weights import Floats, SamplingWeights, start_weights


def walk_policies(walk: PopulationEpisode, policies: Sequence[Policy]) -> tuple[list[SamplingWeights], RankingMetrics]:
    """Train all students of an episode that has just begun, student i under ``policies[i % len(policies)]``; the last weights and validation metrics (M,)."""
    num = walk.stack.num
    weights = [start_weights(walk.prior, walk.share_limit)] * num
    observation = walk.first(*stacked(weights))
    metrics = RankingMetrics(*(np.zeros(num) for _ in REWARDS))
    for _ in range(walk.epochs):
        for student in range(num):
            seen = Observation(observation.per_class[student], observation.shared[student])
            answer = policies[student % len(policies)].act(seen)
            weights[student] = answered(weights[student], answer, walk.prior, walk.share_limit)
        observation, metrics = walk.train_epoch(*stacked(weights))
    return weights, metrics


def stacked(weights: Sequence[SamplingWeights]) -> tuple[Floats, Floats, Floats]:
    """Shares (M, K), hardness (M,) and floor (M,) of M students."""
    return (
        np.stack([w.share for w in weights]),
        np.array([w.hardness for w in weights]),
        np.array([w.floor for w in weights]),
    )
