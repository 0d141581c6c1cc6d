"""Which rows further tasks learn from: each task has a sampler of its own, and labels are not needed.

Special: a task about one thing (the next category) is as imbalanced as fraud is, so its rows are drawn by an adaptive sampler over its own classes, recomputed
every epoch from its own scores; a task about many fields at once has no classes to weigh, and its rows are drawn evenly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.inference.scoring import score_task
from balancer.models import Classifier, ModelConfig, Task
from balancer.sampling import SamplerCore
from balancer.sampling.seeding import generator, integer_seed
from balancer.training.auxiliary_targets import task_targets
from balancer.training.trainer import ClassifierStudent

SHARE = 0.25
"""Rows of a task in a step, per row of the main decision."""
POOL = 2_000
"""Rows that are scored after an epoch to recompute a task's weights: that many of train, and of the reward half."""
LEARNED_CLASSES = 10
"""Most classes that the learned policy has seen in its training; above it the rule draws."""
JUDGED = 20_000
"""Test rows that a task's figures are taken on, at most."""


class TaskSampling:
    """Rows of every further task of a model, epoch by epoch; empty where it has none.

    Parameters
    ----------
    epochs, steps, batch_size
        Of the run.
    share
        Rows of each task in a step, per row of ``batch_size``.
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
                own = integer_seed(seed, f"task {task.name}")
                policy = "auto" if present <= LEARNED_CLASSES else "rule"
                self.samplers[task.name] = SamplerCore(
                    target, policy=policy, epochs=epochs, num_samples=self.count, unlabelled=-1, seed=own
                )

    def draw(self, epoch: int) -> dict[str, np.ndarray]:
        """Store rows of an epoch by task."""
        return {task.name: self._draw(task, epoch) for task in self.config.tasks}

    def _draw(self, task: Task, epoch: int) -> np.ndarray:
        if task.name in self.samplers:
            return self.rows[self.samplers[task.name].draw(epoch)]
        return generator(self.seed, f"task {task.name}", epoch).choice(self.rows, self.count)

    def update(self, student: ClassifierStudent, epoch: int) -> None:
        """Recompute the weights of every task from the student's scores."""
        held = np.flatnonzero(self.dataset.split == Split.REWARD)
        for name, sampler in self.samplers.items():
            task = next(task for task in self.config.tasks if task.name == name)
            rng = generator(self.seed, f"task pool {name}", epoch)
            pool = rng.choice(len(self.rows), min(POOL, len(self.rows)), replace=False)
            judged = rng.choice(held, min(POOL, len(held)), replace=False)
            target = task_targets(self.dataset, self.config, task, judged)[:, 0]
            known = np.isin(target, sampler.classes_)
            judged, target = judged[known], target[known]
            common = sampler.classes_[int(np.argmax(sampler.counts))]
            if len(target) and (target == common).any() and (target != common).any():
                scores = [self._scores(student.model, task, sampler, rows, student.device) for rows in (judged, self.rows[pool])]
                sampler.update(target, scores[0], rows=pool, row_score=scores[1])

    def _scores(self, model: Classifier, task: Task, sampler: SamplerCore, rows: np.ndarray, device: torch.device) -> np.ndarray:
        """(n, K) over the classes that training rows have."""
        scores = score_task(model, self.dataset, task.name, rows, device=device)[:, 0, np.asarray(sampler.classes_)].astype(np.float64)
        normal: np.ndarray = scores / np.maximum(scores.sum(1, keepdims=True), 1e-12)
        return normal

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays by name and JSON, for :meth:`load_state`."""
        arrays: dict[str, np.ndarray] = {}
        told = {}
        for name, sampler in self.samplers.items():
            state = sampler.state_dict()
            arrays |= {f"{name}.{key}": array for key, array in state.pop("rows").items()}
            told[name] = state
        return arrays, told

    def load_state(self, arrays: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        for name, sampler in self.samplers.items():
            rows = {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}
            sampler.load_state_dict(told[name] | {"rows": rows})


def describe_tasks(model: Classifier, dataset: Dataset, seed: int, device: torch.device) -> dict[str, Any]:
    """Figures of each further task about one thing on test rows, beside always naming the commonest class of train."""
    figures: dict[str, Any] = {}
    test, train = (np.flatnonzero(dataset.split == split) for split in (Split.TEST, Split.TRAIN))
    test = generator(seed, "task figures").choice(test, min(JUDGED, len(test)), replace=False)
    for task in model.config.tasks:
        if len(task.sizes) > 1:
            continue
        target = task_targets(dataset, model.config, task, test)[:, 0]
        rows, target = test[target >= 0], target[target >= 0]
        if not len(rows):
            continue
        before = task_targets(dataset, model.config, task, train)[:, 0]
        common = int(np.bincount(before[before >= 0]).argmax())
        chosen = score_task(model, dataset, task.name, rows, device=device)[:, 0].argmax(1)
        figures[task.name] = {
            "rows": len(rows),
            "classes": task.sizes[0],
            "accuracy": float((chosen == target).mean()),
            "macro_f1": float(f1_score(target, chosen, average="macro", zero_division=0)),
            "accuracy_commonest": float((target == common).mean()),
            "macro_f1_commonest": float(f1_score(target, np.full_like(target, common), average="macro", zero_division=0)),
        }
    return figures
