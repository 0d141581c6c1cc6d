"""PPO on an environment whose rollouts are whole episodes; it can be resumed exactly at every rollout.

Between two rollouts such an environment has no state except a counter. Where a rollout starts, all randomness
is seeded again from (seed, rollout), and one checkpoint file with the weights, Adam's moments and the
counters is written. A training that is interrupted continues from the start of the last rollout and gives the
same result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed

from balancer.envs.vec_env import OneVecEnv
from balancer.errors import CorruptFileError, InputError
from balancer.files import write_bytes
from balancer.models.optimizer_state import load_moments, moments_to_arrays
from balancer.policy_learning.network import ClassWeightsPolicy
from balancer.runs.run_folder import make_folder
from balancer.sampling.scores import Reward
from balancer.sampling.seeding import integer_seed

CHECKPOINT_FILE = "checkpoint.safetensors"
FIRST_SCALE = 0.02
"""Spread of the final figure among siblings that is assumed in the first rollout; later it is measured."""

Progress = Callable[[dict[str, Any]], None]
Actor = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Learning:
    """How PPO trains."""

    settings: dict[str, Any]
    """Settings of the training, with which a checkpoint must agree."""
    rollouts: int
    """Number of rollouts."""
    rollout_steps: int
    """Steps of each student in a rollout, which are whole episodes."""
    seek: Callable[[int], None]
    """Makes the next reset of the environment begin the rollout with a given number."""
    reward: Reward
    """Figure of ``finals`` that is the return."""
    seed: int
    discount: float = 1.0
    learning_rate: float = 2e-3
    initial_std: float | None = None
    """Exploration at the start; None: that of the network."""
    start: Mapping[str, NDArray[Any]] | None = None
    """Arrays of an actor to start from; None: a new actor."""


def learn(env: OneVecEnv, plan: Learning, *, folder: Path, resume: bool, progress: Progress | None) -> tuple[Actor, list[float]]:
    """Train a policy by PPO.

    Args:
        env: Environment of students.
        plan: Settings.
        folder: Folder of the checkpoint and of TensorBoard's events.
        resume: Whether to continue from a checkpoint in ``folder``.
        progress: Called after every rollout with ``rollout`` (from 1), ``rollouts``, ``env_steps``,
            ``return``, and the means over the episodes of the rollout of the reward figures,
            ``minority_share`` and ``hardness``.

    Returns:
        The actor's arrays, and the return of every rollout.

    Raises:
        InputError: The checkpoint is corrupt or belongs to another training, or ``folder`` can't be made.
    """
    make_folder(folder)
    checkpoint = folder / CHECKPOINT_FILE
    env.reward_scale = FIRST_SCALE
    set_random_seed(integer_seed(plan.seed, "policy weights"))
    model = PPO(
        ClassWeightsPolicy,
        env,
        learning_rate=lambda left: plan.learning_rate * max(left, 0.1),
        n_steps=plan.rollout_steps,
        batch_size=plan.rollout_steps * env.num_envs // 4,
        n_epochs=10,
        gamma=plan.discount,
        gae_lambda=1.0,
        target_kl=0.05,
        device="cpu",
    )
    model.set_logger(configure(str(folder / "tensorboard"), ["tensorboard"]))
    policy = model.policy
    assert isinstance(policy, ClassWeightsPolicy)
    if plan.start is not None:
        policy.actor.load_state_dict({name: torch.as_tensor(np.array(value), dtype=torch.float32) for name, value in plan.start.items()})
    if plan.initial_std is not None:
        torch.nn.init.constant_(policy.log_std, math.log(plan.initial_std))
    returns: list[float] = []
    if resume and checkpoint.is_file():
        returns = _restore(checkpoint, model, env, plan.settings)
    plan.seek(len(returns))
    remaining = plan.rollouts * plan.rollout_steps * env.num_envs - model.num_timesteps
    if remaining > 0:
        model.learn(remaining, _Rollouts(env, plan, checkpoint, returns, progress), reset_num_timesteps=False)
    model.logger.close()
    actor = {name: value.detach().numpy().copy() for name, value in policy.actor.state_dict().items()}
    return actor, returns


class _Rollouts(BaseCallback):
    """Actions of PPO around a rollout.

    Before it: the checkpoint, and new random seeds. After it: the scale of the reward, figures, progress.
    """

    def __init__(self, env: OneVecEnv, plan: Learning, checkpoint: Path, returns: list[float], progress: Progress | None) -> None:
        super().__init__()
        self.env, self.plan, self.checkpoint, self.returns, self.progress = env, plan, checkpoint, returns, progress

    def _on_rollout_start(self) -> None:
        rollout = len(self.returns)
        if rollout:
            _save(self.checkpoint, self.model, self.env, self.plan.settings, self.returns)  # type: ignore[arg-type]
        set_random_seed(integer_seed(self.plan.seed, "rollout", rollout))
        self.env.finals = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        finals = self.env.finals
        figures = {name: float(np.mean([final[name] for final in finals])) for name in finals[0] if name != "spread"}
        self.env.reward_scale = max(0.5 * self.env.reward_scale + 0.5 * self.env.spread(), 1e-3)
        self.returns.append(figures[self.plan.reward])
        for name, value in (figures | {"reward_scale": self.env.reward_scale}).items():
            self.logger.record(f"population/{name}", value)
        if self.progress is not None:
            counts = {"rollout": len(self.returns), "rollouts": self.plan.rollouts, "env_steps": self.num_timesteps}
            self.progress(counts | {"return": self.returns[-1]} | figures)


def _save(file: Path, model: PPO, env: OneVecEnv, settings: dict[str, Any], returns: list[float]) -> None:
    arrays = {f"policy.{name}": value.detach().numpy().copy() for name, value in model.policy.state_dict().items()}
    arrays |= moments_to_arrays(model.policy.optimizer, "adam")
    arrays |= {f"env.{name}": value for name, value in env.state_dict().items()}
    counters = {"told": settings, "history": returns, "env_steps": model.num_timesteps, "reward_scale": env.reward_scale}
    write_bytes(file, save(arrays, metadata={"counters": json.dumps(counters)}))


def _restore(file: Path, model: PPO, env: OneVecEnv, settings: dict[str, Any]) -> list[float]:
    """Restore the file of :func:`_save`; the returns of the finished rollouts."""
    try:
        with safe_open(file, framework="numpy") as stored:
            counters = json.loads(stored.metadata()["counters"])
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise CorruptFileError(
            f"checkpoint {str(file)!r} can't be read ({error}); delete it to start the policy's training again"
        ) from error
    if counters["told"] != settings:
        raise InputError(
            f"checkpoint {str(file)!r} belongs to another training (data, budget, reward or seed differ); choose another folder"
        )
    weights = {name.removeprefix("policy."): value for name, value in arrays.items() if name.startswith("policy.")}
    model.policy.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    load_moments(model.policy.optimizer, "adam", arrays)
    env.load_state_dict({name[4:]: value for name, value in arrays.items() if name.startswith("env.")})
    model.num_timesteps = int(counters["env_steps"])
    env.reward_scale = float(counters["reward_scale"])
    returns: list[float] = counters["history"]
    return returns
