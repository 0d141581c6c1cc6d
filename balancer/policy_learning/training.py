"""Train a sampling policy by Stable-Baselines3's PPO, on one data set or on the distribution of tasks.

On a data set, the policy and others (the constant of the package, 1:1, no sampling, the starting weights,
random actions) are then compared on students with new seeds, as siblings, by the reward rows. Where PPO is
not better than the constant by more than two standard errors, the bundle keeps the constant, so that it is
not behind ``auto``. The figures go into ``policy.json``, with a note that says what was kept and why. On the
task distribution, from which the policies of the package come, the bundle also holds the range of its
observations, so that a policy can detect unusual ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from safetensors.numpy import save

from balancer.cluster.connection import connected
from balancer.devices import random_state_kept, torch_threads
from balancer.envs.problem import PopulationProblem
from balancer.envs.task_env import TaskVecEnv
from balancer.envs.task_slots import ROLLOUT_STEPS, LocalSlots, SlotPlan, SlotRunner
from balancer.envs.tasks import MAX_CLASSES, Task, draw_task
from balancer.envs.vec_env import PopulationVecEnv
from balancer.errors import InputError
from balancer.files import write_bytes, write_text
from balancer.policy_learning.budgets import POLICY_BUDGETS as POLICY_BUDGETS
from balancer.policy_learning.budgets import TASK_BUDGETS, TaskBudget
from balancer.policy_learning.budgets import PolicyBudget as PolicyBudget
from balancer.policy_learning.cluster_slots import ClusterSlots
from balancer.policy_learning.comparison import compare_policies
from balancer.policy_learning.ppo import CHECKPOINT_FILE, Actor, Learning, Progress, learn
from balancer.sampling.bundle import BUNDLES, CONFIG_FILE, WEIGHTS_FILE, BundlePolicy, bundle_layout, load_bundle
from balancer.sampling.policies import SHIPPED
from balancer.sampling.scores import Reward
from balancer.sampling.seeding import integer_seed

Kind = Literal["ppo", "bandit"]
T = TypeVar("T")
FIGURES: dict[Reward, str] = {"f1": "F1", "average_precision": "AP", "partial_auc": "partial AUC"}
MARGIN = 2.0
"""PPO is kept where it is better than the constant by more than this number of standard errors."""
TUNING_RATE, TUNING_STD = 5e-4, 0.25
"""Learning rate and exploration of a policy that starts from another."""


@torch_threads(1)
@random_state_kept()
def train_policy(
    problem: PopulationProblem,
    budget: str | PolicyBudget = "quick",
    *,
    seed: int,
    folder: Path,
    reward: Reward = "f1",
    rollouts: int | None = None,
    start: str | Path | None = None,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train a policy on one data set and write its bundle.

    Args:
        problem: Data of the students.
        budget: ``quick``, ``standard``, ``thorough``, or a budget.
        seed: Random seed; the same seed gives the same bundle, whatever the number of threads.
        folder: Folder of ``policy.safetensors``, ``policy.json``, the checkpoint and TensorBoard's events.
        reward: Validation figure that PPO maximises.
        rollouts: Number of rollouts; None: that of the budget.
        start: Policy to start from, ``ppo``, ``bandit`` or the folder of a bundle; None: a new policy. See
            :func:`shipped_start`.
        device: Where the students train; the policy itself always trains on the CPU.
        resume: Continue from the checkpoint in ``folder``, or return at once where the bundle exists.
        progress: See :func:`balancer.policy_learning.ppo.learn`.

    Returns:
        ``folder``, for :func:`balancer.sampling.load_policy`.

    Raises:
        InputError: The budget or the start is not known, the start was trained in version 0 of the
            environment, or a checkpoint is corrupt or belongs to another training.
    """
    plan = _chosen(POLICY_BUDGETS, budget)
    plan = plan if rollouts is None else replace(plan, rollouts=rollouts)
    base = None if start is None else _start(start)
    settings: dict[str, Any] = {
        "budget": asdict(plan) | {"factors": list(plan.factors)},
        "reward": reward,
        "seed": seed,
        "problem": _fingerprint(problem),
    }
    settings |= {"start": None if base is None else _digest(base.arrays)}
    if resume and _finished(folder, settings):
        return folder
    env = PopulationVecEnv(
        problem,
        plan.num_students,
        siblings=plan.siblings,
        epochs=plan.epochs,
        steps_per_epoch=plan.steps_per_epoch,
        batch_size=plan.batch_size,
        reward=reward,
        relative=True,
        budgets=plan.factors,
        seed=integer_seed(seed, "population"),
        device=device,
    )

    def seek(rollout: int) -> None:
        env.next_episode = rollout * plan.episodes_per_rollout

    learning = Learning(settings, plan.rollouts, plan.epochs * plan.episodes_per_rollout, seek, reward, seed)
    if base is not None:
        learning = replace(learning, start=base.arrays, learning_rate=TUNING_RATE, initial_std=TUNING_STD)
    actor, returns = learn(env, learning, folder=folder, resume=resume, progress=progress)
    # A policy that starts from one which changes the minority's shares together does so too.
    together = base is not None and base.together
    compared = compare_policies(problem, BundlePolicy(actor, {}, together=together), plan, seed=seed, device=device)
    figures = compared.means()
    margin, error = compared.margin("ppo", "constant", reward)
    kept = "policy" if margin > MARGIN * error else "constant"
    summary = {
        "told": settings,
        "env_steps": plan.env_steps,
        "returns": returns,
        "evaluation": figures,
        "beats_constant": bool(margin > 0),
        "margin_over_constant": margin,
        "margin_error": error,
    }
    trained = "trained anew" if start is None else f"fine-tuned from the policy {Path(start).name}"
    students = len(compared.figures[reward])
    note = (
        f"kept {'PPO' if kept == 'policy' else 'auto, the constant'}: on {students} new students, PPO ({trained}) has {FIGURES[reward]} "
        f"{figures['ppo'][reward]:.3f} on the reward rows, the constant {figures['constant'][reward]:.3f} (difference {margin:+.4f}, "
        f"standard error {error:.4f}; PPO is kept if its difference is larger than twice that)"
    )
    minority = {"minority": "together"} if together else {}
    return _write(folder, actor, minority | {"kept": kept, "notes": [note], "training": summary})


