"""From a data set to a learned policy: the problem that the population of small students plays, and PPO on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from balancer.data.dataset import Dataset
from balancer.data.split import PART_REWARD, PART_TRAIN
from balancer.envs.problem import PopulationProblem, problem_from_arrays
from balancer.sampling.seeding import integer_seed
from balancer.training.config import TrainConfig
from balancer.training.policy import train_policy
from balancer.training.progress import TrainingProgress


def problem_of(dataset: Dataset, seed: int) -> PopulationProblem:
    """What students of the population see of a data set: the target rows' own fields, of the training and the reward rows."""
    store = dataset.store
    train, reward = dataset.rows(PART_TRAIN), dataset.rows(PART_REWARD)
    return problem_from_arrays(
        store.values[train],
        store.label[train].astype(np.int64),
        store.values[reward],
        store.label[reward].astype(np.int64),
        num_numeric=store.num_numeric,
        num_classes=len(dataset.schema.classes),
        seed=integer_seed(seed, "problem"),
    )
