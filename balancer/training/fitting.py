"""Fit one classifier under one treatment, an epoch at a time, with a checkpoint after each epoch.

The run and its baselines use the same code: same model, same seed, same epochs; only the treatment differs.
Draws, pools and dropout are functions of (seed, epoch), so a checkpoint holds arrays and counters, and a
resumed fit gives exactly the result of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.errors import UnsupportedError
from balancer.files import read_arrays, write_arrays
from balancer.models import Classifier, ModelConfig
from balancer.options.fit import Budget, FitOptions
from balancer.sampling.ages import ages
from balancer.sampling.controller import SamplingController
from balancer.sampling.observation import ScoredRows
from balancer.sampling.pools import thinned_groups
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.seeding import generator
from balancer.sampling.weights import SamplingWeights, class_prior
from balancer.training.auxiliary_sampling import AuxiliarySampling
from balancer.training.micro_batches import MicroBatches
from balancer.training.trainer import ClassifierTrainer
from balancer.training.treatment import Treatment, balanced_class_weight, under_sampled

POOL_SHARE = 0.5
"""Training rows scored after an epoch, per row trained on; scoring costs a third of a training step."""
REWARD_NEGATIVES = 20_000
"""Negatives of the reward half that are scored after each epoch, at most; all positives are scored."""


@dataclass(frozen=True)
class Pools:
    """Labelled store rows by role, and how many of each class."""

    train: np.ndarray
    """(n,) training rows."""
    reward: np.ndarray
    """(v,) rows of the reward half of validation."""
    train_counts: np.ndarray
    """(K,) training rows of each class."""
    reward_counts: np.ndarray
    """(K,) reward rows of each class."""

    @classmethod
    def of(cls, dataset: Dataset) -> Pools:
        """Pools of a data set that has been split."""
        classes = len(dataset.schema.classes)
        train, reward = dataset.rows(Split.TRAIN), dataset.rows(Split.REWARD)
        counts = [np.bincount(dataset.store.label[rows], minlength=classes) for rows in (train, reward)]
        return cls(train, reward, counts[0], counts[1])


def fit_classifier(
    dataset: Dataset,
    model_config: ModelConfig,
    treatment: Treatment,
    schedule: Budget,
    options: FitOptions,
    *,
    seed: int,
    device: str,
    checkpoint: Path,
    after_epoch: Callable[[int, dict[str, Any]], None],
    start: Callable[[], Classifier] | None = None,
    new_head: bool = True,
    train_only: Collection[str] | None = None,
    task_weights: Mapping[str, float] | None = None,
    micro_batches: MicroBatches | None = None,
) -> tuple[ClassifierTrainer, list[dict[str, Any]]]:
    """Fit a classifier, from ``checkpoint`` if there is one.

    Args:
        dataset: A data set that has been split.
        model_config: The model to build.
        treatment: How rows are drawn, and the loss.
        schedule: Number of epochs and of steps per epoch.
        options: Batch size, learning rate, optimizer and warm-up of sparse attention.
        seed: Random seed.
        device: Where to train.
        checkpoint: File that is written after every epoch and read at the start. With several processes the
            leader writes it, and all read it.
        after_epoch: Called by the leader after every epoch with the number of finished epochs and the figures
            of that epoch.
        start: Makes the model to start from; None: a new one.
        new_head: Whether the head of that model is untrained, so that its biases are set.
        train_only: Parts of the model to train; None: all.
        task_weights: Weights of the losses of auxiliary tasks by name; None: learned.
        micro_batches: How steps are divided, and among which processes; None: this process alone, whole
            steps.

    Returns:
        The trainer and the figures of every epoch.

    Raises:
        UnsupportedError: The classifier can't be trained under this treatment.
    """
    _check_supported(treatment)
    if treatment.rows == "under":
        dataset = under_sampled(dataset, seed)
    pools = Pools.of(dataset)
    counts = pools.train_counts
    trainer = ClassifierTrainer(
        dataset,
        model_config,
        seed=seed,
        total_steps=schedule.epochs * schedule.steps_per_epoch,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        class_weight=balanced_class_weight(counts) if treatment.loss == "class_weight" else None,
        prior=_initial_prior(treatment, pools, schedule, options.batch_size) if new_head else None,
        warmup=options.warmup,
        optimizer=options.optimizer,
        device=device,
        start=start,
        train_only=train_only,
        task_weights=task_weights,
        micro_batches=micro_batches,
    )
    fit, workers = _Fit(trainer, treatment, schedule), trainer.micro_batches.workers

    def store() -> None:
        fit.save(checkpoint)
        after_epoch(len(fit.figures), fit.figures[-1])

    if workers.agreed(checkpoint.exists()):
        fit.load(checkpoint)
    for epoch in range(len(fit.figures), schedule.epochs):
        fit.train_epoch(epoch)
        workers.lead(store)
        if workers.size > 1 and not workers.all_same(fit.digest()):
            # Processors of another kind may round differently; all continue with the leader's state.
            fit.load(checkpoint)
    return fit.trainer, fit.figures


def _initial_prior(treatment: Treatment, pools: Pools, schedule: Budget, batch_size: int) -> np.ndarray:
    """(K,) shares that a new head predicts; with the sampler's loss they are those of the natural stream."""
    if treatment.loss == "sampler":
        return class_prior(pools.train_counts)
    budget = schedule.epochs * schedule.steps_per_epoch * batch_size
    first = treatment.first_weights(pools.train_counts, pools.reward_counts, epochs=schedule.epochs, batch_budget=budget)
    odds = np.exp(treatment.initial_bias(pools.train_counts, first))
    shares: np.ndarray = odds / odds.sum()
    return shares


