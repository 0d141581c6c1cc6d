"""What a policy sees: a scale-free description of a classifier in training, for any number of classes.

Environments and the sampler's core both build their observations here, so a policy meets in a real run what
it learned on a population of small networks. For each class the observation holds the distribution of the
error ``1 - p(true class)`` on a pool of training rows and on validation rows, the change of both in the last
epoch, and how often the rows of the class were repeated. The two distributions tell weak learners from strong
ones; the gap between them and the repeats reveal memorisation. The bins of the error are even in log-odds,
and their masses enter as square roots, so that one false alarm in a thousand is visible.

Before the first epoch nothing has been scored: histograms, metrics and changes are 0, and the policy chooses
from priors and budget alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.scores import RankingMetrics, macro_metrics
from balancer.sampling.weights import Floats, WeightArrays, share_limit

ERROR_EDGES = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
NUM_BINS = len(ERROR_EDGES) + 1
PER_CLASS_FEATURES_V0: tuple[str, ...] = (
    *(f"{kind}_{i}" for kind in ("train_error", "reward_error", "train_change", "reward_change") for i in range(NUM_BINS)),
    *("is_first", "log_prior", "log_share_over_prior", "repeats", "gap", "f1_argmax"),
)
SHARED_FEATURES_V0: tuple[str, ...] = (
    *("progress", "budget_left", "hardness", "floor", "reward_positives"),
    *("f1", "average_precision", "f1_change", "average_precision_change"),
)
"""Features of ``balancer/ClassWeights-v0`` and of policies of version 0.1; new ones are added behind them."""
PER_CLASS_FEATURES: tuple[str, ...] = (*PER_CLASS_FEATURES_V0, "log_mass_over_prior")
SHARED_FEATURES: tuple[str, ...] = (
    *SHARED_FEATURES_V0,
    *("compensated", "class_importance", "hardness_importance", "recency", "below_best", "epochs_since_best"),
)
_LIMIT = 5.0
_TINY = 1e-12


@dataclass(frozen=True)
class Observation:
    """Features of one classifier, or with a leading axis of many.

    Classes have the order of the run: class 0 is the negative class, which is the commonest one in a sampler.
    A policy answers in the same order. :attr:`prior` and the feature ``is_first`` tell the classes apart.
    """

    per_class: NDArray[np.float32]
    """(..., K, D), columns :data:`PER_CLASS_FEATURES`."""
    shared: NDArray[np.float32]
    """(..., G), columns :data:`SHARED_FEATURES`."""

    def v0(self) -> Observation:
        """The features of ``balancer/ClassWeights-v0`` alone."""
        return Observation(self.per_class[..., : len(PER_CLASS_FEATURES_V0)], self.shared[..., : len(SHARED_FEATURES_V0)])

    def flat(self) -> NDArray[np.float32]:
        """(..., K * D + G) features: class after class, then the shared ones."""
        lead = self.shared.shape[:-1]
        return np.concatenate([self.per_class.reshape(*lead, -1), self.shared], axis=-1)

    def __getitem__(self, student: int) -> Observation:
        """Observation of one classifier among many."""
        return Observation(self.per_class[student], self.shared[student])

    def class_feature(self, name: str) -> NDArray[np.float32]:
        """(..., K) values of the feature ``name`` of :data:`PER_CLASS_FEATURES`."""
        return self.per_class[..., PER_CLASS_FEATURES.index(name)]

    @property
    def prior(self) -> Floats:
        """(..., K) prior of each class, recovered from its logarithm in single precision."""
        prior = np.exp(self.class_feature("log_prior").astype(np.float64) * 5.0)
        return np.asarray(prior / prior.sum(axis=-1, keepdims=True), dtype=np.float64)

    @property
    def compensated(self) -> bool:
        """Whether drawn rows are counted by the sampler's loss."""
        return bool(self.shared[..., SHARED_FEATURES.index("compensated")].max() > 0)

    @property
    def started(self) -> bool:
        """Whether an epoch has been scored already."""
        return bool(self.shared[..., SHARED_FEATURES.index("progress")].max() > 0)


def observation_size(num_classes: int, version: int = 1) -> int:
    """Length of :meth:`Observation.flat`; of ``v0().flat()`` for version 0."""
    per_class, shared = (PER_CLASS_FEATURES, SHARED_FEATURES) if version else (PER_CLASS_FEATURES_V0, SHARED_FEATURES_V0)
    return num_classes * len(per_class) + len(shared)


