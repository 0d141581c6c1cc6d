"""Sampling weights chosen by a person, compared with policies epoch by epoch; and a map of constant weights.

The students are the small networks on which PPO trains its policies. The students of all players are siblings
(same networks, same initial weights, same random numbers), so a difference comes from the weights alone. They
train with the sampler's loss, except under policies that are made for another one
(:func:`balancer.sampling.policies.compensates`). Students see the fields of a row, not its history: their
results predict the direction of an effect on the classifier, not its size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.devices import torch_threads
from balancer.envs.population import PopulationStack
from balancer.envs.problem import PopulationProblem
from balancer.envs.vec_env import PopulationEpisode
from balancer.errors import InputError
from balancer.policy_learning.walking import PolicyWalk, walk_policies
from balancer.sampling.constant_policy import COMPENSATED, ConstantPolicy
from balancer.sampling.policies import Policy, compensates
from balancer.sampling.scores import RankingMetrics
from balancer.sampling.weights import SamplingWeights, class_prior, proportional_share, stacked

EPOCHS, STEPS, BATCH = 8, 30, 128
"""Epochs, mini-batches per epoch and rows per mini-batch of the budget ``quick``."""
GROUPS = 4
"""Kinds of networks that every player trains; figures are their means."""
YOU = "you"
SHARES = 7
HARDNESS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Grid of the map: number of total shares, from the prior to one half; exponents of hardness."""
CLASS_IMPORTANCE = COMPENSATED.class_importance
"""Importance exponent of the classes on the map: that of the constant of the package."""


class Playground:
    """One game: the students of a person and those of every policy, one epoch at a time.

    Args:
        problem: Data of the students.
        policies: The other players, by displayed name.
        epochs: Epochs of the game.
        steps_per_epoch: Mini-batches of an epoch.
        groups: Kinds of networks; every player trains each of them.
        seed: Random seed.

    Raises:
        InputError: A policy has the name of the person.
    """

    def __init__(
        self,
        problem: PopulationProblem,
        policies: Mapping[str, Policy],
        *,
        epochs: int = EPOCHS,
        steps_per_epoch: int = STEPS,
        groups: int = GROUPS,
        seed: int = 0,
    ) -> None:
        if YOU in policies:
            raise InputError(f"no policy may be called {YOU!r}: that is the name of the person")
        self.players = (YOU, *policies)
        self._policies = list(policies.values())
        with_loss = np.array([True, *(compensates(policy) for policy in self._policies)])
        self._episode = _episode(problem, with_loss, epochs=epochs, steps=steps_per_epoch, groups=groups, seed=seed)
        self.epochs, self.prior = epochs, self._episode.prior
        self._walk = PolicyWalk(self._episode)
        self.rows: list[dict[str, Any]] = []
        """One dict per player and epoch.

        ``player, epoch, average_precision, f1``; the weights of the epoch as ``share`` (of the minority),
        ``hardness, floor, class_importance, hardness_importance``, and ``half_life``, None without one."""

    @property
    def weights(self) -> list[SamplingWeights]:
        """Weights of the last epoch by student; student i belongs to player ``i % number of players``."""
        return self._walk.weights

    @property
    def epoch(self) -> int:
        """Number of epochs played."""
        return self._episode.epoch

    @property
    def over(self) -> bool:
        """Whether the last epoch has been played."""
        return self.epoch >= self.epochs

    def play(self, weights: SamplingWeights) -> list[dict[str, Any]]:
        """Train one epoch.

        Args:
            weights: Weights of the person's students, used unchanged.

        Returns:
            The rows of this epoch.

        Raises:
            InputError: The game is over.
        """
        if self.over:
            raise InputError(f"the game is over after {self.epochs} epochs: start a new one")
        players = len(self.players)
        with torch_threads(1):
            self._walk.train_epoch([ConstantPolicy.of(weights, YOU), *self._policies])
        own = {
            name: values.reshape(-1, players, *values.shape[1:]).mean(axis=0) for name, values in stacked(self.weights)._asdict().items()
        }
        share, half_life = 1.0 - own.pop("share")[:, 0], own.pop("half_life")
        figures = _means(self._walk.metrics, players) | {"share": share} | own
        rows = [
            {"player": name, "epoch": self.epoch}
            | {figure: float(values[i]) for figure, values in figures.items()}
            | {"half_life": float(half_life[i]) if np.isfinite(half_life[i]) else None}
            for i, name in enumerate(self.players)
        ]
        self.rows += rows
        return rows


def response_surface(
    problem: PopulationProblem,
    *,
    shares: Sequence[float] | None = None,
    hardness: Sequence[float] = HARDNESS,
    class_importance: float = CLASS_IMPORTANCE,
    epochs: int = EPOCHS,
    steps_per_epoch: int = STEPS,
    groups: int = GROUPS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Validation figures of constant weights, by students with the sampler's loss.

    Args:
        problem: Data of the students.
        shares: Total shares of the minority; None: from its prior to one half in equal ratios.
        hardness: Exponents.
        class_importance: Importance exponent of the classes, the same everywhere.
        epochs: Epochs of each training.
        steps_per_epoch: Mini-batches of an epoch.
        groups: Kinds of networks.
        seed: Random seed.
        progress: Called with the number of finished epochs and of all epochs.

    Returns:
        Columns ``share, hardness, class_importance, average_precision, f1``, means over ``groups`` kinds of
        networks.
    """
    prior = class_prior(problem.train_counts)
    lowest = float(1 - prior[0])
    if shares is None:
        shares = [float(value) for value in np.geomspace(min(lowest, 0.5), 0.5, SHARES)]
    grid = [(share, power) for share in shares for power in hardness]
    constants = [
        ConstantPolicy(tuple(proportional_share(prior, share).tolist()), power, class_importance=class_importance) for share, power in grid
    ]
    with_loss = np.ones(len(grid), dtype=bool)
    episode = _episode(problem, with_loss, epochs=epochs, steps=steps_per_epoch, groups=groups, seed=seed)
    with torch_threads(1):
        walk = walk_policies(episode, constants, lambda done: progress(done, epochs) if progress is not None else None)
    columns = {name: values.tolist() for name, values in _means(walk.metrics, len(grid)).items()}
    weights = {
        "share": [share for share, _ in grid],
        "hardness": [power for _, power in grid],
        "class_importance": [class_importance] * len(grid),
    }
    return pl.DataFrame(weights | columns)


def _episode(
    problem: PopulationProblem, with_loss: NDArray[np.bool_], *, epochs: int, steps: int, groups: int, seed: int
) -> PopulationEpisode:
    """An episode in which player i has the sampler's loss where ``with_loss[i]``."""
    stack = PopulationStack(
        problem, groups=groups, siblings=len(with_loss), batch_size=BATCH, seed=seed, compensated=np.tile(with_loss, groups)
    )
    episode = PopulationEpisode(stack, epochs=epochs, steps_per_epoch=steps)
    episode.begin(0)
    return episode


def _means(metrics: RankingMetrics, players: int) -> dict[str, np.ndarray]:
    """Mean figures (players,) of each player."""
    return {name: metrics.named(name).reshape(-1, players).mean(axis=0) for name in ("average_precision", "f1")}
