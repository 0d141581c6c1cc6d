"""Fit one classifier under one way of sampling, an epoch at a time, with a checkpoint after each.

The run and its baselines go through the same lines: same model, same seed, same epochs; only the scheme differs. Draws, pools and dropout
are functions of (seed, epoch), so a checkpoint is arrays and counters, and a resumed fit ends in the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.files import read_arrays, write_arrays
from balancer.models import Classifier, ModelConfig
from balancer.options.train import Budget, TrainConfig
from balancer.sampling.controller import SamplingController
from balancer.sampling.observation import ScoredRows
from balancer.sampling.policies import Policy
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.seeding import generator
from balancer.sampling.weights import SamplingWeights
from balancer.training.auxiliary_sampling import TaskSampling
from balancer.training.trainer import ClassifierStudent

BASELINES = ("none", "one_to_one", "class_weight")
"""Ways of treating imbalance that every report compares with: leave it, over-sample to 1:1, weight the loss."""

POOL_SHARE = 0.5
"""Rows of the training pool scored after an epoch, per row trained on; a forward costs a third of a training step."""
REWARD_NEGATIVES = 20_000
"""Negatives of the reward half that are scored after each epoch; all positives are."""


@dataclass(frozen=True)
class Scheme:
    """A way of sampling: a policy that answers every epoch, or fixed weights; and loss weights per class."""

    name: str
    policy: Policy | None = None
    share: np.ndarray | None = None
    class_weight: np.ndarray | None = None


def baseline_scheme(name: str, counts: np.ndarray) -> Scheme:
    """Scheme of one of :data:`BASELINES` for training ``counts`` (K,); 1:1 keeps the proportions among the positive classes."""
    prior = counts / counts.sum()
    if name == "none":
        return Scheme(name, share=prior)
    if name == "one_to_one":
        return Scheme(name, share=np.concatenate([[0.5], 0.5 * prior[1:] / prior[1:].sum()]))
    weight = np.where(counts > 0, counts.sum() / (np.maximum(counts, 1) * (counts > 0).sum()), 0.0)
    return Scheme(name, share=prior, class_weight=weight)


@dataclass(frozen=True)
class Pools:
    """Labelled store rows by role, and how many of each class."""

    train: np.ndarray
    reward: np.ndarray
    train_counts: np.ndarray
    reward_counts: np.ndarray

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
    scheme: Scheme,
    schedule: Budget,
    config: TrainConfig,
    *,
    device: str,
    checkpoint: Path,
    after_epoch: Callable[[int, dict[str, Any]], None],
    start: Callable[[], Classifier] | None = None,
) -> tuple[ClassifierStudent, list[dict[str, Any]]]:
    """Fit a classifier from ``checkpoint`` on, or from the start where there is none.

    ``after_epoch(epochs done, figures)`` is called once an epoch; ``start`` makes the model to begin with, instead of a new one.
    Returns the student and the figures of every epoch.
    """
    pools = Pools.of(dataset)
    steps = schedule.steps_per_epoch
    student = ClassifierStudent(
        dataset,
        model_config,
        seed=config.seed,
        total_steps=schedule.epochs * steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        class_weight=scheme.class_weight,
        warmup=config.warmup,
        optimizer=config.optimizer,
        device=device,
        start=start,
        train_only=config.train_only,
        task_weights=config.fixed_task_weights(),
    )
    tasks = TaskSampling(dataset, model_config, epochs=schedule.epochs, steps=steps, batch_size=config.batch_size, seed=config.seed)
    labels = np.full(len(dataset.store.label), -1, dtype=np.int64)
    labels[pools.train] = dataset.store.label[pools.train]
    sampler = RowSampler(labels, len(dataset.schema.classes))
    controller = None
    if scheme.policy is not None:
        controller = SamplingController(
            sampler.prior,
            scheme.policy,
            epochs=schedule.epochs,
            batch_budget=schedule.epochs * steps * config.batch_size,
            train_counts=pools.train_counts,
            reward_counts=pools.reward_counts,
        )
    figures: list[dict[str, Any]] = []
    if checkpoint.exists():
        arrays, meta = read_arrays(checkpoint, what=f"it is the checkpoint of {scheme.name}")
        student.load_state({name[8:]: array for name, array in arrays.items() if name.startswith("student.")})
        sampler.load_state({name[8:]: array for name, array in arrays.items() if name.startswith("sampler.")})
        if controller is not None:
            controller.load_state_dict(meta["controller"])
        tasks.load_state({name[5:]: array for name, array in arrays.items() if name.startswith("task.")}, meta.get("tasks", {}))
        figures = meta["figures"]
    reward_rows, reward_weight = thinned(pools.reward, dataset.store.label, REWARD_NEGATIVES, generator(config.seed, "reward pool"))
    for epoch in range(len(figures), schedule.epochs):
        weights = controller.weights if controller is not None else SamplingWeights(np.asarray(scheme.share), 0.0, 0.0)
        drawn = sampler.draw(steps * config.batch_size, weights, generator(config.seed, "draw", epoch))
        loss = student.fit(drawn, tasks.draw(epoch))
        reward = _scored(student, reward_rows, reward_weight)
        if controller is not None:
            pool_size = int(POOL_SHARE * steps * config.batch_size)
            pool_rows, pool_weight = thinned(pools.train, dataset.store.label, pool_size, generator(config.seed, "pool", epoch))
            pool = _scored(student, pool_rows, pool_weight)
            sampler.refresh(pool_rows, pool.score)
            controller.update(pool, reward)
        tasks.update(student, epoch)
        figures.append({"model": scheme.name, "epoch": epoch + 1, "loss": loss} | _describe(weights, reward))
        state = {f"student.{name}": array for name, array in student.state().items()}
        state |= {f"sampler.{name}": array for name, array in sampler.state().items()}
        task_arrays, task_meta = tasks.state()
        state |= {f"task.{name}": array for name, array in task_arrays.items()}
        meta = {"controller": controller.state_dict() if controller is not None else None, "figures": figures, "tasks": task_meta}
        write_arrays(checkpoint, state, meta)
        after_epoch(epoch + 1, figures[-1])
    return student, figures


def thinned(rows: np.ndarray, label: np.ndarray, negatives: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All positives of ``rows`` (n,), but at most ``negatives`` of them, and at most ``negatives`` random negatives, with how many rows each stands for."""
    chosen, weights = [], []
    for own in (rows[label[rows] > 0], rows[label[rows] == 0]):
        kept = own if len(own) <= negatives else np.sort(rng.choice(own, negatives, replace=False))
        chosen.append(kept)
        weights.append(np.full(len(kept), len(own) / max(1, len(kept))))
    return np.concatenate(chosen), np.concatenate(weights)


def _scored(student: ClassifierStudent, rows: np.ndarray, weight: np.ndarray) -> ScoredRows:
    return ScoredRows(student.dataset.store.label[rows].astype(np.int64), student.score(rows), weight)


def _describe(weights: SamplingWeights, reward: ScoredRows) -> dict[str, Any]:
    """Figures of an epoch: the weights it was drawn with, and average precision, best F1 and the false-positive rate there on the reward half."""
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
        "average_precision": float(average_precision_score(positive, fraud, sample_weight=reward.weight)),
        "f1": float(f1[best]),
        "fpr": float(false_alarms / max(1.0, float(reward.weight.sum()) - positives)),
    }