def shipped_start() -> str | None:
    """The policy of the package that a training on one data set can start from, or None.

    That is ``ppo``, unless it is not installed or was trained in version 0 of the environment.
    """
    return "ppo" if (BUNDLES / "ppo").is_dir() and load_bundle(BUNDLES / "ppo").version == 1 else None


def _start(start: str | Path) -> BundlePolicy:
    """The policy to start from.

    Raises:
        InputError: There is none, or it was trained in version 0 of the environment.
    """
    base = load_bundle(BUNDLES / start if start in SHIPPED else Path(start))
    if base.version != 1:
        raise InputError(
            f"policy {str(start)!r} was trained in version 0 of the environment and can't be trained further in version 1; "
            "name another one to start from, or none"
        )
    return base


@torch_threads(1)
@random_state_kept()
def train_task_policy(
    kind: Kind = "ppo",
    budget: str | TaskBudget = "quick",
    *,
    seed: int,
    folder: Path,
    reward: Reward = "average_precision",
    rollouts: int | None = None,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
    cluster: str | None = None,
    workers: int | None = None,
) -> Path:
    """Train a policy on the task distribution (:mod:`balancer.envs.tasks`) and write its bundle.

    Args:
        kind: ``ppo`` is rewarded for the result of the whole training; ``bandit``, with the same
            observations, for the gain of the next epoch (discount 0).
        budget: As in :func:`train_policy`.
        seed: As in :func:`train_policy`.
        folder: As in :func:`train_policy`.
        reward: As in :func:`train_policy`.
        rollouts: As in :func:`train_policy`.
        device: As in :func:`train_policy`.
        resume: As in :func:`train_policy`.
        progress: As in :func:`train_policy`.
        cluster: Address of a Ray cluster whose processes train the students; the policy learns in this one.
        workers: Most processes of the cluster.

    Returns:
        ``folder``.

    Raises:
        InputError: As :func:`train_policy`.
    """
    plan = _chosen(TASK_BUDGETS, budget)
    plan = plan if rollouts is None else replace(plan, rollouts=rollouts)
    settings = {"tasks": "train", "kind": kind, "budget": asdict(plan), "reward": reward, "seed": seed}
    if resume and _finished(folder, settings):
        return folder
    with _slot_runner(cluster, workers) as runner:
        env = TaskVecEnv(
            _DrawnTasks(integer_seed(seed, "tasks")),
            slots=plan.slots,
            siblings=plan.siblings,
            reward=reward,
            pay="final" if kind == "ppo" else "step",
            device=device,
            runner=runner,
        )

        def seek(rollout: int) -> None:
            env.next_rollout = rollout

        discount = 1.0 if kind == "ppo" else 0.0
        learning = Learning(settings, plan.rollouts, ROLLOUT_STEPS, seek, reward, seed, discount, plan.learning_rate)
        actor, returns = learn(env, learning, folder=folder, resume=resume, progress=progress)
    ranges = {name: {"low": low.tolist(), "high": high.tolist()} for name, (low, high) in env.support.items()}
    support = ranges | {"num_classes": [2, MAX_CLASSES]}
    summary = {"told": settings, "env_steps": plan.rollouts * ROLLOUT_STEPS * env.num_envs, "returns": returns}
    return _write(folder, actor, {"support": support, "training": summary})


