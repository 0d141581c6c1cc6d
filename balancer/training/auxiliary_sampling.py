"""Rows for the auxiliary tasks: every task has its own sampler, and labels are not needed.

A task with one target (such as the next category) is as imbalanced as fraud, so an adaptive sampler over the
task's classes draws its rows, and its weights are recomputed every epoch from the task's scores. A task with
many fields at once has no classes to weight, and its rows are drawn evenly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.models import AuxiliaryTask, ModelConfig
from balancer.sampling import SamplerCore
from balancer.sampling.seeding import generator, integer_seed
from balancer.training.auxiliary_targets import task_targets
from balancer.training.trainer import ClassifierTrainer

SHARE = 0.25
"""Rows of a task in a step, per row of the classification."""
POOL = 2_000
"""Rows of train, and of the reward half, that are scored after an epoch for a task's weights."""


class AuxiliarySampling:
    """Rows of every auxiliary task of a model, epoch by epoch; nothing where it has none.

    Args:
        dataset: A data set that has been split.
        config: Its ``tasks`` are the auxiliary tasks.
        epochs: Number of epochs of the run.
        steps: Steps per epoch.
        batch_size: Rows of a mini-batch.
        seed: Random seed.
        share: Rows of each task in a step, per row of ``batch_size``.
    """

    def __init__(
        self, dataset: Dataset, config: ModelConfig, *, epochs: int, steps: int, batch_size: int, seed: int, share: float = SHARE
    ) -> None:
        self.dataset, self.config, self.seed = dataset, config, seed
        self.count = steps * max(1, round(share * batch_size))
        self.samplers: dict[str, SamplerCore] = {}
        self.rows = np.flatnonzero(dataset.split == Split.TRAIN) if config.tasks else np.zeros(0, dtype=np.int64)
        for task in config.tasks:
            if len(task.sizes) > 1:
                continue
            target = task_targets(dataset, config, task, self.rows)[:, 0]
            present = len(np.unique(target[target >= 0]))
            if 2 <= present <= self.count:
                task_seed = integer_seed(seed, f"task {task.name}")
                self.samplers[task.name] = SamplerCore(target, epochs=epochs, num_samples=self.count, unlabelled=-1, seed=task_seed)

    def draw(self, epoch: int) -> dict[str, np.ndarray]:
        """Store rows of an epoch, by task."""
        return {task.name: self._draw(task, epoch) for task in self.config.tasks}

    def _draw(self, task: AuxiliaryTask, epoch: int) -> np.ndarray:
        if task.name in self.samplers:
            return self.rows[self.samplers[task.name].draw(epoch)]
        return generator(self.seed, f"task {task.name}", epoch).choice(self.rows, self.count)

    def update(self, trainer: ClassifierTrainer, epoch: int) -> None:
        """Recompute the weights of every task from the model's scores."""
        held = np.flatnonzero(self.dataset.split == Split.REWARD)
        for name, sampler in self.samplers.items():
            task = next(task for task in self.config.tasks if task.name == name)
            rng = generator(self.seed, f"task pool {name}", epoch)
            pool = rng.choice(len(self.rows), min(POOL, len(self.rows)), replace=False)
            held_rows = rng.choice(held, min(POOL, len(held)), replace=False)
            target = task_targets(self.dataset, self.config, task, held_rows)[:, 0]
            known = np.isin(target, sampler.classes_)
            held_rows, target = held_rows[known], target[known]
            common = sampler.classes_[int(np.argmax(sampler.counts))]
            if len(target) and (target == common).any() and (target != common).any():
                scores = [self._scores(trainer, task, sampler, rows) for rows in (held_rows, self.rows[pool])]
                sampler.update(target, scores[0], rows=pool, row_score=scores[1])

    def _scores(self, trainer: ClassifierTrainer, task: AuxiliaryTask, sampler: SamplerCore, rows: np.ndarray) -> np.ndarray:
        """(n, K) probabilities over the classes that occur among the training rows."""
        scores = trainer.score_task(task.name, rows)[:, 0, np.asarray(sampler.classes_)].astype(np.float64)
        normal: np.ndarray = scores / np.maximum(scores.sum(1, keepdims=True), 1e-12)
        return normal

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """State of every task's sampler, by task."""
        return {name: sampler.state_dict() for name, sampler in self.samplers.items()}

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore the states of :meth:`state_dict`."""
        for name, sampler in self.samplers.items():
            sampler.load_state_dict(states[name])
