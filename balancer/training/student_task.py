"""The transaction-sequence classifier as the student of ``balancer/ClassWeights-v0``."""

from __future__ import annotations

import numpy as np

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.envs.class_weights import POOL_LIMIT, StudentTask
from balancer.models import ModelConfig
from balancer.sampling.seeding import generator
from balancer.training.trainer import ClassifierStudent


def classifier_task(dataset: Dataset, model: ModelConfig, batch_size: int, device: str) -> StudentTask:
    """The transaction-sequence classifier on ``dataset``; of the reward half all positives and at most 20,000 negatives are scored."""
    label = dataset.store.label.astype(np.int64)
    train, reward = dataset.rows(Split.TRAIN), dataset.rows(Split.REWARD)
    negative = reward[label[reward] == 0]
    kept = (
        negative
        if len(negative) <= POOL_LIMIT
        else np.sort(generator(0, "environment reward pool").choice(negative, POOL_LIMIT, replace=False))
    )
    positive = reward[label[reward] > 0]
    weight = np.concatenate([np.full(len(kept), len(negative) / max(len(kept), 1)), np.ones(len(positive))])
    return StudentTask(
        label,
        train,
        np.concatenate([kept, positive]),
        len(dataset.schema.classes),
        np.ones(len(train)),
        weight,
        lambda seed, steps: ClassifierStudent(dataset, model, seed=seed, total_steps=steps, batch_size=batch_size, device=device),
    )
