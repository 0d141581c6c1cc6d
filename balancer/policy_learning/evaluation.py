"""Evaluate a policy and others on tasks it was not trained on.

The command is ``balancer policy evaluate``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from balancer.data.spec import nearest
from balancer.devices import random_state_kept, torch_threads
from balancer.envs.tasks import MAX_CLASSES, TaskSplit
from balancer.errors import InputError
from balancer.names import counted
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
    cluster: str | None = None,
    workers: int | None = None,
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
        cluster: Address of a Ray cluster that does the tasks; None: this process.
        workers: Most tasks at once.

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
    with TrainingProgress(console or Console(markup=False, stderr=True)) as progress, progress.stage("tasks", number) as advance:
        compared = compare_on_tasks(
            policies,
            number,
            seed=seed,
            split=split,
            groups=groups,
            device=device,
            progress=lambda done: advance(done, ""),
            cluster=cluster,
            workers=workers,
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
    """Print figures, differences with intervals, and differences by part of the distribution.

    On a narrow terminal the first table leaves out its last columns, and the second one is divided.
    """
    tasks, reference = result["tasks"], result["reference"]
    ranked = sorted(result["policies"].items(), key=lambda item: -item[1]["average_precision"])
    title = (
        f"{counted(tasks['number'], tasks['split'] + ' task')}, {counted(tasks['groups'], 'kind')} of students each; "
        f"differences to {reference}"
    )
    for number in range(len(_COLUMNS), 1, -1):
        table = _figures(ranked, reference, title, number)
        if _width(table, console) <= console.width:
            break
    console.print(table)
    names = [name for name, _ in ranked if name != reference]
    title = "mean difference in AP by part of the distribution (number of tasks)"
    while names:
        fitting = len(names)
        while fitting > 1 and _width(_parts(result["by_kind"], names[:fitting], title), console) > console.width:
            fitting -= 1
        console.print(_parts(result["by_kind"], names[:fitting], title))
        names, title = names[fitting:], ""


_COLUMNS = ("AP", "difference in AP\n[95 %]", "tasks\nahead", "F1,\nbest", "\npAUC", "share,\nend", "hard-\nness")
LONGEST_NAME = 16
"""Longer names, which can only be those of folders, are cut."""


def _figures(ranked: list[tuple[str, dict[str, Any]]], reference: str, title: str, number: int) -> Table:
    """A row per policy, with the first ``number`` of :data:`_COLUMNS`."""
    table = _table(title, "policy")
    for head in _COLUMNS[:number]:
        table.add_column(head, justify="right", no_wrap=True)
    for name, figures in ranked:
        against = figures["average_precision_against_reference"]
        interval = f"{against['difference']:+.3f} [{against['low']:+.3f}, {against['high']:+.3f}]"
        cells = [
            f"{figures['average_precision']:.3f}",
            "reference" if name == reference else interval,
            "" if name == reference else f"{100 * against['ahead']:.0f} %",
            f"{figures['f1']:.3f}",
            f"{figures['partial_auc']:.3f}",
            f"{figures['minority_share']:.3f}",
            f"{figures['hardness']:.2f}",
        ]
        table.add_row(Text(name), *map(Text, cells[:number]))
    return table


def _parts(by_kind: dict[str, dict[str, float]], names: list[str], title: str) -> Table:
    """A row per part of the distribution, a column per policy."""
    table = _table(title, "part")
    for name in names:
        table.add_column(Text(name), justify="right", no_wrap=True, overflow="ellipsis", max_width=LONGEST_NAME)
    for part, differences in by_kind.items():
        table.add_row(Text(part), *(f"{differences[name]:+.3f}" for name in names))
    return table


def _table(title: str, first: str) -> Table:
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column(first, no_wrap=True, overflow="ellipsis", max_width=LONGEST_NAME if first == "policy" else None)
    return table


def _width(table: Table, console: Console) -> int:
    """Columns of the terminal that a table needs so that nothing is cut."""
    return console.measure(table, options=console.options.update(max_width=1000)).maximum
