"""``balancer policy train`` and ``balancer policy evaluate``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from balancer.cli import run_command
from balancer.cli.early import check_policy_name
from balancer.errors import InputError
from balancer.files import check_writable_folder
from balancer.options.checks import check_whole
from balancer.options.cluster import ClusterOptions, TogetherOptions
from balancer.options.flags import Flag, read_flags
from balancer.options.run import MAX_SEED

COMMANDS = {
    "train": "train a policy on a distribution of tasks, as the shipped policies were",
    "evaluate": "compare a policy with constants, rules and learned policies on tasks it was not trained on",
}


@dataclass(frozen=True, kw_only=True)
class PolicyTrainConfig(TogetherOptions):
    """Train a sampling policy with PPO on a distribution of synthetic tasks.

    The defaults are those of the shipped policies.
    """

    HEADING: ClassVar[str] = "Policy"

    out: Annotated[Path, Flag("Folder to write the policy to.", metavar="FOLDER")]
    kind: Annotated[
        Literal["ppo", "bandit"],
        "ppo: the reward is the result of the whole training. bandit: it is the result of the next epoch (discount 0).",
    ] = "ppo"
    budget: Annotated[Literal["quick", "standard", "thorough"], "How long to train: 10, 48 or 500 rollouts."] = "standard"
    rollouts: Annotated[int | None, Flag("Rollouts of PPO.", default="the budget's")] = None
    reward: Annotated[Literal["f1", "average_precision", "partial_auc"], "Metric that the policy maximizes."] = "average_precision"
    seed: Annotated[int, "Random seed; the same seed gives the same policy."] = 0
    device: Annotated[Literal["cpu", "cuda"], "Device that the students train on."] = "cpu"
    resume: Annotated[bool, "Continue the training in --out after its last finished rollout."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "rollouts")
        check_whole(self, "seed", least=0, most=MAX_SEED)


@dataclass(frozen=True, kw_only=True)
class PolicyEvaluateConfig(ClusterOptions):
    """Compare a policy with other policies on synthetic tasks.

    On each task all policies train the same students, from the same weights and with the same random numbers.
    A student counts as it was after its best epoch.
    """

    HEADING: ClassVar[str] = "Evaluation"

    policy: Annotated[
        str,
        Flag(
            "Folder of a policy, or a name: auto, ppo, bandit, constant:share=.2,hardness=1, schedule, rule, random, start.",
            metavar="POLICY",
            positional=True,
        ),
    ]
    tasks: Annotated[Literal["heldout", "train"], "Tasks that no policy was trained on, or the training tasks."] = "heldout"
    number: Annotated[int, "Number of tasks."] = 60
    groups: Annotated[int, "Number of kinds of students on each task."] = 2
    seed: Annotated[int, "Random seed of the tasks."] = 0
    reference: Annotated[
        str,
        Flag(
            "Policy that the differences refer to: none, one_to_one, auto (the constant), ppo, bandit, start, schedule, rule, random, "
            "or the name of the evaluated policy.",
            metavar="POLICY",
        ),
    ] = "none"
    device: Annotated[Literal["cpu", "cuda"], "Device that the students train on."] = "cpu"
    json: Annotated[bool, "Print metrics and intervals as JSON."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "number", "groups")


def main(arguments: Sequence[str]) -> int:
    """Run one of the two commands; returns the exit code."""
    actions = {"train": _train, "evaluate": _evaluate}
    summary = "Train or evaluate a sampling policy on a distribution of tasks."
    return run_command("balancer policy", summary, COMMANDS, arguments, lambda name, rest: actions[name](rest))


def _train(arguments: Sequence[str]) -> int:
    config = read_flags(PolicyTrainConfig, "balancer policy train", arguments)
    if config.out.is_file():
        raise InputError(f"--out {str(config.out)!r} is a file; name a folder")
    if not config.resume and config.out.exists() and any(config.out.iterdir()):
        raise InputError(f"--out {str(config.out)!r} is not empty; name another folder, or add --resume to continue the training in it")
    check_writable_folder(config.out, "--out")
    cluster = config.address()
    from rich.console import Console

    from balancer.devices import choose_device
    from balancer.policy_learning.budgets import TASK_BUDGETS
    from balancer.policy_learning.training import train_task_policy
    from balancer.runs.progress import TrainingProgress, describe_students

    console, device = Console(markup=False), choose_device(config.device)
    rollouts = config.rollouts or TASK_BUDGETS[config.budget].rollouts
    try:
        with TrainingProgress(console) as progress, progress.stage(f"policy ({config.kind}) on tasks", rollouts) as advance:
            train_task_policy(
                config.kind,
                config.budget,
                seed=config.seed,
                folder=config.out,
                reward=config.reward,
                rollouts=rollouts,
                device=device,
                resume=config.resume,
                progress=lambda figures: advance(int(figures["rollout"]), describe_students(figures)),
                cluster=cluster,
                workers=config.workers,
            )
    except KeyboardInterrupt:
        print(
            f"stopped; continue with: balancer policy train --resume --out {shlex.quote(str(config.out))}, and the flags given before",
            file=sys.stderr,
        )
        return 130
    console.print(f"policy written to {config.out}; evaluate it with: balancer policy evaluate {shlex.quote(str(config.out))}")
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    config = read_flags(PolicyEvaluateConfig, "balancer policy evaluate", arguments)
    check_policy_name(config.policy, "POLICY")
    cluster = config.address()
    from rich.console import Console

    from balancer.devices import choose_device
    from balancer.policy_learning.evaluation import evaluate_policy, print_evaluation

    console = Console(markup=False, stderr=config.json)
    result = evaluate_policy(
        config.policy,
        config.number,
        seed=config.seed,
        split=config.tasks,
        groups=config.groups,
        reference=config.reference,
        device=choose_device(config.device),
        console=console,
        cluster=cluster,
        workers=config.workers,
    )
    if config.json:
        print(json.dumps(result, indent=2))
    else:
        print_evaluation(result, console)
    return 0