@dataclass(frozen=True)
class _DrawnTasks:
    """Draws the training tasks of a seed, also in another process."""

    seed: int

    def __call__(self, number: int, epochs: int) -> Task:
        return draw_task(self.seed, number, epochs=epochs)


@contextmanager
def _slot_runner(cluster: str | None, workers: int | None) -> Iterator[Callable[[SlotPlan], SlotRunner]]:
    """What runs the slots of the environment: this process, or those of a cluster until the block ends."""
    if cluster is None:
        yield LocalSlots
        return
    made: list[ClusterSlots] = []

    def on_cluster(plan: SlotPlan) -> ClusterSlots:
        made.append(ClusterSlots(plan, workers=workers))
        return made[-1]

    with connected(cluster, workers):
        try:
            yield on_cluster
        finally:
            for slots in made:
                slots.close()


def _chosen(budgets: dict[str, T], budget: str | T) -> T:
    if not isinstance(budget, str):
        return budget
    if budget not in budgets:
        raise InputError(f"budget {budget!r} is not known; choose one of {', '.join(budgets)}")
    return budgets[budget]


def _finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the bundle exists.

    Raises:
        InputError: It belongs to another training.
    """
    if not (folder / CONFIG_FILE).is_file():
        return False
    if load_bundle(folder).summary.get("told") != settings:
        raise InputError(f"the policy in {str(folder)!r} belongs to another training; choose another folder, or train without resuming")
    return True


def _write(folder: Path, actor: Actor, content: dict[str, Any]) -> Path:
    write_bytes(folder / WEIGHTS_FILE, save(actor))
    write_text(folder / CONFIG_FILE, json.dumps(bundle_layout() | content, indent=2) + "\n")
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return folder


def _fingerprint(problem: PopulationProblem) -> str:
    return _digest(
        {
            str(index): array
            for index, array in enumerate(
                (problem.x_train, problem.y_train, problem.x_val, problem.y_val, problem.train_weight, problem.val_weight)
            )
        }
    )


def _digest(arrays: Any) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()[:16]
