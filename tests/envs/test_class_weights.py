"""balancer/ClassWeights-v0 by both checkers, for two classes and four, and what its docstring promises."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import balancer.envs  # noqa: F401 (registers)
from balancer.envs.class_weights import ClassWeightsEnv
from balancer.errors import InputError

SMALL = {"epochs": 3, "steps_per_epoch": 3, "batch_size": 64}


@pytest.mark.parametrize("k", [2, 4])
def test_checkers(k: int) -> None:
    env = gymnasium.make("balancer/ClassWeights-v0", num_classes=k, **SMALL)
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env.unwrapped)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("reward", ["f1", "average_precision"])
def test_return_is_the_final_figure_and_zero_keeps(k: int, reward: str) -> None:
    env = ClassWeightsEnv(num_classes=k, reward=reward, **SMALL)  # type: ignore[arg-type]
    _, info = env.reset(seed=0)
    start, paid, done = info, 0.0, False
    while not done:
        _, earned, done, truncated, info = env.step(np.zeros(k + 2, np.float32))
        assert not truncated
        paid += earned
        np.testing.assert_allclose(info["share"], start["share"], atol=1e-9)
        assert (info["hardness"], info["floor"]) == (start["hardness"], start["floor"])
    assert info["epoch"] == 3
    assert paid == pytest.approx(info[reward])


def test_deterministic_and_episodes_differ() -> None:
    walks = []
    for _ in range(2):
        env = ClassWeightsEnv(**SMALL)  # type: ignore[arg-type]
        episodes = []
        for seed in (7, None):
            env.reset(seed=seed)
            episodes.append([env.step(np.array([-0.5, 0.5, 1.0, 0.0], np.float32))[0] for _ in range(3)])
        walks.append(episodes)
    assert all((a == b).all() for one, two in zip(*walks, strict=True) for a, b in zip(one, two, strict=True))
    assert np.abs(walks[0][0][-1] - walks[0][1][-1]).max() > 0


@pytest.mark.parametrize("changed", [{"student": "tree"}, {"student": "classifier"}, {"reward": "accuracy"}, {"epochs": 0}])
def test_refuses(changed: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ClassWeightsEnv(**(SMALL | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"num_classes": 1}, {"epochs": 1.5}, {"epochs": 0}, {"batch_size": 0}])
def test_a_wrong_number_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        ClassWeightsEnv(**wrong)


def test_a_step_needs_a_reset_and_an_action_of_the_space() -> None:
    env = ClassWeightsEnv(epochs=1, steps_per_epoch=1)
    with pytest.raises(InputError, match="call reset first"):
        env.step(np.zeros(4, np.float32))
    env.reset(seed=0)
    for size in (3, 5):
        with pytest.raises(InputError, match="shape"):
            env.step(np.zeros(size, np.float32))
