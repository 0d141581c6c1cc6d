"""Training a sampling policy by Stable-Baselines3's PPO: on one data set, or on the distribution of tasks that the shipped policies come from.

On a data set the policy and its rivals (the good constant, 1:1, no sampling, the starting weights, random actions) afterwards meet students
of seeds never trained on, as siblings; the figures go into ``policy.json``, where ``beats_constant`` says whether PPO earned its keep. On the
task distribution the bundle also says what its observations were like, so that whoever runs it can tell where it is out of its depth, and that the
classes but the first move together: on held-out tasks with more than two, what it did between them cost more than it won (docs/experiments.md).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from safetensors.numpy import save

from balancer.devices import torch_threads
from balancer.envs.problem import PopulationProblem
from balancer.envs.task_env import ROLLOUT_STEPS, TaskVecEnv
from balancer.envs.tasks import MAX_CLASSES, draw_task
from balancer.envs.vec_env import PopulationVecEnv
from balancer.errors import InputError
from balancer.files import write_bytes, write_text
from balancer.policy_learning.budgets import POLICY_BUDGETS as POLICY_BUDGETS
from balancer.policy_learning.budgets import TASK_BUDGETS, TaskBudget
from balancer.policy_learning.budgets import PolicyBudget as PolicyBudget
from balancer.policy_learning.comparison import compare_policies
from balancer.policy_learning.ppo import CHECKPOINT_FILE, Actor, Learning, Progress, learn
from balancer.sampling.bundle import BUNDLES, CONFIG_FILE, WEIGHTS_FILE, BundlePolicy, bundle_layout, load_bundle
from balancer.sampling.constant_policy import FALLBACK, fallback_to_dict
from balancer.sampling.scores import Reward
from balancer.sampling.seeding import integer_seed

Kind = Literal["ppo", "bandit"]
T = TypeVar("T")
TUNING_RATE, TUNING_STD = 5e-4, 0.25
"""Learning rate and exploration of a policy that goes on from another."""


@torch_threads(1)
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
        problem: what the students learn. budget: ``quick``, ``standard``, ``thorough``, or one of one's own. seed: one seed, one bundle, whatever the number of threads.
        folder: where ``policy.safetensors``, ``policy.json``, the checkpoint and TensorBoard's events go. reward: validation figure that
        PPO maximises. rollouts: instead of the budget's. start: policy to go on from, ``auto`` or the folder of a bundle; None: from nothing.
        device: where the students train; the policy itself is too small for anything but a CPU. resume: continue from the checkpoint in
        ``folder``, or return at once where the bundle is there; else start anew. progress: see :func:`policy_learning.learn`.

    Returns:
        ``folder``, for :func:`balancer.sampling.load_policy`.

    Raises:
        InputError: unknown budget or start, or a checkpoint that is torn or of another training.
    """
    plan = _chosen(POLICY_BUDGETS, budget)
    plan = plan if rollouts is None else replace(plan, rollouts=rollouts)
    first = None if start is None else load_bundle(BUNDLES / start if start in ("auto", "bandit") else Path(start))
    told: dict[str, Any] = {
        "budget": asdict(plan) | {"factors": list(plan.factors)},
        "reward": reward,
        "seed": seed,
        "problem": _fingerprint(problem),
    }
    told |= {"start": None if first is None else _digest(first.arrays)}
    if resume and _finished(folder, told):
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

    learning = Learning(told, plan.rollouts, plan.epochs * plan.episodes_per_rollout, seek, reward, seed)
    if first is not None:
        learning = replace(learning, start=first.arrays, learning_rate=TUNING_RATE, initial_std=TUNING_STD)
    actor, history = learn(env, learning, folder=folder, resume=resume, progress=progress)
    figures = compare_policies(problem, BundlePolicy(actor, {}), plan, seed=seed, device=device)
    margin = figures["ppo"][reward] - figures["constant"][reward]
    summary = {
        "told": told,
        "env_steps": plan.env_steps,
        "returns": history,
        "evaluation": figures,
        "beats_constant": bool(margin > 0),
        "margin_over_constant": margin,
    }
    # What goes on from a policy that moves the minority as a whole does so too.
    minority = {"minority": "together"} if first is not None and first.together else {}
    return _write(folder, actor, minority | {"training": summary})


@torch_threads(1)
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
) -> Path:
    """Train a policy on the task distribution (:mod:`balancer.envs.tasks`) and write its bundle; arguments as in :func:`train_policy`.

    ``kind``: ``ppo`` is paid what the whole training reaches; ``bandit``, with the same observations, what the next epoch brings (discount 0).
    """
    plan = _chosen(TASK_BUDGETS, budget)
    plan = plan if rollouts is None else replace(plan, rollouts=rollouts)
    told = {"tasks": "train", "kind": kind, "budget": asdict(plan), "reward": reward, "seed": seed}
    if resume and _finished(folder, told):
        return folder
    tasks = integer_seed(seed, "tasks")
    env = TaskVecEnv(
        lambda number, epochs: draw_task(tasks, number, epochs=epochs),
        slots=plan.slots,
        siblings=plan.siblings,
        reward=reward,
        pay="final" if kind == "ppo" else "step",
        device=device,
    )

    def seek(rollout: int) -> None:
        env.next_rollout = rollout

    discount = 1.0 if kind == "ppo" else 0.0
    learning = Learning(told, plan.rollouts, ROLLOUT_STEPS, seek, reward, seed, discount, plan.learning_rate)
    actor, history = learn(env, learning, folder=folder, resume=resume, progress=progress)
    ranges = {name: {"low": low.tolist(), "high": high.tolist()} for name, (low, high) in env.support.items()}
    support = ranges | {"num_classes": [2, MAX_CLASSES]}
    summary = {"told": told, "env_steps": plan.rollouts * ROLLOUT_STEPS * env.num_envs, "returns": history}
    return _write(folder, actor, {"support": support, "fallback": fallback_to_dict(FALLBACK), "minority": "together", "training": summary})


def _chosen(budgets: dict[str, T], budget: str | T) -> T:
    if not isinstance(budget, str):
        return budget
    if budget not in budgets:
        raise InputError(f"budget {budget!r} is not known; choose one of {', '.join(budgets)}")
    return budgets[budget]


def _finished(folder: Path, told: dict[str, Any]) -> bool:
    """Whether the bundle is there; InputError where it is of another training."""
    if not (folder / CONFIG_FILE).is_file():
        return False
    if load_bundle(folder).summary.get("told") != told:
        raise InputError(f"the policy in {str(folder)!r} is of another training; choose another folder, or train without resuming")
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
