"""Compare policies on students that no policy was trained on.

The students are siblings: same network, same initial weights, same random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from balancer.cluster.tasks import Tell, run_tasks
from balancer.devices import torch_threads
from balancer.envs.population import PopulationStack
from balancer.envs.problem import PopulationProblem
from balancer.envs.task_slots import TaskEpisode
from balancer.envs.tasks import TaskSplit, draw_task
from balancer.envs.vec_env import PopulationEpisode
from balancer.policy_learning.budgets import PolicyBudget
from balancer.policy_learning.walking import walk_policies
from balancer.sampling.policies import ConstantPolicy, DefaultPolicy, Policy, RandomPolicy, StartPolicy, compensates
from balancer.sampling.scores import REWARDS, RankingMetrics
from balancer.sampling.seeding import integer_seed
from balancer.sampling.weights import Floats, SamplingWeights, stacked


def _figures(metrics: RankingMetrics, weights: Sequence[SamplingWeights], policies: int) -> dict[str, Floats]:
    """Each figure as an array (groups, policies)."""
    last = stacked(weights)
    figures = {name: metrics.named(name) for name in REWARDS} | {"minority_share": 1.0 - last.share[:, 0], "hardness": last.hardness}
    return {name: values.reshape(-1, policies) for name, values in figures.items()}


@dataclass(frozen=True)
class PolicyComparison:
    """Figures of policies; arrays are (groups or tasks, policies)."""

    policies: tuple[str, ...]
    figures: dict[str, Floats]
    """``average_precision``, ``f1``, ``partial_auc``; final ``minority_share`` and ``hardness``."""

    def means(self) -> dict[str, dict[str, float]]:
        """Mean of each figure, by policy."""
        return {
            policy: {name: float(values[:, i].mean()) for name, values in self.figures.items()} for i, policy in enumerate(self.policies)
        }

    def margin(self, policy: str, reference: str, figure: str) -> tuple[float, float]:
        """Mean difference of a policy to another over the groups, and its standard error; 0 for one group."""
        values = self.figures[figure]
        difference = values[:, self.policies.index(policy)] - values[:, self.policies.index(reference)]
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
        return float(difference.mean()), float(error)


def compare_policies(problem: PopulationProblem, ppo: Policy, plan: PolicyBudget, *, seed: int, device: str = "cpu") -> PolicyComparison:
    """Compare ``ppo`` and other policies on one problem, by figures on its reward rows.

    In each group every policy has one sibling. A student counts as it is after its last epoch, as the
    classifier of a run does.

    Args:
        problem: Data of the students.
        ppo: The policy to evaluate.
        plan: Size of the comparison.
        seed: Random seed.
        device: Where the students train.
    """
    policies: list[Policy] = [
        ppo,
        DefaultPolicy(),
        ConstantPolicy(0.5, 0.0, name="one_to_one"),
        ConstantPolicy(None, 0.0, name="none"),
        StartPolicy(),
        RandomPolicy(integer_seed(seed, "policy test actions")),
    ]
    stack = PopulationStack(
        problem,
        groups=plan.test_groups,
        siblings=len(policies),
        batch_size=plan.batch_size,
        seed=integer_seed(seed, "policy test"),
        device=device,
        compensated=np.tile([compensates(policy) for policy in policies], plan.test_groups),
    )
    episode = PopulationEpisode(stack, epochs=plan.epochs, steps_per_epoch=plan.steps_per_epoch, budgets=plan.factors)
    collected: dict[str, list[Floats]] = {}
    for number in range(plan.test_episodes):
        episode.begin(number)
        walk = walk_policies(episode, policies)
        for name, values in _figures(walk.metrics, walk.weights, len(policies)).items():
            collected.setdefault(name, []).append(values)
    return PolicyComparison(tuple(policy.name for policy in policies), {name: np.concatenate(values) for name, values in collected.items()})


@dataclass(frozen=True)
class TaskComparison(PolicyComparison):
    """Figures of policies on the goals of tasks; each value is the mean of some students."""

    traits: list[dict[str, object]]
    """Properties of each task."""

    def against(self, reference: str, figure: str, seed: int = 0, draws: int = 2000) -> dict[str, tuple[float, float, float]]:
        """Mean difference of each policy to ``reference`` over the tasks, and its 95 % bootstrap interval."""
        values = self.figures[figure]
        differences = values - values[:, [self.policies.index(reference)]]
        rng = np.random.default_rng(seed)
        drawn = differences[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        mean = differences.mean(axis=0)
        return {name: (float(mean[i]), float(low[i]), float(high[i])) for i, name in enumerate(self.policies)}


def compare_on_tasks(
    policies: Sequence[Policy],
    tasks: int,
    *,
    seed: int,
    split: TaskSplit = "heldout",
    groups: int = 2,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    cluster: str | None = None,
    workers: int | None = None,
) -> TaskComparison:
    """Compare policies on the first tasks of a split, measured on the goal of each task.

    A student counts as it was after its best epoch on validation, as a training that keeps its best model.

    Args:
        policies: The policies.
        tasks: Number of tasks.
        seed: Random seed of the tasks.
        split: ``heldout`` or ``train``.
        groups: Kinds of students on each task.
        device: Where the students train.
        progress: Called with the number of finished tasks.
        cluster: Address of a Ray cluster that does the tasks; None: this machine.
        workers: Most tasks at once; None: one on this machine.
    """
    shared = _Evaluation(tuple(policies), seed, split, groups, device)
    found: dict[int, tuple[dict[str, Floats], dict[str, object]]] = {}
    gpus = 1 if device == "cuda" else 0
    with closing(run_tasks(_one_task, range(tasks), shared=shared, cluster=cluster, workers=workers, gpus=gpus)) as results:
        for index, result in results:
            found[index] = result
            if progress is not None:
                progress(len(found))
    ordered = [found[index] for index in range(tasks)]
    figures = {name: np.stack([values[name] for values, _ in ordered]) for name in ordered[0][0]}
    return TaskComparison(tuple(policy.name for policy in policies), figures, [traits for _, traits in ordered])


@dataclass(frozen=True)
class _Evaluation:
    """What all tasks of a comparison have in common."""

    policies: tuple[Policy, ...]
    seed: int
    split: TaskSplit
    groups: int
    device: str


@torch_threads(1)
def _one_task(shared: _Evaluation, index: int, _: Tell) -> tuple[dict[str, Floats], dict[str, object]]:
    """Figures of the policies (M,) on one task, and the properties of the task."""
    policies, groups = shared.policies, shared.groups
    task = draw_task(shared.seed, index, shared.split)
    with_loss = np.tile([compensates(policy) for policy in policies], groups)
    episode = TaskEpisode(task, siblings=len(policies), groups=groups, device=shared.device, compensated=with_loss)
    walk = walk_policies(episode.episode, policies)
    figures = _figures(episode.goal(), walk.weights, len(policies))
    return {name: values.mean(axis=0) for name, values in figures.items()}, dict(task.traits)
