"""The one loop in which policies train the students of an episode, epoch by epoch.

Comparisons of policies, ``balancer compare``, the playground and the map of constants all use it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from balancer.envs.vec_env import PopulationEpisode
from balancer.sampling.policies import Policy, ask
from balancer.sampling.scores import REWARDS, RankingMetrics
from balancer.sampling.weights import SamplingWeights, stacked


class PolicyWalk:
    """Students of an episode that train under policies, from the starting weights on.

    Args:
        episode: An episode that has just begun.
    """

    def __init__(self, episode: PopulationEpisode) -> None:
        self.episode = episode
        starts = episode.start(0).student(0), episode.start(1).student(0)
        self.weights: list[SamplingWeights] = [starts[int(compensated)] for compensated in episode.stack.compensated]
        """Weights of the last epoch, by student."""
        self.metrics = RankingMetrics(*(np.zeros(episode.stack.num) for _ in REWARDS))
        """Validation metrics (M,) after the last epoch; 0 before the first."""
        self._observation = episode.first(stacked(self.weights))

    def train_epoch(self, policies: Sequence[Policy]) -> None:
        """Let the policies choose the weights, then train one epoch.

        Student i trains under ``policies[i % len(policies)]``.

        Raises:
            InputError: A policy's answer can't be used.
        """
        prior, limit = self.episode.prior, self.episode.share_limit
        self.weights = [
            ask(policies[student % len(policies)], self._observation[student], weights, prior, limit)
            for student, weights in enumerate(self.weights)
        ]
        self._observation, self.metrics = self.episode.train_epoch(stacked(self.weights))


def walk_policies(
    episode: PopulationEpisode, policies: Sequence[Policy], after_epoch: Callable[[int], None] | None = None
) -> tuple[list[SamplingWeights], RankingMetrics]:
    """Train all students of an episode that has just begun, to its end.

    Args:
        episode: The episode.
        policies: Student i trains under ``policies[i % len(policies)]``.
        after_epoch: Called with the number of finished epochs.

    Returns:
        Weights of the last epoch by student, and the validation metrics (M,) after it.
    """
    walk = PolicyWalk(episode)
    for epoch in range(episode.epochs):
        walk.train_epoch(policies)
        if after_epoch is not None:
            after_epoch(epoch + 1)
    return walk.weights, walk.metrics
