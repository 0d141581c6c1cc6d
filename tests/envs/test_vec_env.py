"""PopulationVecEnv: VecEnv semantics, returns, resuming at an episode's boundary."""

from __future__ import annotations

import numpy as np
import pytest

from balancer.envs.problem import synthetic_problem
from balancer.envs.vec_env import PopulationVecEnv
from balancer.errors import InputError

PROBLEMS = {k: synthetic_problem(k, rows=1500) for k in (2, 4)}


def _env(k: int = 2, students: int = 4, **changed: object) -> PopulationVecEnv:
    options = {"siblings": 2, "epochs": 3, "steps_per_epoch": 4, "batch_size": 64} | changed
    return PopulationVecEnv(PROBLEMS[k], students, **options)  # type: ignore[arg-type]


def _walk(env: PopulationVecEnv, episodes: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    seen, paid = [env.reset()], np.zeros(env.num_envs)
    for _ in range(3 * episodes):
        flat, reward, _, _ = env.step(rng.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32))  # type: ignore[misc]
        seen.append(flat)
        paid += reward
    return seen, paid


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("reward", ["f1", "average_precision", "partial_auc"])
def test_return_is_the_final_figure(k: int, reward: str) -> None:
    env = _env(k, reward=reward)
    seen, paid = _walk(env, 1)
    np.testing.assert_allclose(paid, env.final[reward], atol=1e-6)
    assert all(env.observation_space.contains(line) for flat in seen for line in flat)


def test_auto_reset() -> None:
    env = _env()
    env.reset()
    zero = np.zeros((4, 4), np.float32)
    for epoch in range(3):
        flat, _, done, infos = env.step(zero)
        assert done.all() == (epoch == 2)
    assert infos[0]["TimeLimit.truncated"] is False
    assert np.abs(infos[0]["terminal_observation"] - flat[0]).max() > 0.1
    fresh = _env()
    fresh.next_episode = 1
    np.testing.assert_array_equal(fresh.reset(), flat)


def test_same_seed_same_bits_and_resume_at_a_boundary() -> None:
    one, two = _env(budgets=(1.0, 2.0)), _env(budgets=(1.0, 2.0))
    first, _ = _walk(one, 2)
    again, _ = _walk(two, 2)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    other, _ = _walk(_env(seed=1), 1)
    assert np.abs(other[2] - first[2]).max() > 0
    resumed = _env(budgets=(1.0, 2.0))
    resumed.next_episode = 2
    a, b = _walk(one, 1, seed=5), _walk(resumed, 1, seed=5)
    assert one.next_episode == 5  # a reset begins a new episode, the one after auto-reset included
    resumed.next_episode = 3
    c = _walk(resumed, 1, seed=5)
    assert (a[0][-2] == c[0][-2]).all()
    assert np.abs(a[0][-2] - b[0][-2]).max() > 0


def test_relative_reward_is_centred_and_paid_at_the_end() -> None:
    env = _env(relative=True, siblings=4, students=8)
    env.reset()
    rng = np.random.default_rng(0)
    paid = [env.step(rng.uniform(-1, 1, (8, 4)))[1] for _ in range(3)]
    assert not np.any(paid[:2])
    np.testing.assert_allclose(paid[2].reshape(2, 4).sum(axis=1), 0, atol=1e-6)
    assert env.spread() == pytest.approx(float(np.sqrt(np.mean(paid[2] ** 2))), rel=1e-4)


def test_equal_actions_earn_siblings_nothing() -> None:
    env = _env(relative=True)
    env.reset()
    for _ in range(3):
        _, reward, _, _ = env.step(np.full((4, 4), 0.3))
        np.testing.assert_allclose(reward, 0, atol=1e-7)


@pytest.mark.parametrize("changed", [{"siblings": 3}, {"reward": "accuracy"}, {"siblings": 1, "relative": True}])
def test_refuses(changed: dict[str, object]) -> None:
    with pytest.raises(InputError):
        _env(**changed)
