"""PopulationVecEnv: VecEnv semantics, returns, resuming at an episode's boundary."""

from __future__ import annotations

import numpy as np
import pytest

from balancer.envs.class_weights import ClassWeightsEnv
from balancer.envs.population import PopulationStack
from balancer.envs.problem import synthetic_problem
from balancer.envs.vec_env import PopulationEpisode, PopulationVecEnv
from balancer.errors import InputError
from balancer.sampling.observation import observation_size

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


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("reward", ["f1", "average_precision", "partial_auc"])
def test_return_is_the_figure_of_the_episode(k: int, reward: str, version: int) -> None:
    """The best of the epochs; in version 0 the last."""
    env = _env(k, reward=reward, version=version, epochs=5)
    assert env.action_space.shape == (k + (4 if version else 2),)
    assert env.observation_space.shape == (observation_size(k, version),)
    seen, paid, figures, rng = [env.reset()], np.zeros(env.num_envs), [], np.random.default_rng(0)
    for _ in range(5):
        action = rng.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32)  # type: ignore[misc]
        flat, reward_paid, _, infos = env.step(action)
        seen.append(flat)
        paid += reward_paid
        figures.append([info.get(reward, 0.0) for info in infos])
    np.testing.assert_allclose(paid, env.final[reward], atol=1e-6)
    if reward != "partial_auc":  # infos don't hold it
        np.testing.assert_allclose(paid, np.max(figures, axis=0) if version else figures[-1], atol=1e-6)
    assert env.finals[0][reward] == pytest.approx(float(paid.mean()), abs=1e-6)
    assert all(env.observation_space.contains(line) for flat in seen for line in flat)


def test_a_step_needs_a_reset() -> None:
    env = _env()
    with pytest.raises(InputError, match="call reset first"):
        env.step(np.zeros((env.num_envs, 6), np.float32))


def test_version_1_is_version_1_of_the_single_environment() -> None:
    """The first observation of a student: same starting weights, same features; and students compensate."""
    many, one = _env(), ClassWeightsEnv(problem=PROBLEMS[2], epochs=3, steps_per_epoch=4, batch_size=64)
    np.testing.assert_array_equal(many.reset()[0], one.reset(seed=0)[0])
    assert many.episode.stack.compensated.all()
    old, single = _env(version=0), ClassWeightsEnv(problem=PROBLEMS[2], epochs=3, steps_per_epoch=4, batch_size=64, version=0)
    np.testing.assert_array_equal(old.reset()[0], single.reset(seed=0)[0])
    assert not old.episode.stack.compensated.any()


def test_each_student_is_told_whether_it_compensates() -> None:
    stack = PopulationStack(PROBLEMS[2], groups=1, siblings=2, compensated=np.array([True, False]))
    episode = PopulationEpisode(stack, epochs=2, steps_per_epoch=2)
    seen = episode.first(episode.start(1))
    assert [seen[0].compensated, seen[1].compensated] == [True, False]
    seen, _ = episode.train_epoch(episode.start(1))
    assert [seen[0].compensated, seen[1].compensated] == [True, False]


def test_the_best_epoch_is_kept() -> None:
    stack = PopulationStack(PROBLEMS[2], groups=3, siblings=2, compensated=np.ones(6, dtype=bool))
    episode = PopulationEpisode(stack, epochs=5, steps_per_epoch=10, keep_best=True)
    scores, figures = [], []
    for _ in range(5):
        _, metrics = episode.train_epoch(episode.start(1))
        scores.append(stack.score(PROBLEMS[2].x_val))
        figures.append(metrics.average_precision)
    best = np.argmax(figures, axis=0)
    assert len(set(best.tolist())) > 1
    stack.restore_kept()
    np.testing.assert_array_equal(stack.score(PROBLEMS[2].x_val), np.array(scores)[best, np.arange(6)])


def test_auto_reset() -> None:
    env = _env()
    env.reset()
    zero = np.zeros((4, 6), np.float32)
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
    paid = [env.step(rng.uniform(-1, 1, (8, 6)))[1] for _ in range(3)]
    assert not np.any(paid[:2])
    np.testing.assert_allclose(paid[2].reshape(2, 4).sum(axis=1), 0, atol=1e-6)
    assert env.spread() == pytest.approx(float(np.sqrt(np.mean(paid[2] ** 2))), rel=1e-4)


def test_equal_actions_earn_siblings_nothing() -> None:
    env = _env(relative=True)
    env.reset()
    for _ in range(3):
        _, reward, _, _ = env.step(np.full((4, 6), 0.3))
        np.testing.assert_allclose(reward, 0, atol=1e-7)


@pytest.mark.parametrize("changed", [{"siblings": 3}, {"reward": "accuracy"}, {"siblings": 1, "relative": True}])
def test_refuses(changed: dict[str, object]) -> None:
    with pytest.raises(InputError):
        _env(**changed)