@dataclass(frozen=True)
class ScoredRows:
    """Labelled rows with the classifier's scores.

    Raises:
        InputError: Shapes that don't fit, no rows, a label out of range, or a score that is not finite.
    """

    label: NDArray[np.integer[Any]]
    """(n,) class index."""
    score: NDArray[np.floating[Any]]
    """(n, K) class probabilities."""
    weight: NDArray[np.floating[Any]] | None = None
    """(n,) how many rows each represents (in a sub-sampled pool); None: 1 each."""

    def __post_init__(self) -> None:
        label, score = np.asarray(self.label), np.asarray(self.score)
        if score.ndim != 2 or label.shape != score.shape[:1] or (self.weight is not None and np.shape(self.weight) != label.shape):
            raise InputError(
                f"scores must be (rows, classes) with one label and one weight a row, not scores {score.shape} with labels {label.shape}"
            )
        if len(label) == 0:
            raise InputError("no scored rows: give the scores of at least one labelled row")
        if label.min() < 0 or label.max() >= score.shape[1]:
            raise InputError(f"labels must be class indices from 0 to {score.shape[1] - 1}, found {label.min()} to {label.max()}")
        if not np.isfinite(score).all():
            row = int(np.flatnonzero(~np.isfinite(score).all(axis=1))[0])
            raise InputError(f"score of row {row} is not finite; check the model's output for NaN before handing it over")
        object.__setattr__(self, "label", label)
        object.__setattr__(self, "score", score)
        object.__setattr__(self, "weight", np.ones(len(label)) if self.weight is None else np.asarray(self.weight, dtype=np.float64))


@dataclass(frozen=True)
class ErrorSummary:
    """Distribution of the error of M classifiers on the same rows."""

    histogram: Floats
    """(M, K, bins) square root of the fraction of a class's rows in each bin; 0 without rows."""
    mean: Floats
    """(M, K) mean error."""
    f1_argmax: Floats
    """(M, K) F1 of each class when the most probable class is predicted."""


