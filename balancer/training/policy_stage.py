"""From a data set to a learned policy: the problem that the population of small students plays, and PPO on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.envs.problem import PopulationProblem, problem_from_arrays
from balancer.options.train import TrainConfig
from balancer.policy_learning.training import POLICY_BUDGETS, train_policy
from balancer.runs.progress import TrainingProgress
from balancer.sampling.policies import CONFIG_FILE
from balancer.sampling.seeding import integer_seed


def problem_of(dataset: Dataset, seed: int) -> PopulationProblem:
    """What students of the population see of a data set: the target rows' own fields, of the training and the reward rows."""
    store = dataset.store
    train, reward = dataset.rows(Split.TRAIN), dataset.rows(Split.REWARD)
    return problem_from_arrays(
        store.values[train],
        store.label[train].astype(np.int64),
        store.values[reward],
        store.label[reward].astype(np.int64),
        num_numeric=store.num_numeric,
        num_classes=len(dataset.schema.classes),
        seed=integer_seed(seed, "problem"),
    )


def learn_policy(dataset: Dataset, config: TrainConfig, *, folder: Path, device: str, progress: TrainingProgress) -> None:
    """Leave a policy bundle in ``folder``: at once where it is there, from the last rollout where there is a checkpoint."""
    rollouts = config.policy_rollouts or POLICY_BUDGETS[config.budget].rollouts
    if (folder / CONFIG_FILE).is_file():
        return
    with progress.stage("policy (PPO)", rollouts) as advance:
        train_policy(
            problem_of(dataset, config.seed),
            config.budget,
            seed=config.seed,
            folder=folder,
            reward=config.reward,
            rollouts=rollouts,
            device=device,
            resume=True,
            progress=lambda figures: advance(int(figures["rollout"]), _describe(figures)),
        )


def _describe(figures: dict[str, Any]) -> str:
    """The students' mean figures after a rollout, in one line."""
    return (
        f"students: AP {figures['average_precision']:.3f}  F1 {figures['f1']:.3f}"
        f"  share {100 * figures['minority_share']:.3g} %  hardness {figures['hardness']:.2f}"
    )
