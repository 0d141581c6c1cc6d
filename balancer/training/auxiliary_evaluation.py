"""Metrics of the auxiliary tasks of a trained classifier on test rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.inference.scoring import score_task
from balancer.models import Classifier
from balancer.sampling.seeding import generator
from balancer.training.auxiliary_targets import task_targets

EVALUATED = 20_000
"""Test rows that a task is evaluated on, at most."""


def describe_tasks(model: Classifier, dataset: Dataset, seed: int, device: torch.device) -> dict[str, Any]:
    """Metrics of each auxiliary task with one target, on test rows.

    The baseline always predicts the commonest class of the training rows.
    """
    metrics: dict[str, Any] = {}
    test, train = (np.flatnonzero(dataset.split == split) for split in (Split.TEST, Split.TRAIN))
    test = generator(seed, "task figures").choice(test, min(EVALUATED, len(test)), replace=False)
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
        metrics[task.name] = {
            "rows": len(rows),
            "classes": task.sizes[0],
            "accuracy": float((chosen == target).mean()),
            "macro_f1": float(f1_score(target, chosen, average="macro", zero_division=0)),
            "accuracy_commonest": float((target == common).mean()),
            "macro_f1_commonest": float(f1_score(target, np.full_like(target, common), average="macro", zero_division=0)),
        }
    return metrics