def summarise_errors(label: NDArray[np.integer[Any]], score: NDArray[np.floating[Any]], weight: NDArray[np.floating[Any]]) -> ErrorSummary:
    """Summarise ``score`` (M, n, K) on rows with ``label`` (n,) that each represent ``weight`` (n,) rows."""
    num, rows, num_classes = score.shape
    error = 1.0 - score[:, np.arange(rows), label]
    error_bin = np.zeros(error.shape, dtype=np.int8)
    for edge in ERROR_EDGES:  # seven comparisons are several times as fast as a search
        error_bin += error > edge
    cell = (np.arange(num)[:, None] * num_classes + label) * NUM_BINS + error_bin
    flat_weight = np.broadcast_to(np.asarray(weight, np.float64), error.shape).ravel()
    mass = np.bincount(cell.ravel(), flat_weight, num * num_classes * NUM_BINS).reshape(num, num_classes, NUM_BINS)
    total = np.maximum(mass.sum(axis=2), _TINY)
    line = (cell // NUM_BINS).ravel()
    mean = np.bincount(line, flat_weight * error.ravel(), num * num_classes).reshape(num, num_classes) / total
    choice = score.argmax(axis=2)
    hit = np.bincount(line, flat_weight * (choice == label).ravel(), num * num_classes).reshape(num, num_classes)
    predicted = np.bincount((np.arange(num)[:, None] * num_classes + choice).ravel(), flat_weight, num * num_classes).reshape(
        num, num_classes
    )
    return ErrorSummary(np.sqrt(mass / total[:, :, None]), mean, 2.0 * hit / np.maximum(predicted + total, _TINY))


class ObservationBuilder:
    """Turns the scores after each epoch into observations for M classifiers that train side by side.

    It remembers only the last epoch.

    Args:
        prior: (K,) class prior of the training rows.
        epochs: Number of epochs of the run.
        batch_budget: Rows drawn in the whole run (steps times batch size).
        train_counts: (K,) training rows of each class.
        reward_counts: (K,) rows of each class in the reward half of validation.
        num: M, the number of classifiers.
        compensated: Whether drawn rows are counted by the sampler's loss; one answer, or (M,).
    """

    def __init__(
        self,
        prior: Floats,
        *,
        epochs: int,
        batch_budget: int,
        train_counts: NDArray[Any],
        reward_counts: NDArray[Any],
        num: int = 1,
        compensated: bool | NDArray[np.bool_] = False,
    ) -> None:
        self.compensated: Any = compensated
        self.prior = np.asarray(prior, dtype=np.float64)
        self.epochs, self.batch_budget = epochs, batch_budget
        self.train_counts = np.asarray(train_counts, dtype=np.float64)
        self.share_limit = share_limit(self.train_counts, batch_budget)
        """Largest total share of the minority (all classes but class 0) in this run."""
        self.reward_positives = float(np.asarray(reward_counts)[1:].sum())
        shape = (num, len(self.prior))
        self.epoch = 0
        self.repeats = np.zeros(shape)
        self.train = ErrorSummary(np.zeros((*shape, NUM_BINS)), np.zeros(shape), np.zeros(shape))
        self.reward = self.train
        self.f1 = np.zeros(num)
        self.average_precision = np.zeros(num)
        self.best = np.zeros(num)
        """(M,) best average precision so far."""
        self.since_best = np.zeros(num)
        """(M,) epochs since then."""

    def first(self, weights: WeightArrays) -> Observation:
        """Observation before the first epoch, from the starting weights."""
        zero = np.zeros_like(self.train.histogram)
        return self._build(weights, zero, zero, np.zeros_like(self.f1), np.zeros_like(self.f1))

    def after_epoch(
        self,
        train: tuple[NDArray[np.integer[Any]], NDArray[np.floating[Any]], NDArray[np.floating[Any]]],
        reward: tuple[NDArray[np.integer[Any]], NDArray[np.floating[Any]], NDArray[np.floating[Any]]],
        weights: WeightArrays,
    ) -> tuple[Observation, RankingMetrics]:
        """Observation after an epoch, and the validation metrics in it.

        Args:
            train: Labels (n,), scores (M, n, K) and weights (n,) of the training pool.
            reward: The same of the reward half of validation.
            weights: Weights that the epoch was drawn with.
        """
        last_train, last_reward, last_f1, last_ap = self.train, self.reward, self.f1, self.average_precision
        self.train, self.reward = summarise_errors(*train), summarise_errors(*reward)
        metrics = macro_metrics(*reward)
        self.f1, self.average_precision = metrics.f1, metrics.average_precision
        self.epoch += 1
        improved = self.average_precision > self.best
        self.best = np.where(improved, self.average_precision, self.best)
        self.since_best = np.where(improved, 0.0, self.since_best + 1.0)
        self.repeats = self.repeats + weights.share * (self.batch_budget / self.epochs) / np.maximum(self.train_counts, 1.0)
        train_change = self.train.histogram - last_train.histogram
        reward_change = self.reward.histogram - last_reward.histogram
        if self.epoch == 1:  # there is no earlier epoch to compare with
            train_change, reward_change, last_f1, last_ap = 0 * train_change, 0 * reward_change, self.f1, self.average_precision
        change = (self.f1 - last_f1, self.average_precision - last_ap)
        return self._build(weights, train_change, reward_change, *change), metrics

    def _build(self, weights: WeightArrays, train_change: Floats, reward_change: Floats, df1: Floats, dap: Floats) -> Observation:
        share, (num, num_classes) = weights.share, self.repeats.shape
        log_prior = np.log(np.maximum(self.prior, 1e-9))
        is_first = np.zeros(num_classes)
        is_first[0] = 1.0
        columns = (
            np.broadcast_to(is_first, share.shape),
            np.broadcast_to(log_prior / 5.0, share.shape),
            (np.log(np.maximum(share, 1e-9)) - log_prior) / 3.0,
            np.log1p(self.repeats) / 3.0,
            self.reward.mean - self.train.mean,
            self.reward.f1_argmax,
            (np.maximum(weights.logit_offset(self.prior), np.log(1e-9)) - log_prior) / 3.0,
        )
        histograms = (self.train.histogram, self.reward.histogram, 4.0 * train_change, 4.0 * reward_change)
        per_class = np.concatenate([*histograms, np.stack(columns, axis=-1)], axis=-1)
        progress = min(self.epoch / self.epochs, 1.0)
        minority_rows = max(float(self.train_counts[1:].sum()), 1.0)
        left = np.log1p((1.0 - progress) * self.batch_budget / minority_rows) / 5.0
        positives = np.log1p(self.reward_positives) / 10.0
        fixed = [np.full(num, value) for value in (progress, left)]
        shared = np.stack(
            [
                *(*fixed, weights.hardness / 3.0, weights.floor, np.full(num, positives)),
                *(self.f1, self.average_precision, 10.0 * df1, 10.0 * dap),
                *(np.full(num, self.compensated, dtype=np.float64), weights.class_importance, weights.hardness_importance),
                *(np.log2(1.0 + 1.0 / weights.half_life) / 4.0, 10.0 * (self.best - self.average_precision)),
                self.since_best / max(self.epochs, 1),
            ],
            axis=-1,
        )
        return Observation(
            np.clip(per_class, -_LIMIT, _LIMIT).astype(np.float32),
            np.clip(shared, -_LIMIT, _LIMIT).astype(np.float32),
        )

    def state_dict(self) -> dict[str, Any]:
        """Memory of the last epoch, as values that JSON can hold."""
        state: dict[str, Any] = {"epoch": self.epoch, "repeats": self.repeats.tolist()}
        for name, part in (("train", self.train), ("reward", self.reward)):
            state[name] = {key: getattr(part, key).tolist() for key in ("histogram", "mean", "f1_argmax")}
        figures = ("f1", "average_precision", "best", "since_best")
        return state | {name: getattr(self, name).tolist() for name in figures}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the memory of the last epoch.

        Raises:
            InputError: The state has another number of classes.
        """
        repeats = np.array(state["repeats"], dtype=np.float64)
        if repeats.shape != self.repeats.shape:
            raise InputError(
                f"saved sampling state is for {repeats.shape[-1]} classes, this run has {self.repeats.shape[-1]}; start a new run"
            )
        self.epoch, self.repeats = int(state["epoch"]), repeats
        self.train, self.reward = (
            ErrorSummary(*(np.array(state[name][key], dtype=np.float64) for key in ("histogram", "mean", "f1_argmax")))
            for name in ("train", "reward")
        )
        self.f1, self.average_precision = (np.array(state[name], dtype=np.float64) for name in ("f1", "average_precision"))
        # States of version 0.1 don't hold the best epoch: it is the last one then.
        self.best = np.array(state.get("best", state["average_precision"]), dtype=np.float64)
        self.since_best = np.array(state.get("since_best", np.zeros(len(self.f1))), dtype=np.float64)
