"""Train all epochs of an estimator while a policy changes the weights, and repeat a finished training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.deprecation import warn_renamed
from balancer.integrations.masses import MassTrials
from balancer.integrations.probabilities import Floats
from balancer.integrations.staged import StagedEstimator
from balancer.integrations.stagings import INCREMENTAL, Staging
from balancer.integrations.tables import take_rows
from balancer.sampling.constant_policy import ConstantPolicy
from balancer.sampling.core import SamplerCore
from balancer.sampling.seeding import generator
from balancer.sampling.weights import SamplingWeights

POOL = 50_000
"""Number of training rows scored after an epoch, at most; the other rows keep their last score."""


class EpochMetrics(dict[str, Any]):
    """Weights and validation metrics of one epoch, an element of ``history_``."""

    def __missing__(self, key: str) -> Any:
        """The epoch under its name of version 0.1, ``stage``."""
        if key != "stage":
            raise KeyError(key)
        warn_renamed("the key 'stage' of history_", "'epoch'", stacklevel=2)
        return self["epoch"]


@dataclass(frozen=True)
class Epoch:
    """One finished epoch of training."""

    weights: SamplingWeights
    """Weights that its rows were drawn with."""
    mass: Floats
    """(K,) class shares of the stream that the model's scores belong to."""
    f1: float
    """Validation F1 at its best threshold after the epoch.

    For more than two classes the mean over all but the most frequent one.
    """
    average_precision: float
    """Validation average precision after the epoch."""

    def metrics(self, number: int, classes: NDArray[Any]) -> EpochMetrics:
        """As plain values: epoch, share by class, hardness, floor, F1 and average precision."""
        return EpochMetrics(
            epoch=number,
            share=dict(zip(classes.tolist(), self.weights.share.tolist(), strict=True)),
            hardness=self.weights.hardness,
            floor=self.weights.floor,
            f1=self.f1,
            average_precision=self.average_precision,
        )


@dataclass(frozen=True)
class Rows:
    """Rows of a table with their labels."""

    X: Any
    """(n, F)."""
    codes: NDArray[np.int64]
    """(n,) class index."""
    weight: Floats | None = None
    """(n,) how much each row counts; None: 1 each."""

    def take(self, rows: NDArray[np.int64]) -> Rows:
        """Some of the rows."""
        return Rows(take_rows(self.X, rows), self.codes[rows], None if self.weight is None else self.weight[rows])


@dataclass(frozen=True)
class Training:
    """What came of the training of all epochs."""

    epochs: list[Epoch]
    rounds: int | None
    """Rounds of boosting up to the best one, where the estimator stops early; None: all."""


def train_epochs(staged: StagedEstimator, sampler: SamplerCore, X: Any, reward: Rows, held_out: Rows | None = None) -> Training:
    """Train all epochs, and update the sampler after each.

    Args:
        staged: The estimator.
        sampler: Sampler of the training rows.
        X: (n, F) training rows, which are scored for the policy.
        reward: Held-out rows, which the policy's reward is measured on.
        held_out: All held-out rows. By their average precision masses of the classes are tried, and boosted
            trees whose estimator stops early are trained until no round is better for as many rounds as it
            says; the trees up to the best round stay. None: as ``reward``.
    """
    epochs: list[Epoch] = []
    best = BestRound(staged.patience)
    held_out = reward if held_out is None else held_out
    # Such policies need no scores of training rows.
    even = isinstance(sampler.policy, MassTrials) or (isinstance(sampler.policy, ConstantPolicy) and sampler.policy.hardness == 0)
    for number in range(staged.epochs):
        weights = sampler.weights
        staged.fit_epoch(number, sampler)
        scored: dict[str, Any] = {}
        if not even:
            rows = scored_pool(sampler.num_rows, sampler.seed, number)
            scored = {"rows": rows, "row_score": staged.policy_scores(take_rows(X, rows))}
        if isinstance(sampler.policy, MassTrials):
            sampler.policy.report(sampler.measure(held_out.codes, staged.policy_scores(held_out.X), held_out.weight)["average_precision"])
        sampler.update(reward.codes, staged.policy_scores(reward.X), y_weight=reward.weight, **scored)
        epochs.append(Epoch(weights, staged.mass, sampler.metrics["f1"], sampler.metrics["average_precision"]))
        if staged.patience and best.follow(staged, sampler, held_out):
            break
    if not staged.patience:
        return Training(epochs, None)
    staged.keep_rounds(best.number + 1)
    return Training(epochs, best.number + 1)


class BestRound:
    """Follows boosted trees round by round, as early stopping does.

    Args:
        patience: Rounds without a better one after which the training ends.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.number = 0
        """Number of the best round, from 0; the earliest of equals."""
        self._figure, self._seen = -1.0, 0
        self._margin: Floats | float = 0.0

    def follow(self, staged: StagedEstimator, sampler: SamplerCore, rows: Rows) -> bool:
        """Measure the new rounds by the average precision of held-out ``rows``; whether the training ends."""
        for margin in staged.round_scores(rows.X, self._seen, self._margin):
            odds = np.exp(margin - margin.max(axis=1, keepdims=True))
            figure = sampler.measure(rows.codes, odds / odds.sum(axis=1, keepdims=True), rows.weight)["average_precision"]
            if figure > self._figure:
                self.number, self._figure = self._seen, figure
            self._seen, self._margin = self._seen + 1, margin
            if self._seen - 1 - self.number >= self.patience:
                return True
        return False


def train_again(staged: StagedEstimator, X: Any, epochs: list[Epoch], before: StagedEstimator, reward: Rows) -> None:
    """Train on other rows as in a finished training.

    Args:
        staged: The estimator with the rows to train on.
        X: (n, F) these rows.
        epochs: Epochs of the finished training.
        before: The estimator of the finished training. Where each epoch fits a new model, its model before
            the last one scores the rows for the hardness of the last fit.
        reward: The held-out rows of the finished training.
    """
    incremental = staged.staging in INCREMENTAL
    for number in range(0 if incremental else len(epochs) - 1, len(epochs)):
        weights = epochs[number].weights
        if staged.staging in ("boosting", "warm_start") and number + 1 < len(epochs) and _same_stream(weights, epochs[number + 1].weights):
            continue  # the trees of both epochs are one fit
        sampler, scorer = staged.make_sampler(weights), staged if incremental else before
        if weights.hardness > 0 and number:
            rows = scored_pool(sampler.num_rows, sampler.seed, number)
            scores = scorer.policy_scores(reward.X, earlier=not incremental)
            row_scores = scorer.policy_scores(take_rows(X, rows), earlier=not incremental)
            sampler.update(reward.codes, scores, rows=rows, row_score=row_scores)
        staged.fit_epoch(number, sampler)


def _same_stream(one: SamplingWeights, other: SamplingWeights) -> bool:
    """Whether rows count alike under both weights, whatever their scores."""
    return one.hardness == other.hardness == 0 and one.class_importance == other.class_importance and np.array_equal(one.share, other.share)


def scored_pool(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Training rows that are scored after an epoch, at most :data:`POOL`."""
    if num_rows <= POOL:
        return np.arange(num_rows)
    return np.sort(generator(seed, "pool", epoch).choice(num_rows, POOL, replace=False))


def model_epochs(staging: Staging, epochs: list[Epoch]) -> list[Epoch]:
    """Epochs that the final model was trained in: all, or the last one if each epoch fits a new model."""
    return epochs if staging in INCREMENTAL else epochs[-1:]
