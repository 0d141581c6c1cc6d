"""How long a policy trains, by name; imports nothing heavy, because the command line prints it.

On one data set a policy starts from the one of the package, so few rollouts are enough: about a third of a
minute, two thirds and two minutes on one core.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PolicyBudget:
    """How long a policy trains."""

    rollouts: int
    """Number of PPO updates."""
    num_students: int = 32
    """Students that train side by side."""
    siblings: int = 8
    """Students of a group, which differ only in the actions of the policy."""
    epochs: int = 8
    """Steps of an episode."""
    episodes_per_rollout: int = 1
    """Episodes between two updates."""
    steps_per_epoch: int = 16
    """Mini-batches of an epoch, before ``factors``."""
    factors: tuple[float, ...] = (1.0, 3.0)
    """Factors of ``steps_per_epoch``, one per episode in turn, for short and long trainings."""
    batch_size: int = 128
    """Rows of a mini-batch of a student."""
    test_groups: int = 8
    """Groups of students in the comparison after the training."""
    test_episodes: int = 2
    """Episodes of that comparison."""

    @property
    def env_steps(self) -> int:
        """Environment steps of all students together."""
        return self.rollouts * self.num_students * self.epochs * self.episodes_per_rollout


POLICY_BUDGETS: dict[str, PolicyBudget] = {
    "quick": PolicyBudget(rollouts=8, test_groups=6),
    "standard": PolicyBudget(rollouts=16),
    "thorough": PolicyBudget(rollouts=24, epochs=12, factors=(1.0, 4.0), test_episodes=4),
}


@dataclass(frozen=True)
class TaskBudget:
    """How long a policy trains on the task distribution."""

    rollouts: int
    """Number of PPO updates, each after 24 epochs of every student."""
    slots: int = 8
    """Tasks side by side."""
    siblings: int = 8
    """Students of each task."""
    learning_rate: float = 2e-3


TASK_BUDGETS: dict[str, TaskBudget] = {
    "quick": TaskBudget(rollouts=10),
    "standard": TaskBudget(rollouts=48),
    "thorough": TaskBudget(rollouts=500),
}