def _check_supported(treatment: Treatment) -> None:
    if treatment.rows == "smote" or treatment.loss not in ("plain", "class_weight", "sampler"):
        raise UnsupportedError(f"the classifier can't be trained under {treatment.name}: choose another treatment")


class _Fit:
    """One fit: the trainer, the samplers of its rows, and the figures so far.

    Args:
        trainer: Trainer of the classifier, at its start.
        treatment: How rows are drawn.
        schedule: Number of epochs and of steps per epoch.
    """

    def __init__(self, trainer: ClassifierTrainer, treatment: Treatment, schedule: Budget) -> None:
        self.trainer, self.treatment, self.dataset, self.seed = trainer, treatment, trainer.dataset, trainer.seed
        self.pools = Pools.of(self.dataset)
        self.draws = schedule.steps_per_epoch * trainer.batch_size
        self.figures: list[dict[str, Any]] = []
        self.auxiliary = AuxiliarySampling(
            self.dataset,
            trainer.config,
            epochs=schedule.epochs,
            steps=schedule.steps_per_epoch,
            batch_size=trainer.batch_size,
            seed=self.seed,
        )
        labels = np.full(len(self.dataset.store.label), -1, dtype=np.int64)
        labels[self.pools.train] = self.dataset.store.label[self.pools.train]
        self.sampler = RowSampler(labels, len(self.dataset.schema.classes), age=ages(self.dataset.store.time, labels >= 0))
        self.controller: SamplingController | None = None
        if treatment.fixed_weights is None:
            self.controller = SamplingController(
                self.sampler.prior,
                treatment.policy,
                epochs=schedule.epochs,
                batch_budget=schedule.epochs * self.draws,
                train_counts=self.pools.train_counts,
                reward_counts=self.pools.reward_counts,
                compensated=treatment.loss == "sampler",
            )
        rng = generator(self.seed, "reward pool")
        self.reward_rows, self.reward_weight = thinned(self.pools.reward, self.dataset.store.label, REWARD_NEGATIVES, rng)

    @property
    def weights(self) -> SamplingWeights:
        """Sampling weights of the next epoch.

        On a margin the hardness is 0: hard rows that are drawn more often shift the log-odds of all rows like
        them, and the margin is already right on the mean (docs/experiments.md).
        """
        fixed = self.treatment.fixed_weights
        weights = fixed if self.controller is None else self.controller.weights
        assert weights is not None
        return replace(weights, hardness=0.0) if self.trainer.config.margin else weights

    def train_epoch(self, epoch: int) -> None:
        """Draw the rows of an epoch, train on them, score, and let the policies choose the next weights."""
        weights = self.weights
        drawn = self.sampler.draw(self.draws, weights, generator(self.seed, "draw", epoch))
        if self.treatment.loss == "sampler":
            prior = self.sampler.prior
            row_weight = None
            if weights.hardness_importance > 0:
                row_weight = self.sampler.loss_weights(drawn, weights, self.draws)
                row_weight /= weights.class_weight(prior)[self.dataset.store.label[drawn]]
            offset = weights.logit_offset(prior) - np.log(np.maximum(prior, 1e-9))
            self.trainer.compensate(weights.class_weight(prior), offset, drawn, row_weight)
        loss = self.trainer.fit(drawn, self.auxiliary.draw(epoch))
        reward = self._scored(self.reward_rows, self.reward_weight)
        if self.controller is not None:
            rng = generator(self.seed, "pool", epoch)
            pool_rows, pool_weight = thinned(self.pools.train, self.dataset.store.label, int(POOL_SHARE * self.draws), rng)
            pool = self._for_policy(self._scored(pool_rows, pool_weight))
            self.sampler.refresh(pool_rows, pool.score)
            self.controller.update(pool, self._for_policy(reward))
        self.auxiliary.update(self.trainer, epoch)
        self.figures.append({"model": self.treatment.name, "epoch": epoch + 1, "loss": loss} | _describe(weights, reward))

    def _scored(self, rows: np.ndarray, weight: np.ndarray) -> ScoredRows:
        return ScoredRows(self.dataset.store.label[rows].astype(np.int64), self.trainer.score(rows), weight)

    def _for_policy(self, rows: ScoredRows) -> ScoredRows:
        """The rows with scores as policies and hardness know them.

        With the sampler's loss these are scores of a stream with equally frequent classes, as in the
        environments; the model has those of the natural stream.
        """
        if self.treatment.loss != "sampler":
            return rows
        odds = rows.score / np.maximum(self.sampler.prior, 1e-9)
        return replace(rows, score=odds / odds.sum(axis=1, keepdims=True))

    def save(self, checkpoint: Path) -> None:
        """Write the state after an epoch."""
        write_arrays(checkpoint, *self._state())

    def digest(self) -> str:
        """Digest of the state after an epoch, which is the same for all processes of a fit."""
        arrays, meta = self._state()
        found = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
        for name in sorted(arrays):
            found.update(np.ascontiguousarray(arrays[name]).tobytes())
        return found.hexdigest()

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values of the state after an epoch."""
        auxiliary_arrays, auxiliary_meta = _flat(self.auxiliary.state_dict())
        parts = {"student": self.trainer.state_dict(), "sampler": self.sampler.state_dict(), "task": auxiliary_arrays}
        arrays = {f"{part}.{name}": array for part, state in parts.items() for name, array in state.items()}
        controller = self.controller.state_dict() if self.controller is not None else None
        return arrays, {"controller": controller, "figures": self.figures, "tasks": auxiliary_meta}

    def load(self, checkpoint: Path) -> None:
        """Restore the state that :meth:`save` wrote."""
        arrays, meta = read_arrays(checkpoint, what=f"it is the checkpoint of {self.treatment.name}")
        self.trainer.load_state_dict(_part(arrays, "student"))
        self.sampler.load_state_dict(_part(arrays, "sampler"))
        if self.controller is not None:
            self.controller.load_state_dict(meta["controller"])
            if self.treatment.loss == "sampler" and not self.controller.compensated:
                # Version 0.1 began this run, with a loss that counts all rows alike.
                self.treatment = replace(self.treatment, loss="plain")
        self.auxiliary.load_state_dict(_nested(_part(arrays, "task"), meta.get("tasks", {})))
        self.figures = meta["figures"]


def _part(arrays: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    """The arrays whose name begins with ``part`` and a dot, by the rest of their name."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _flat(states: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """States of samplers by task, as arrays ``task.name`` and the values that JSON can hold."""
    arrays = {f"{task}.{name}": array for task, state in states.items() for name, array in state["rows"].items()}
    return arrays, {task: {name: value for name, value in state.items() if name != "rows"} for task, state in states.items()}


def _nested(arrays: Mapping[str, np.ndarray], states: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Inverse of :func:`_flat`."""
    return {task: dict(state) | {"rows": _part(arrays, task)} for task, state in states.items()}


