"""Learn a sampling policy on a data set: PPO on a population of small students."""

from __future__ import annotations

from pathlib import Path

from balancer.data.dataset import Dataset
from balancer.envs.problem import dataset_problem
from balancer.options.policy import PolicyOptions
from balancer.policy_learning.training import POLICY_BUDGETS, shipped_start, train_policy
from balancer.runs.progress import TrainingProgress, describe_students
from balancer.sampling.policies import CONFIG_FILE


def learn_policy(
    dataset: Dataset,
    options: PolicyOptions,
    *,
    budget: str,
    seed: int,
    folder: Path,
    device: str,
    progress: TrainingProgress,
) -> None:
    """Fine-tune the policy ``ppo`` of the package on a data set and write the result to ``folder``.

    The bundle keeps PPO or the constant, whichever the reward half of validation prefers
    (:func:`balancer.policy_learning.training.train_policy`). Does nothing if the bundle is there, and
    continues from a checkpoint. Where the package has no policy that can be trained further, a new one is
    trained.

    Args:
        dataset: A data set that has been split.
        options: Reward, and number of rollouts if it is not the budget's.
        budget: Key of :data:`balancer.policy_learning.budgets.POLICY_BUDGETS`.
        seed: Seed of the training.
        folder: Where the policy bundle and its checkpoints are written.
        device: Where the students train.
        progress: Where progress is shown.
    """
    rollouts = options.policy_rollouts or POLICY_BUDGETS[budget].rollouts
    if (folder / CONFIG_FILE).is_file():
        return
    start = shipped_start()
    with progress.stage("policy (PPO)", rollouts) as advance:
        train_policy(
            dataset_problem(dataset, seed)[0],
            budget,
            seed=seed,
            folder=folder,
            reward=options.reward,
            rollouts=rollouts,
            start=start,
            device=device,
            resume=True,
            progress=lambda figures: advance(int(figures["rollout"]), f"students: {describe_students(figures)}"),
        )
