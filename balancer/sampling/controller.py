"""The loop around a policy: it shows the policy each observation and applies its answer to the weights.

The sequence is that of an episode of ``balancer/ClassWeights-v0``: the policy acts once before the first
epoch, on priors and budget, then after each epoch.

A policy may be any object, so its answer is checked before it is used. An update that fails leaves everything
as it was: a copy of the history is updated first.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.constant_policy import COMPENSATED
from balancer.sampling.observation import Observation, ObservationBuilder, ScoredRows
from balancer.sampling.policies import Policy, ask
from balancer.sampling.weights import Floats, SamplingWeights, stacked, start_weights


class Controller(Protocol):
    """Object that sets the weights, such as `SamplingController`; the commonest class comes first."""

    weights: SamplingWeights
    """Weights of the next epoch."""

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""

    @property
    def metrics(self) -> dict[str, float]:
        """Validation figures of the last update."""

    def update(self, train: ScoredRows, reward: ScoredRows) -> SamplingWeights:
        """Choose the weights of the next epoch from scores of training rows and of held-out rows."""

    def state_dict(self) -> dict[str, Any]:
        """State as values that JSON can hold."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""


class SamplingController:
    """Sampling weights of a run, epoch by epoch.

    Class 0 is the negative class.

    Args:
        prior: (K,) class prior of the training rows.
        policy: Chooses the weights; see :func:`balancer.sampling.policies.load_policy`.
        epochs: Number of epochs of the run.
        batch_budget: Rows drawn in the whole run (steps times batch size).
        train_counts: (K,) training rows of each class.
        reward_counts: (K,) rows of each class in the reward half of validation.
        compensated: Whether drawn rows are counted by the sampler's loss.

    Raises:
        InputError: The policy's first answer can't be used.

    >>> from balancer.sampling.policies import load_policy
    >>> counts = np.array([990, 10])
    >>> controller = SamplingController(counts / 1000, load_policy("constant:share=.2", num_classes=2),
    ...     epochs=4, batch_budget=4000, train_counts=counts, reward_counts=counts)
    >>> controller.weights.share.round(3).tolist()
    [0.8, 0.2]
    """

    def __init__(
        self,
        prior: NDArray[Any],
        policy: Policy,
        *,
        epochs: int,
        batch_budget: int,
        train_counts: NDArray[Any],
        reward_counts: NDArray[Any],
        compensated: bool = False,
    ) -> None:
        self.prior: Floats = np.asarray(prior, dtype=np.float64)
        self.policy = policy
        self._builder = ObservationBuilder(
            self.prior,
            epochs=epochs,
            batch_budget=batch_budget,
            train_counts=train_counts,
            reward_counts=reward_counts,
            compensated=compensated,
        )
        self.weights = self._start()
        """Weights to draw the coming epoch with."""
        self._compensated = compensated  # at the last answer of the policy
        self.observation: Observation = self._builder.first(stacked([self.weights]))[0]
        """The policy's last observation."""
        self.weights = self._ask(self.observation)

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""
        return self._builder.epoch

    @property
    def compensated(self) -> bool:
        """Whether drawn rows are counted by the sampler's loss; a change counts from the next update on."""
        return bool(self._builder.compensated)

    @compensated.setter
    def compensated(self, value: bool) -> None:
        self._builder.compensated = value

    def use_prior(self, prior: Floats) -> None:
        """Take another class prior (K,) from the next update on, where it is estimated while rows stream."""
        builder = copy.copy(self._builder)
        self.prior = builder.prior = np.asarray(prior, dtype=np.float64)
        builder.train_counts = self.prior * self._builder.train_counts.sum()
        self._builder = builder

    @property
    def metrics(self) -> dict[str, float]:
        """Validation figures of the last update: ``f1`` at its best threshold and ``average_precision``.

        They are 0 before the first update.
        """
        return {"f1": float(self._builder.f1[0]), "average_precision": float(self._builder.average_precision[0])}

    def update(self, train: ScoredRows, reward: ScoredRows) -> SamplingWeights:
        """Choose the weights of the next epoch.

        Args:
            train: Scores of a pool of training rows.
            reward: Scores of the reward half of validation.

        Raises:
            InputError: The scores don't fit the classes, or the policy's answer can't be used. Nothing has
                changed then.
        """
        for rows in (train, reward):
            if rows.score.shape[1] != len(self.prior):
                raise InputError(f"scores have {rows.score.shape[1]} columns for {len(self.prior)} classes")
        builder = copy.copy(self._builder)  # shallow: the builder replaces its arrays and never changes them
        observations, _ = builder.after_epoch(_batched(train), _batched(reward), stacked([self.weights]))
        observation = observations[0]
        if self.compensated and not self._compensated:
            weights = ask(self.policy, observation, self._start(), self.prior, self._builder.share_limit)
        else:
            weights = self._ask(observation)
        self._compensated = self.compensated
        self._builder, self.observation, self.weights = builder, observation, weights
        return weights

    def _start(self) -> SamplingWeights:
        """The weights that residual actions start from."""
        return COMPENSATED.weights(self.prior) if self.compensated else start_weights(self.prior, self._builder.share_limit)

    def _ask(self, observation: Observation) -> SamplingWeights:
        return ask(self.policy, observation, self.weights, self.prior, self._builder.share_limit)

    def state_dict(self) -> dict[str, Any]:
        """State as values that JSON can hold; floats survive JSON exactly."""
        return {"weights": self.weights.to_dict(), "history": self._builder.state_dict(), "compensated": self.compensated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`state_dict`.

        Raises:
            InputError: It was saved for another number of classes. Nothing has changed then.
        """
        weights = SamplingWeights.from_dict(state["weights"])
        if len(weights.share) != len(self.prior):
            raise InputError(
                f"saved sampling weights are for {len(weights.share)} classes, this run has {len(self.prior)}; start a new run"
            )
        builder = copy.copy(self._builder)
        builder.load_state_dict(state["history"])
        builder.compensated = self._compensated = bool(state.get("compensated", False))
        self._builder, self.weights = builder, weights


def _batched(rows: ScoredRows) -> tuple[NDArray[np.integer[Any]], NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Labels (n,), scores (1, n, K) and weights (n,) of one classifier."""
    return rows.label, rows.score[None], rows.weight if rows.weight is not None else np.ones(len(rows.label))