def thinned(rows: np.ndarray, label: np.ndarray, most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` positives and ``most`` negatives of ``rows``, and how many rows each represents."""
    return thinned_groups([(rows[label[rows] > 0], most), (rows[label[rows] == 0], most)], rng, in_order=True)


def _describe(weights: SamplingWeights, reward: ScoredRows) -> dict[str, Any]:
    """Figures of an epoch.

    Returns:
        The weights it was drawn with; on the reward half the average precision, the best F1, and the
        false-positive rate at the threshold of the best F1.
    """
    positive, fraud = reward.label > 0, 1.0 - reward.score[:, 0]
    precision, recall, _ = precision_recall_curve(positive, fraud, sample_weight=reward.weight)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1.argmax())
    assert reward.weight is not None
    positives = float(reward.weight[positive].sum())
    false_alarms = positives * recall[best] * (1 / max(precision[best], 1e-12) - 1)
    return {
        "share": weights.share.tolist(),
        "hardness": weights.hardness,
        "floor": weights.floor,
        "class_importance": weights.class_importance,
        "hardness_importance": weights.hardness_importance,
        "half_life": weights.half_life if np.isfinite(weights.half_life) else None,
        "average_precision": float(average_precision_score(positive, fraud, sample_weight=reward.weight)),
        "f1": float(f1[best]),
        "fpr": float(false_alarms / max(1.0, float(reward.weight.sum()) - positives)),
    }
