"""PPO on the population: it learns, resumes exactly, and writes a bundle that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balancer.envs.problem import synthetic_problem
from balancer.errors import InputError
from balancer.policy_learning.training import PolicyBudget, train_policy
from balancer.sampling import SamplingController, load_policy

PROBLEM = synthetic_problem(2, rows=1500)
TINY = PolicyBudget(rollouts=3, num_students=4, siblings=2, epochs=3, steps_per_epoch=3, batch_size=32, test_groups=2, test_episodes=1)


class _KilledError(Exception):
    """Replaces SIGKILL in the test: nothing is cleaned up after it."""


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("policy.safetensors", "policy.json")]


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_killed_and_resumed_is_the_same_to_the_byte(moment: int, tmp_path: Path) -> None:
    whole = train_policy(PROBLEM, TINY, seed=3, folder=tmp_path / "whole")
    killed: list[int] = []

    def kill(figures: dict[str, Any]) -> None:
        if figures["rollout"] == moment and not killed:
            killed.append(moment)
            raise _KilledError

    with pytest.raises(_KilledError):
        train_policy(PROBLEM, TINY, seed=3, folder=tmp_path / "cut", progress=kill)
    seen: list[int] = []
    resumed = train_policy(PROBLEM, TINY, seed=3, folder=tmp_path / "cut", resume=True, progress=lambda f: seen.append(f["rollout"]))
    assert seen == list(range(moment, 4))
    assert _bytes(whole) == _bytes(resumed)
    assert train_policy(PROBLEM, TINY, seed=3, folder=tmp_path / "cut", resume=True) == resumed
    assert list((tmp_path / "cut" / "tensorboard").iterdir())


def test_bundle_runs_for_any_number_of_classes(tmp_path: Path) -> None:
    folder = train_policy(PROBLEM, TINY, seed=0, folder=tmp_path)
    training = json.loads((folder / "policy.json").read_text())["training"]
    assert {"ppo", "constant", "one_to_one", "none", "start", "random"} == set(training["evaluation"])
    better = training["evaluation"]["ppo"]["f1"] > training["evaluation"]["constant"]["f1"]
    assert training["beats_constant"] is better
    assert len(training["returns"]) == 3
    for counts in (np.array([990, 10]), np.array([900, 50, 30, 20])):
        policy = load_policy(folder, num_classes=len(counts))
        controller = SamplingController(
            counts / counts.sum(), policy, epochs=3, batch_budget=999, train_counts=counts, reward_counts=counts
        )
        assert controller.weights.share.shape == counts.shape


def test_learns_to_raise_the_share(tmp_path: Path) -> None:
    """On a rare and learnable class the starting share is too low; PPO finds that out."""
    budget = PolicyBudget(
        rollouts=8, num_students=16, siblings=8, epochs=4, steps_per_epoch=6, factors=(1.0,), batch_size=64, test_groups=4, test_episodes=1
    )
    figures: list[dict[str, Any]] = []
    folder = train_policy(synthetic_problem(2, rows=4000), budget, seed=0, folder=tmp_path, progress=figures.append)
    evaluation = json.loads((folder / "policy.json").read_text())["training"]["evaluation"]
    assert evaluation["ppo"]["minority_share"] > evaluation["start"]["minority_share"]
    assert evaluation["ppo"]["f1"] > evaluation["none"]["f1"]


def test_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="budget 'huge'"):
        train_policy(PROBLEM, "huge", seed=0, folder=tmp_path / "a")

    def kill(figures: dict[str, Any]) -> None:
        if figures["rollout"] == 2:
            raise _KilledError

    with pytest.raises(_KilledError):
        train_policy(PROBLEM, TINY, seed=0, folder=tmp_path / "b", progress=kill)
    with pytest.raises(InputError, match="another training"):
        train_policy(PROBLEM, TINY, seed=1, folder=tmp_path / "b", resume=True)
    checkpoint = tmp_path / "b" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(InputError, match="can't be read"):
        train_policy(PROBLEM, TINY, seed=0, folder=tmp_path / "b", resume=True)
