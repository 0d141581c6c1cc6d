"""Sampling weights tried by hand: a person beside policies, epoch by epoch, on the small students that PPO practises on; and the map of all constants.

Special: everyone's students are siblings (same nets, same initial weights, same random numbers), so a difference is what the weights did. The students
see a row's own fields, not its history: what they say of weights carries over to the classifier in direction, not in size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from balancer.devices import torch_threads
from balancer.envs.population import PopulationStack
from balancer.envs.problem import PopulationProblem
from balancer.envs.vec_env import PopulationEpisode
from balancer.errors import InputError
from balancer.policy_learning.walking import stacked
from balancer.sampling.observation import Observation
from balancer.sampling.policies import Policy, answered
from balancer.sampling.scores import RankingMetrics
from balancer.sampling.weights import START_FLOOR, SamplingWeights, start_weights

EPOCHS, STEPS, BATCH = 8, 30, 128
"""The quick budget's episode."""
GROUPS = 4
"""Nets of different kinds that every player trains; figures are their means."""
YOU = "you"
SHARES = 7
HARDNESS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""The map's grid: shares of the classes but the first, from their prior to one half; exponents of hardness."""


def minority_share(prior: np.ndarray, total: float) -> np.ndarray:
    """Shares (K,) in which the classes but the first have ``total`` together and keep their proportions."""
    return np.concatenate([[1.0 - total], total * prior[1:] / prior[1:].sum()])


class Playground:
    """One game: the person's students and those of every policy, an epoch at a time.

    Args:
        problem: what the students learn.
        policies: the other players, by the name that is shown.
        epochs: epochs of the game.
        steps_per_epoch: mini-batches of an epoch.
        groups: kinds of nets, each trained by every player.
        seed: of everything random.
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
            raise InputError(f"no policy may be called {YOU!r}: that is the person")
        self.players = (YOU, *policies)
        self._policies = list(policies.values())
        self._episode = _episode(problem, len(self.players), epochs=epochs, steps=steps_per_epoch, groups=groups, seed=seed)
        self.epochs, self.prior = epochs, self._episode.prior
        self.weights = [start_weights(self.prior, self._episode.share_limit)] * self._episode.stack.num
        self._observation = self._episode.first(*stacked(self.weights))
        self.rows: list[dict[str, Any]] = []
        """A dict per player and epoch: ``player, epoch, average_precision, f1, share, hardness, floor``."""

    @property
    def epoch(self) -> int:
        """Epochs played."""
        return self._episode.epoch

    @property
    def over(self) -> bool:
        """Whether the last epoch was played."""
        return self.epoch >= self.epochs

    def play(self, own: SamplingWeights) -> list[dict[str, Any]]:
        """Train an epoch, the person's students under ``own`` as they are; the rows of that epoch. InputError when the game is over."""
        if self.over:
            raise InputError(f"the game is over after {self.epochs} epochs: start a new one")
        players = len(self.players)
        with torch_threads(1):
            for student in range(self._episode.stack.num):
                if student % players == 0:
                    self.weights[student] = own
                    continue
                seen = Observation(self._observation.per_class[student], self._observation.shared[student])
                answer = self._policies[student % players - 1].act(seen)
                self.weights[student] = answered(self.weights[student], answer, self.prior, self._episode.share_limit)
            self._observation, metrics = self._episode.train_epoch(*stacked(self.weights))
        share, hardness, floor = (values.reshape(-1, players, *values.shape[1:]).mean(axis=0) for values in stacked(self.weights))
        figures = _means(metrics, players)
        rows = [
            {"player": name, "epoch": self.epoch}
            | {figure: float(values[i]) for figure, values in figures.items()}
            | {"share": float(1.0 - share[i, 0]), "hardness": float(hardness[i]), "floor": float(floor[i])}
            for i, name in enumerate(self.players)
        ]
        self.rows += rows
        return rows


def response_surface(
    problem: PopulationProblem,
    *,
    shares: Sequence[float] | None = None,
    hardness: Sequence[float] = HARDNESS,
    epochs: int = EPOCHS,
    steps_per_epoch: int = STEPS,
    groups: int = GROUPS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Validation figures that constant weights reach: columns ``share, hardness, average_precision, f1``, means over ``groups`` kinds of nets.

    Args:
        problem: what the students learn.
        shares: total shares of the classes but the first; None: from their prior to one half in equal ratios.
        hardness: exponents.
        epochs: epochs of each training.
        steps_per_epoch: mini-batches of an epoch.
        groups: kinds of nets.
        seed: of everything random.
        progress: told (epochs done, epochs in all).
    """
    prior = np.asarray(problem.train_counts, dtype=np.float64) / np.sum(problem.train_counts)
    lowest = float(1 - prior[0])
    if shares is None:
        shares = [float(value) for value in np.geomspace(min(lowest, 0.5), 0.5, SHARES)]
    grid = [(share, power) for share in shares for power in hardness]
    weights = [SamplingWeights(minority_share(prior, share), power, START_FLOOR) for share, power in grid]
    episode = _episode(problem, len(grid), epochs=epochs, steps=steps_per_epoch, groups=groups, seed=seed)
    every = stacked(weights * groups)
    episode.first(*every)
    with torch_threads(1):
        for epoch in range(epochs):
            _, metrics = episode.train_epoch(*every)
            if progress is not None:
                progress(epoch + 1, epochs)
    columns = {name: values.tolist() for name, values in _means(metrics, len(grid)).items()}
    return pl.DataFrame({"share": [share for share, _ in grid], "hardness": [power for _, power in grid]} | columns)


def _episode(problem: PopulationProblem, players: int, *, epochs: int, steps: int, groups: int, seed: int) -> PopulationEpisode:
    stack = PopulationStack(problem, groups=groups, siblings=players, batch_size=BATCH, seed=seed)
    episode = PopulationEpisode(stack, epochs=epochs, steps_per_epoch=steps)
    episode.begin(0)
    return episode


def _means(metrics: RankingMetrics, players: int) -> dict[str, np.ndarray]:
    """Of each player, (players,)."""
    return {name: metrics.named(name).reshape(-1, players).mean(axis=0) for name in ("average_precision", "f1")}
