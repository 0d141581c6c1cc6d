"""Training a sampling policy: Stable-Baselines3's PPO on a population of students, resumable to the same bits.

Every rollout is whole episodes, so between two rollouts the environment is a counter. All randomness is seeded anew from (seed, rollout)
where a rollout starts, and one checkpoint file, written there, holds the weights, Adam's moments and the counters: a run killed anywhere
goes back to the last rollout's start and walks the same road.

Afterwards the policy and its rivals (the good constant, 1:1, no sampling, the starting weights, random actions) meet students of seeds
never trained on, as siblings; the figures go into ``policy.json``, where ``beats_constant`` says whether PPO earned its keep.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed

from balancer.envs.policy_network import ClassWeightsPolicy
from balancer.envs.problem import PopulationProblem
from balancer.envs.vec_env import PopulationVecEnv
from balancer.errors import InputError
from balancer.files import write_bytes, write_text
from balancer.sampling.policies import CONFIG_FILE, WEIGHTS_FILE, BundlePolicy, bundle_layout, load_bundle
from balancer.sampling.scores import Reward
from balancer.sampling.seeding import integer_seed
from balancer.sampling.weights import Floats
from balancer.training.policy_budget import POLICY_BUDGETS as POLICY_BUDGETS
from balancer.training.policy_budget import PolicyBudget as PolicyBudget
from balancer.training.policy_comparison import compare_policies

CHECKPOINT_FILE = "checkpoint.safetensors"
FIRST_SCALE = 0.02
"""Spread of the final F1 among siblings that the first rollout assumes; later ones use what they saw."""
LEARNING_RATE = 2e-3


Progress = Callable[[dict[str, Any]], None]


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch on a single thread: the products are small, and on a busy machine two threads that wait for one another took 20 times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()
def train_policy(
    problem: PopulationProblem,
    budget: str | PolicyBudget = "quick",
    *,
    seed: int,
    folder: Path,
    reward: Reward = "f1",
    rollouts: int | None = None,
    device: str = "cpu",
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train a policy and write its bundle.

    Args:
        problem: what the students learn. budget: ``quick``, ``standard``, ``thorough``, or one of one's own. seed: one seed, one bundle, whatever the number of threads.
        folder: where ``policy.safetensors``, ``policy.json``, the checkpoint and TensorBoard's events go. reward: validation figure that
        PPO maximises. rollouts: instead of the budget's. device: where the students train; the policy itself is too small for anything
        but a CPU. resume: continue from the checkpoint in ``folder``, or return at once where the bundle is there; else start anew.
        progress: called after every rollout with ``rollout`` (from 1), ``rollouts``, ``env_steps``, ``return`` (mean final reward
        figure), ``f1``,
            ``average_precision``, ``minority_share``, ``hardness`` (means of the final weights).

    Returns:
        ``folder``, for :func:`balancer.sampling.load_policy`.

    Raises:
        InputError: unknown budget, or a checkpoint that is torn or of another training.
    """
    plan = _plan(budget, rollouts)
    told = {"budget": asdict(plan) | {"factors": list(plan.factors)}, "reward": reward, "seed": seed, "problem": _fingerprint(problem)}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / CHECKPOINT_FILE
    if resume and (folder / CONFIG_FILE).is_file():
        if load_bundle(folder).summary.get("told") != told:
            raise InputError(f"the policy in {str(folder)!r} is of another training; choose another folder, or train without resuming")
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
    env.reward_scale = FIRST_SCALE
    set_random_seed(integer_seed(seed, "policy weights"))
    rollout_steps = plan.epochs * plan.episodes_per_rollout
    model = PPO(
        ClassWeightsPolicy,
        env,
        learning_rate=lambda left: LEARNING_RATE * max(left, 0.1),
        n_steps=rollout_steps,
        batch_size=rollout_steps * plan.num_students // 4,
        n_epochs=10,
        gamma=1.0,
        gae_lambda=1.0,
        target_kl=0.05,
        device="cpu",
    )
    model.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))
    history: list[float] = []
    if resume and checkpoint.is_file():
        history = _restore(checkpoint, model, env, told, plan)
    remaining = plan.env_steps - model.num_timesteps
    if remaining > 0:
        model.learn(remaining, _Rollouts(env, plan, seed, checkpoint, told, history, progress), reset_num_timesteps=False)
    model.logger.close()
    actor = {name: value.detach().numpy().copy() for name, value in model.policy.actor.state_dict().items()}  # type: ignore[union-attr]
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
    write_bytes(folder / WEIGHTS_FILE, save(actor))
    write_text(folder / CONFIG_FILE, json.dumps(bundle_layout() | {"training": summary}, indent=2) + "\n")
    checkpoint.unlink(missing_ok=True)
    return folder


