"""The one loop in which policies train the students of an episode, epoch by epoch.

Comparisons of policies, ``balancer compare``, the playground and the map of constants all use it.

A network that starts with an output bias of zero predicts equally frequent classes, and spends its first
steps on learning how frequent they are. So the bias of every student is set at the start to what it is
trained with: by default zero for students with the sampler's loss, and otherwise the logarithm of the class
shares of the first epoch (:func:`fitting_bias`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from balancer.envs.vec_env import PopulationEpisode
from balancer.sampling.policies import Policy, ask
from balancer.sampling.scores import REWARDS, RankingMetrics
from balancer.sampling.weights import Floats, SamplingWeights, output_bias, stacked

Bias = Callable[[list[SamplingWeights], NDArray[np.bool_]], Floats]
"""Makes the biases (M, K) of the output layers at the start.

It gets the weights of the first epoch by student, and (M,) which students have the sampler's loss."""


def fitting_bias(weights: list[SamplingWeights], compensated: NDArray[np.bool_]) -> Floats:
    """Biases (M, K) that fit the shares of the first epoch, or the loss of the sampler; see :data:`Bias`."""
    return np.where(compensated[:, None], 0.0, output_bias(stacked(weights).share))


class PolicyWalk:
    """Students of an episode that train under policies, from the starting weights on.

    Args:
        episode: An episode that has just begun.
        bias: Sets the biases of the output layers before the first epoch.
    """

    def __init__(self, episode: PopulationEpisode, bias: Bias = fitting_bias) -> None:
        self.episode = episode
        starts = episode.start(0).student(0), episode.start(1).student(0)
        self.weights: list[SamplingWeights] = [starts[int(compensated)] for compensated in episode.stack.compensated]
        """Weights of the last epoch, by student."""
        self.metrics = RankingMetrics(*(np.zeros(episode.stack.num) for _ in REWARDS))
        """Validation metrics (M,) after the last epoch; 0 before the first."""
        self._observation = episode.first(stacked(self.weights))
        self._bias = bias

    def train_epoch(self, policies: Sequence[Policy]) -> None:
        """Let the policies choose the weights, then train one epoch.

        Student i trains under ``policies[i % len(policies)]``.

        Raises:
            InputError: A policy's answer can't be used.
        """
        prior, limit, stack = self.episode.prior, self.episode.share_limit, self.episode.stack
        self.weights = [
            ask(policies[student % len(policies)], self._observation[student], weights, prior, limit)
            for student, weights in enumerate(self.weights)
        ]
        if self.episode.epoch == 0:
            stack.add_bias(self._bias(self.weights, stack.compensated))
        self._observation, self.metrics = self.episode.train_epoch(stacked(self.weights))


def walk_policies(
    episode: PopulationEpisode,
    policies: Sequence[Policy],
    after_epoch: Callable[[int], None] | None = None,
    *,
    bias: Bias = fitting_bias,
) -> PolicyWalk:
    """Train all students of an episode that has just begun, to its end.

    Args:
        episode: The episode.
        policies: Student i trains under ``policies[i % len(policies)]``.
        after_epoch: Called with the number of finished epochs.
        bias: Sets the biases of the output layers before the first epoch.

    Returns:
        The walk after the last epoch.
    """
    walk = PolicyWalk(episode, bias)
    for epoch in range(episode.epochs):
        walk.train_epoch(policies)
        if after_epoch is not None:
            after_epoch(epoch + 1)
    return walk
