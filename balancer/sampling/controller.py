"""The loop around a policy: holds the weights, shows the policy what happened in the last epoch, applies its answer.

It walks exactly as an episode of ``balancer/ClassWeights-v0`` does: the policy acts once before the first epoch, on priors and budget,
then after each epoch.

A policy may be anybody's object, so its answer is checked before it is taken on, and an update that is refused leaves everything as it was: the history is
moved on in a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.observation import Observation, ObservationBuilder, ScoredRows
from balancer.sampling.policies import GoodConstant, Policy, answered
from balancer.sampling.weights import Floats, SamplingWeights, start_weights


class SamplingController:
    """Sampling weights of a run, epoch by epoch.

    Args:
        prior: (K,) class prior of the training rows.
        policy: what chooses; see :func:`balancer.sampling.policies.load_policy`.
        epochs: how many epochs the run has.
        batch_budget: rows drawn in the whole run (steps times batch size).
        train_counts, reward_counts: (K,) rows of each class in training and in the reward half of validation.

    >>> from balancer.sampling.policies import load_policy
    >>> counts = np.array([990, 10])
    >>> controller = SamplingController(counts / 1000, load_policy("constant:share=.2", num_classes=2), epochs=4, batch_budget=4000,
    ...                                 train_counts=counts, reward_counts=counts)
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
    ) -> None:
        self.prior: Floats = np.asarray(prior, dtype=np.float64)
        self.policy = policy
        self._builder = ObservationBuilder(
            self.prior, epochs=epochs, batch_budget=batch_budget, train_counts=train_counts, reward_counts=reward_counts
        )
        self.weights = start_weights(self.prior, self._builder.share_limit)
        """Weights to draw the coming epoch with."""
        self.observation: Observation = _single(self._builder.first(*_batched(self.weights)))
        """What the policy saw last."""
        self.weights = self._answer(self.observation)

    @property
    def epoch(self) -> int:
        """Epochs finished so far."""
        return self._builder.epoch

    @property
    def metrics(self) -> dict[str, float]:
        """Validation figures of the last update: ``f1`` at its best threshold and ``average_precision``; 0 before the first."""
        return {"f1": float(self._builder.f1[0]), "average_precision": float(self._builder.average_precision[0])}

    def update(self, train: ScoredRows, reward: ScoredRows) -> SamplingWeights:
        """Weights for the next epoch, from scores on a training pool and on the reward half of validation.

        InputError where the scores don't fit the classes, or the policy answers what can't be drawn by; everything is then as it was.
        """
        for rows in (train, reward):
            if rows.score.shape[1] != len(self.prior):
                raise InputError(f"scores have {rows.score.shape[1]} columns for {len(self.prior)} classes")
        builder = copy.copy(self._builder)  # shallow will do: it replaces its arrays, it never writes into them
        seen, _ = builder.after_epoch(_lifted(train), _lifted(reward), *_batched(self.weights))
        observation = _single(seen)
        weights = self._answer(observation)
        self._builder, self.observation, self.weights = builder, observation, weights
        return weights

    def _answer(self, observation: Observation) -> SamplingWeights:
        """The policy's answer as weights; InputError that names the policy where it is no answer."""
        name, num_classes = getattr(self.policy, "name", type(self.policy).__name__), len(self.prior)
        try:
            answer = self.policy.act(observation)
        except InputError as error:
            raise InputError(f"policy {name!r}: {error}") from error
        if not isinstance(answer, (SamplingWeights, GoodConstant)):
            action = np.asarray(answer)
            if action.shape != (num_classes + 2,) or action.dtype.kind not in "iuf":
                raise InputError(
                    f"policy {name!r} must answer with SamplingWeights or {num_classes + 2} numbers for {num_classes} classes, "
                    f"not {action.dtype} of shape {action.shape}"
                )
            if not np.isfinite(action).all():
                raise InputError(f"policy {name!r} answered {action.tolist()}, which is not finite; check what it was trained on")
        weights = answered(self.weights, answer, self.prior, self._builder.share_limit)
        if len(weights.share) != num_classes:
            raise InputError(f"policy {name!r} answered shares for {len(weights.share)} classes, the training rows have {num_classes}")
        if not weights.share[self.prior > 0].sum() > 0:
            raise InputError(f"policy {name!r} gives all draws to classes without training rows, the weights of the others sum to zero")
        return weights

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state; floats survive JSON exactly."""
        return {"weights": self.weights.to_dict(), "history": self._builder.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; InputError where it was saved for another number of classes, and nothing is changed."""
        weights = SamplingWeights.from_dict(state["weights"])
        if len(weights.share) != len(self.prior):
            raise InputError(
                f"saved sampling weights are for {len(weights.share)} classes, this run has {len(self.prior)}; start a new run"
            )
        builder = copy.copy(self._builder)
        builder.load_state_dict(state["history"])
        self._builder, self.weights = builder, weights


def _batched(weights: SamplingWeights) -> tuple[Floats, Floats, Floats]:
    return weights.share[None], np.array([weights.hardness]), np.array([weights.floor])


def _lifted(rows: ScoredRows) -> tuple[NDArray[np.integer[Any]], NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    return rows.label, rows.score[None], rows.weight if rows.weight is not None else np.ones(len(rows.label))


def _single(observation: Observation) -> Observation:
    return Observation(observation.per_class[0], observation.shared[0])
