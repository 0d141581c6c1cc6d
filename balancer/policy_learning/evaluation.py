"""Evaluate a policy and others on tasks it was not trained on.

The command is ``balancer policy evaluate``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from balancer.data.spec import nearest
from balancer.devices import random_state_kept, torch_threads
from balancer.envs.tasks import MAX_CLASSES, TaskSplit
from balancer.errors import InputError
from balancer.options.policy import check_policy
from balancer.policy_learning.comparison import TaskComparison, compare_on_tasks
from balancer.runs.progress import TrainingProgress
from balancer.sampling.bundle import BUNDLES, AutoPolicy, load_bundle
from balancer.sampling.constant_policy import ConstantPolicy, DefaultPolicy
from balancer.sampling.policies import SHIPPED, Policy, RandomPolicy, RulePolicy, SchedulePolicy, StartPolicy, load_policy

FIGURES = ("average_precision", "f1", "partial_auc")


@torch_threads(1)
@random_state_kept()
def evaluate_policy(
    policy: str,
    number: int,
    *,
    seed: int = 0,
    split: TaskSplit = "heldout",
    groups: int = 2,
    reference: str = "none",
    device: str = "cpu",
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate a policy and others on tasks.

    Args:
        policy: Name or folder of the policy.
        number: Number of tasks.
        seed: Random seed of the tasks.
        split: ``heldout`` or ``train``.
        groups: Kinds of students on each task.
        reference: Policy with which the others are compared.
        device: Where the students train.
        console: Where progress is printed; None: stderr.

    Returns:
        A dict. ``policies`` has for each name the mean of each figure, the final minority share and hardness,
        and for each figure the ``difference`` to the reference with ``low`` and ``high`` of its 95 %
        bootstrap interval over tasks, and the fraction of tasks on which the policy is ``ahead``. ``by_kind``
        has the mean difference in average precision for parts of the distribution. The others are ``tasks``,
        ``reference`` and ``seed``.

    Raises:
        InputError: The policy or the reference is not known.
    """
    policies = _compared_policies(policy)
    if reference not in {each.name for each in policies}:
        raise InputError(f"--reference {reference!r} is not among the policies; {nearest(reference, [each.name for each in policies])}")
    with TrainingProgress(console or Console(stderr=True)) as progress, progress.stage("tasks", number) as advance:
        compared = compare_on_tasks(
            policies, number, seed=seed, split=split, groups=groups, device=device, progress=lambda done: advance(done, "")
        )
    figures: dict[str, dict[str, Any]] = {
        name: {figure: float(values[:, i].mean()) for figure, values in compared.figures.items()}
        for i, name in enumerate(compared.policies)
    }
    for figure in FIGURES:
        at = compared.policies.index(reference)
        for i, (name, (difference, low, high)) in enumerate(compared.against(reference, figure, seed).items()):
            ahead = float((compared.figures[figure][:, i] > compared.figures[figure][:, at]).mean())
            figures[name][f"{figure}_against_reference"] = {"difference": difference, "low": low, "high": high, "ahead": ahead}
    return {
        "tasks": {"split": split, "number": number, "groups": groups},
        "seed": seed,
        "reference": reference,
        "policies": figures,
        "by_kind": _by_kind(compared, reference),
    }


def _compared_policies(text: str) -> list[Policy]:
    check_policy(text, "POLICY")
    evaluated = load_policy(text, num_classes=MAX_CLASSES) if not Path(text).is_dir() else load_bundle(Path(text), name=Path(text).name)
    others: list[Policy] = [
        ConstantPolicy(None, 0.0, name="none"),
        ConstantPolicy(0.5, 0.0, name="one_to_one"),
        DefaultPolicy("auto"),
        StartPolicy(),
        SchedulePolicy(),
        RulePolicy(),
        RandomPolicy(),
    ]
    others += [AutoPolicy(name) for name in SHIPPED if (BUNDLES / name).is_dir()]
    return [evaluated, *(other for other in others if other.name != evaluated.name)]


def _by_kind(compared: TaskComparison, reference: str) -> dict[str, dict[str, float]]:
    values = compared.figures["average_precision"]
    differences = values - values[:, [compared.policies.index(reference)]]
    kind = np.array([f"{traits['kind']}, {traits['net']}" for traits in compared.traits])
    classes = np.array(["two classes" if traits["classes"] == 2 else "more classes" for traits in compared.traits])
    found = {}
    for label in (kind, classes):
        for name in sorted(set(label.tolist())):
            chosen = differences[label == name]
            found[f"{name} ({len(chosen)})"] = {policy: float(chosen[:, i].mean()) for i, policy in enumerate(compared.policies)}
    return found


def print_evaluation(result: dict[str, Any], console: Console) -> None:
    """Print figures, differences with intervals, and differences by part of the distribution."""
    tasks = result["tasks"]
    table = Table(
        title=f"{tasks['number']} {tasks['split']} tasks, {tasks['groups']} kinds of students each; differences to {result['reference']}"
    )
    table.add_column("policy")
    for title in ("AP", "difference in AP [95 %]", "tasks ahead", "F1, best", "pAUC", "share, end", "hardness, end"):
        table.add_column(title, justify="right")
    ranked = sorted(result["policies"].items(), key=lambda item: -item[1]["average_precision"])
    for name, figures in ranked:
        against = figures["average_precision_against_reference"]
        interval = f"{against['difference']:+.3f} [{against['low']:+.3f}, {against['high']:+.3f}]"
        table.add_row(
            name,
            f"{figures['average_precision']:.3f}",
            "reference" if name == result["reference"] else interval,
            "" if name == result["reference"] else f"{100 * against['ahead']:.0f} %",
            f"{figures['f1']:.3f}",
            f"{figures['partial_auc']:.3f}",
            f"{figures['minority_share']:.3f}",
            f"{figures['hardness']:.2f}",
        )
    console.print(table)
    parts = Table(title="mean difference in AP by part of the distribution (number of tasks)")
    parts.add_column("part")
    names = [name for name, _ in ranked if name != result["reference"]]
    for name in names:
        parts.add_column(name, justify="right")
    for part, differences in result["by_kind"].items():
        parts.add_row(part, *(f"{differences[name]:+.3f}" for name in names))
    console.print(parts)
