"""`balancer policy train` and `balancer policy evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from balancer.errors import InputError
from balancer.options.flags import parse

SUBCOMMANDS = {
    "train": "learn a policy on the distribution of tasks, as the shipped ones were",
    "evaluate": "a policy beside constants, rules and learned ones on tasks it was not trained on",
}


@dataclass(frozen=True)
class PolicyTrainConfig:
    """Train a sampling policy by PPO on a distribution of synthetic tasks. The defaults are those of the shipped policies."""

    out: Path
    """Folder to write the policy into."""
    kind: Literal["ppo", "bandit"] = "ppo"
    """Paid by what the whole training reaches (ppo), or by what the next epoch brings (bandit, discount 0)."""
    budget: Literal["quick", "standard", "thorough"] = "standard"
    """How long: 10, 48 or 500 rollouts."""
    rollouts: int | None = None
    """PPO rollouts, instead of the budget's."""
    reward: Literal["f1", "average_precision", "partial_auc"] = "average_precision"
    """Figure on each task's goal that is paid."""
    seed: int = 0
    """One seed, one policy."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the students train."""
    resume: bool = False
    """Continue in --out from the last finished rollout."""

    def __post_init__(self) -> None:
        if self.rollouts is not None and self.rollouts < 1:
            raise InputError(f"--rollouts is {self.rollouts}: give a whole number from 1 up")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"--seed is {self.seed}: give a whole number from 0 to 2147483647")


@dataclass(frozen=True)
class PolicyEvaluateConfig:
    """Set a policy beside its rivals on synthetic tasks: on each all train the same students, from the same weights, with the same random numbers."""

    policy: str = field(metadata={"positional": True, "metavar": "POLICY"})
    """Folder of a policy, or a name: auto, bandit, constant:share=.2,hardness=1, schedule, rule, random, start."""
    tasks: Literal["heldout", "train"] = "heldout"
    """Which tasks: those that no policy was trained on, or those of training."""
    number: int = 60
    """How many tasks."""
    groups: int = 2
    """Kinds of students on each task."""
    seed: int = 0
    """Of the tasks."""
    reference: str = "none"
    """Policy that differences are taken to: none, one_to_one, start, schedule, rule, random, good_constant, bandit, auto or the policy's own name."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the students train."""
    json: bool = False
    """Print figures and intervals as JSON."""

    def __post_init__(self) -> None:
        for name in ("number", "groups"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} is {getattr(self, name)}: give a whole number from 1 up")


def main(arguments: Sequence[str]) -> int:
    """Run a subcommand."""
    given = list(arguments)
    if not given or given[0] in ("-h", "--help"):
        print("usage: balancer policy COMMAND [--flags]\n\n" + "\n".join(f"  {name:<9} {text}" for name, text in SUBCOMMANDS.items()))
        return 0 if given else 2
    if given[0] == "train":
        return _train(given[1:])
    if given[0] == "evaluate":
        return _evaluate(given[1:])
    raise InputError(f"unknown command policy {given[0]!r}: one of {', '.join(SUBCOMMANDS)}")


def _train(arguments: list[str]) -> int:
    config = PolicyTrainConfig(**parse(PolicyTrainConfig, "balancer policy train", PolicyTrainConfig.__doc__ or "", arguments))
    if config.out.is_file():
        raise InputError(f"--out {str(config.out)!r} is a file; name a folder")
    if not config.resume and config.out.exists() and any(config.out.iterdir()):
        raise InputError(f"--out {str(config.out)!r} is not empty; choose another folder, or add --resume to continue the training in it")
    from rich.console import Console

    from balancer.devices import choose_device
    from balancer.policy_learning.budgets import TASK_BUDGETS
    from balancer.policy_learning.training import train_task_policy
    from balancer.runs.progress import TrainingProgress

    console, device = Console(), choose_device(config.device)
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
                progress=lambda figures: advance(int(figures["rollout"]), _told(figures)),
            )
    except KeyboardInterrupt:
        print(f"stopped; continue with: balancer policy train --resume --out {config.out}, and the flags given before", file=sys.stderr)
        return 130
    console.print(f"policy written to {config.out}; see what it is worth: balancer policy evaluate {config.out}")
    return 0


def _told(figures: dict[str, Any]) -> str:
    return (
        f"AP {figures['average_precision']:.3f}  F1 {figures['f1']:.3f}"
        f"  share {100 * figures['minority_share']:.3g} %  hardness {figures['hardness']:.2f}"
    )


def _evaluate(arguments: list[str]) -> int:
    config = PolicyEvaluateConfig(**parse(PolicyEvaluateConfig, "balancer policy evaluate", PolicyEvaluateConfig.__doc__ or "", arguments))
    from rich.console import Console

    from balancer.devices import choose_device
    from balancer.policy_learning.evaluation import evaluate_policy, print_evaluation

    console = Console(stderr=config.json)
    result = evaluate_policy(
        config.policy,
        config.number,
        seed=config.seed,
        split=config.tasks,
        groups=config.groups,
        reference=config.reference,
        device=choose_device(config.device),
        console=console,
    )
    if config.json:
        print(json.dumps(result, indent=2))
    else:
        print_evaluation(result, console)
    return 0
