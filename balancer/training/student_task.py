"""The transaction-sequence classifier as the student of the environment ``balancer/ClassWeights-v1``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.devices import random_state_kept
from balancer.envs.class_weights import POOL_LIMIT, StudentTask
from balancer.models import ModelConfig
from balancer.sampling.pools import thinned_groups
from balancer.sampling.seeding import generator
from balancer.training.trainer import ClassifierTrainer


def classifier_task(dataset: Dataset, model: ModelConfig, batch_size: int, device: str) -> StudentTask:
    """A task in which the transaction-sequence classifier is trained on a data set.

    Of the reward rows all positives are scored, and at most :data:`~balancer.envs.class_weights.POOL_LIMIT`
    negatives.

    Args:
        dataset: A data set that has been split.
        model: What to build.
        batch_size: Rows of a mini-batch.
        device: Where to train.
    """
    label = dataset.store.label.astype(np.int64)
    train, reward = dataset.rows(Split.TRAIN), dataset.rows(Split.REWARD)
    negative = reward[label[reward] == 0]
    positive = reward[label[reward] > 0]
    groups = [(negative, POOL_LIMIT), (positive, len(positive))]
    reward_rows, weight = thinned_groups(groups, generator(0, "environment reward pool"), in_order=True)
    return StudentTask(
        label,
        train,
        reward_rows,
        len(dataset.schema.classes),
        np.ones(len(train)),
        weight,
        lambda seed, steps: ClassifierStudent(dataset, model, seed=seed, steps=steps, batch_size=batch_size, device=device),
        dataset.store.time,
    )


class ClassifierStudent:
    """A classifier in training, as the environment uses it.

    Args:
        dataset: A data set that has been split.
        model: What to build.
        seed: Random seed.
        steps: Mini-batches of the training.
        batch_size: Rows of a mini-batch.
        device: Where to train.
    """

    def __init__(self, dataset: Dataset, model: ModelConfig, *, seed: int, steps: int, batch_size: int, device: str) -> None:
        with random_state_kept():
            self._trainer = ClassifierTrainer(dataset, model, seed=seed, total_steps=steps, batch_size=batch_size, device=device)
        self._classes = len(dataset.schema.classes)

    def fit(
        self, rows: NDArray[np.int64], weight: NDArray[np.float64] | None = None, logit_offset: NDArray[np.float64] | None = None
    ) -> None:
        """Train on ``rows``; see :class:`balancer.envs.class_weights.Student`."""
        if weight is not None and logit_offset is not None:
            self._trainer.compensate(np.ones(self._classes), logit_offset, rows, weight)
        with random_state_kept():
            self._trainer.fit(rows)

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """(n, K) class probabilities."""
        return self._trainer.score(rows)