def _plan(budget: str | PolicyBudget, rollouts: int | None) -> PolicyBudget:
    if isinstance(budget, str):
        if budget not in POLICY_BUDGETS:
            raise InputError(f"budget {budget!r} is not known; choose one of {', '.join(POLICY_BUDGETS)}")
        budget = POLICY_BUDGETS[budget]
    return budget if rollouts is None else replace(budget, rollouts=rollouts)


def _fingerprint(problem: PopulationProblem) -> str:
    digest = hashlib.sha256()
    for array in (problem.x_train, problem.y_train, problem.x_val, problem.y_val, problem.train_weight, problem.val_weight):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


class _Rollouts(BaseCallback):
    """Where a rollout starts: checkpoint, then fresh randomness. Where it ends: the scale of the reward, figures, progress."""

    def __init__(
        self,
        env: PopulationVecEnv,
        plan: PolicyBudget,
        seed: int,
        checkpoint: Path,
        told: dict[str, Any],
        history: list[float],
        progress: Progress | None,
    ) -> None:
        super().__init__()
        self.env, self.plan, self.seed, self.checkpoint, self.told, self.history, self.progress = (
            env, plan, seed, checkpoint, told, history, progress
        )  # fmt: skip
        self._finals: list[dict[str, Floats]] = []
        self._weights: tuple[float, float] = (0.0, 0.0)

    def _on_rollout_start(self) -> None:
        rollout = len(self.history)
        if rollout:
            _save(self.checkpoint, self.model, self.env, self.told, self.history)  # type: ignore[arg-type]
        set_random_seed(integer_seed(self.seed, "rollout", rollout))
        self._finals = []

    def _on_step(self) -> bool:
        if self.locals["dones"][0]:
            self._finals.append(self.env.final)
            self._weights = self.env.final_weights
        return True

    def _on_rollout_end(self) -> None:
        figures = {name: float(np.mean([final[name] for final in self._finals])) for name in self._finals[0]}
        self.env.reward_scale = max(0.5 * self.env.reward_scale + 0.5 * self.env.spread(), 1e-3)
        self.history.append(figures[self.env.reward])
        share, hardness = self._weights
        for name, value in (figures | {"minority_share": share, "hardness": hardness, "reward_scale": self.env.reward_scale}).items():
            self.logger.record(f"population/{name}", value)
        if self.progress is not None:
            self.progress(
                {"rollout": len(self.history), "rollouts": self.plan.rollouts, "env_steps": self.num_timesteps, "return": self.history[-1]}
                | {"f1": figures["f1"], "average_precision": figures["average_precision"], "minority_share": share, "hardness": hardness}
            )


def _save(file: Path, model: PPO, env: PopulationVecEnv, told: dict[str, Any], history: list[float]) -> None:
    arrays = {f"policy.{name}": value.detach().numpy().copy() for name, value in model.policy.state_dict().items()}
    for index, moments in model.policy.optimizer.state_dict()["state"].items():
        arrays |= {f"adam.{index}.{name}": value.numpy().copy() for name, value in moments.items()}
    counters = {"told": told, "history": history, "env_steps": model.num_timesteps, "reward_scale": env.reward_scale}
    write_bytes(file, save(arrays, metadata={"counters": json.dumps(counters)}))


def _restore(file: Path, model: PPO, env: PopulationVecEnv, told: dict[str, Any], plan: PolicyBudget) -> list[float]:
    """Take back what :func:`_save` wrote; the returns so far."""
    try:
        with safe_open(file, framework="numpy") as stored:
            counters = json.loads(stored.metadata()["counters"])
            arrays = {name: torch.from_numpy(stored.get_tensor(name)) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"checkpoint {str(file)!r} can't be read ({error}); delete it to start the policy's training anew") from error
    if counters["told"] != told:
        raise InputError(f"checkpoint {str(file)!r} is of another training (data, budget, reward or seed differ); choose another folder")
    model.policy.load_state_dict({name[7:]: value for name, value in arrays.items() if name.startswith("policy.")})
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in arrays.items():
        if name.startswith("adam."):
            _, index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
    optimizer = model.policy.optimizer
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    model.num_timesteps = int(counters["env_steps"])
    env.reward_scale = float(counters["reward_scale"])
    history: list[float] = counters["history"]
    env.next_episode = len(history) * plan.episodes_per_rollout
    return history
