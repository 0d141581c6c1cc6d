"""balancer/ClassWeights-v1 and -v0: both checkers, what their docstring promises, students of one's own."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import balancer.envs  # noqa: F401 (registers)
from balancer.envs.class_weights import ClassWeightsEnv, StudentTask, population_task
from balancer.envs.problem import PopulationProblem, synthetic_problem
from balancer.errors import InputError
from balancer.sampling.constant_policy import COMPENSATED
from balancer.sampling.observation import PER_CLASS_FEATURES, SHARED_FEATURES, observation_size
from balancer.sampling.weights import SamplingWeights, class_prior, start_weights

SMALL = {"epochs": 3, "steps_per_epoch": 3, "batch_size": 64}
SIZE = (2, 4)
"""Numbers of an action besides the log shares, by version."""


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.filterwarnings("ignore:.*balancer/ClassWeights-v0 is out of date")
def test_checkers(version: int, k: int) -> None:
    env = gymnasium.make(f"balancer/ClassWeights-v{version}", num_classes=k, **SMALL)
    assert env.action_space.shape == (k + SIZE[version],)
    assert env.observation_space.shape == (observation_size(k, version),)
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env.unwrapped)


def test_gymnasium_makes_the_newest_version_by_default() -> None:
    with pytest.warns(UserWarning, match="latest versioned environment `balancer/ClassWeights-v1`"):
        env = gymnasium.make("balancer/ClassWeights", **SMALL)
    assert env.unwrapped.version == 1  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning, match="ClassWeights-v0 is out of date"):
        gymnasium.make("balancer/ClassWeights-v0", **SMALL)


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("reward", ["f1", "average_precision"])
def test_return_is_the_figure_and_zero_keeps(k: int, reward: str, version: int) -> None:
    env = ClassWeightsEnv(num_classes=k, reward=reward, version=version, epochs=6, steps_per_epoch=3, batch_size=64)  # type: ignore[arg-type]
    _, info = env.reset(seed=0)
    start, paid, done, figures = info, 0.0, False, []
    while not done:
        _, earned, done, truncated, info = env.step(np.zeros(k + SIZE[version], np.float32))
        assert not truncated
        paid += earned
        figures.append(info[reward])
        assert earned >= 0 or version == 0
        np.testing.assert_allclose(info["share"], start["share"], atol=1e-9)
        for name in ("hardness", "floor", "class_importance", "hardness_importance", "half_life"):
            assert info.get(name) == start.get(name)
    assert info["epoch"] == 6
    assert paid == pytest.approx(max(figures) if version else figures[-1])


@pytest.mark.parametrize("version", [0, 1])
def test_starting_weights(version: int) -> None:
    env = ClassWeightsEnv(version=version, **SMALL)  # type: ignore[arg-type]
    _, info = env.reset(seed=0)
    prior = class_prior(synthetic_problem(2).train_counts)
    expected = COMPENSATED.weights(prior) if version else start_weights(prior)
    without_effect = {"class_importance": 0.0, "hardness_importance": 0.0, "half_life": np.inf} if version else {}
    assert info == without_effect | expected.to_dict() | {"epoch": 0, "f1": 0.0, "average_precision": 0.0}


@pytest.mark.parametrize("version", [0, 1])
def test_info_has_the_same_keys_after_reset_and_after_every_step(version: int) -> None:
    env = ClassWeightsEnv(version=version, **SMALL)  # type: ignore[arg-type]
    documented = {"share", "hardness", "floor", "epoch", "f1", "average_precision"}
    documented |= {"class_importance", "hardness_importance", "half_life"} if version else set()
    assert set(env.reset(seed=0)[1]) == documented
    for strength in (1.0, -1.0, 0.0):  # the half-life becomes finite, importance exponents become 0
        assert set(env.step(np.full(2 + SIZE[version], strength, np.float32))[4]) == documented
    info_section = (ClassWeightsEnv.__doc__ or "").partition("## Info")[2].partition("##")[0]
    assert all(f"``{key}``" in info_section for key in documented)


@pytest.mark.parametrize("version", [0, 1])
def test_a_step_after_the_end_names_reset(version: int) -> None:
    env = ClassWeightsEnv(version=version, **SMALL)  # type: ignore[arg-type]
    action = np.zeros(2 + SIZE[version], np.float32)
    env.reset(seed=0)
    assert [env.step(action)[2] for _ in range(3)] == [False, False, True]
    for error in (InputError, gymnasium.error.ResetNeeded):
        with pytest.raises(error, match="ended after 3 steps: call reset"):
            env.step(action)
    env.reset()
    assert env.step(action)[4]["epoch"] == 1


def test_there_is_nothing_to_render() -> None:
    env = gymnasium.make("balancer/ClassWeights-v1", **SMALL)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="no render mode"):
        assert env.render() is None
    with pytest.warns(UserWarning, match="not in the possible render_modes"), pytest.raises(InputError, match="leave render_mode out"):
        gymnasium.make("balancer/ClassWeights-v1", render_mode="human", **SMALL)


def test_actions_change_what_the_docstring_says() -> None:
    env = ClassWeightsEnv(num_classes=3, **SMALL)  # type: ignore[arg-type]
    env.reset(seed=0)
    before = env.weights
    env.step(np.array([0.0, 1.0, 0.0, -0.5, 1.0, 0.5, -1.0], np.float32))
    after = env.weights
    odds = np.log(after.share[1:] / after.share[0]) - np.log(before.share[1:] / before.share[0])
    np.testing.assert_allclose(odds, [0.75, 0.0], atol=1e-9)
    assert after.hardness == before.hardness - 0.5
    assert after.floor == before.floor == 0.05
    assert after.class_importance == before.class_importance + 0.25
    assert after.hardness_importance == before.hardness_importance + 0.125
    assert after.half_life == 8.0  # of the longest, 16, which is the same as none
    env.step(np.array([0, 0, 0, 0, 0, 0, 1.0], np.float32))
    assert env.weights.half_life == np.inf


def test_version_0_is_what_it_was() -> None:
    """Actions of K + 2 numbers move shares within the limit, hardness and floor; all rows count alike."""
    calls: list[tuple[Any, ...]] = []
    task = _own_task(calls)
    env = ClassWeightsEnv(task, version=0, epochs=3, steps_per_epoch=4, batch_size=50)
    flat, info = env.reset(seed=1)
    assert flat.shape == (observation_size(2, 0),) == (2 * 38 + 9,)
    for _ in range(3):
        flat, _, _, _, info = env.step(np.array([-1.0, 1.0, 0.5, 1.0], np.float32))
        assert env.observation_space.contains(flat)
    assert info["share"][1] == pytest.approx(0.5)  # the limit of one half
    assert (info["hardness"], info["floor"]) == (1.5, pytest.approx(0.35))
    assert set(info) == {"share", "hardness", "floor", "epoch", "f1", "average_precision"}
    assert [len(call) for call in calls] == [1, 1, 1]  # rows alone


class _Student:
    """A student of one's own: a centre for each class; it notes what it is given."""

    def __init__(self, x: NDArray[np.float64], y: NDArray[np.int64], calls: list[tuple[Any, ...]]) -> None:
        self.x, self.y, self.calls = x, y, calls
        self.logit = np.zeros(len(y))

    def fit(self, *given: Any) -> None:
        self.calls.append(given)
        rows = given[0]
        weight = given[1] if len(given) > 1 else np.ones(len(rows))
        fraud = np.average(self.x[rows], weights=weight * (self.y[rows] == 1) + 1e-9)
        fine = np.average(self.x[rows], weights=weight * (self.y[rows] == 0) + 1e-9)
        self.logit = (fraud - fine) * (self.x - (fraud + fine) / 2)

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        p = 1.0 / (1.0 + np.exp(-self.logit[rows]))
        return np.stack([1 - p, p], axis=1)


def _own_task(calls: list[tuple[Any, ...]], time: bool = False) -> StudentTask:
    rng = np.random.default_rng(0)
    y = (rng.random(900) < 0.1).astype(np.int64)
    x = rng.normal(size=900) + 1.5 * y
    return StudentTask(
        y,
        np.arange(0, 600),
        np.arange(600, 900),
        2,
        np.ones(600),
        np.ones(300),
        lambda seed, steps: _Student(x, y, calls),
        np.arange(900.0) if time else None,
    )


@pytest.mark.parametrize("time", [False, True], ids=["no times", "times"])
def test_a_student_of_ones_own_gets_rows_weights_and_offsets(time: bool) -> None:
    calls: list[tuple[Any, ...]] = []
    task = _own_task(calls, time)
    env = ClassWeightsEnv(task, epochs=6, steps_per_epoch=10, batch_size=50)
    check_env_sb3(env)
    calls.clear()
    env.reset(seed=3)
    prior = class_prior(np.bincount(task.label[:600]))
    half_life, paid = [], 0.0
    for epoch in range(6):
        _, earned, done, _, info = env.step(np.array([-0.1, 0.1, 0.1, 0.4, 1.0, -1.0], np.float32))
        paid += earned
        half_life.append(env.weights.half_life)
        rows, weight, offset = calls[-1]
        assert rows.shape == weight.shape == (500,)
        assert rows.max() < 600
        np.testing.assert_allclose(offset, env.weights.logit_offset(prior))
        by_class = env.weights.class_weight(prior)[task.label[rows]]
        if epoch == 0:  # no scores yet: hardness has no effect, a row counts as its class
            np.testing.assert_allclose(weight, by_class)
        else:
            within = weight / by_class
            assert within[task.label[rows] == 0].std() > 0.01  # class 0 is drawn less often than its prior
            np.testing.assert_allclose(within[task.label[rows] == 1], 1.0)
        assert done == (epoch == 5)
    assert np.mean([call[1].mean() for call in calls]) == pytest.approx(1.0, abs=0.07)
    assert 0 < paid <= 1
    assert half_life == [8.0, 4.0, 2.0, 1.0, 0.5, 0.25]
    assert info["half_life"] == 0.25
    mean_age = 1 - calls[-1][0].mean() / 600
    assert mean_age < 0.35 if time else 0.46 < mean_age < 0.54
    assert len(calls) == 6


def test_a_thinned_table_counts_as_the_table_that_it_represents() -> None:
    """Each row of class 0 represents ten: prior, weights, offset and hardness are of the whole table."""
    calls: list[tuple[Any, ...]] = []
    whole = _own_task(calls)
    represented = np.where(whole.label[:600] == 0, 10.0, 1.0)
    env = ClassWeightsEnv(dataclasses.replace(whole, train_weight=represented), epochs=2, steps_per_epoch=10, batch_size=50)
    env.reset(seed=0)
    prior = class_prior(np.bincount(whole.label[:600], represented))
    # A share of class 0 between the two priors: rows are chosen only by the prior of the whole table.
    thinned = class_prior(np.bincount(whole.label[:600]))
    share = np.sqrt(prior[0] * thinned[0])
    assert thinned[0] < share < prior[0]
    env.weights = SamplingWeights(np.array([share, 1 - share]), 1.0, 0.05, 0.5, 0.5)
    env.step(np.zeros(6, np.float32))
    rows, weight, offset = calls[-1]
    np.testing.assert_allclose(weight, env.weights.class_weight(prior)[whole.label[rows]])
    np.testing.assert_allclose(offset, env.weights.logit_offset(prior))
    env.step(np.zeros(6, np.float32))
    rows, weight, _ = calls[-1]
    assert (weight / env.weights.class_weight(prior)[whole.label[rows]])[whole.label[rows] == 0].std() > 0.01


def test_the_population_student_trains_with_weights_and_offset() -> None:
    """Its scores are those of a balanced stream: higher for the rare class than under version 0."""
    mean = []
    for version in (0, 1):
        env = ClassWeightsEnv(version=version, epochs=4, steps_per_epoch=30, batch_size=128)
        env.reset(seed=0)
        for _ in range(4):
            env.step(np.zeros(2 + SIZE[version], np.float32))
        mean.append(float(env._student.score(env.task.reward_rows)[:, 1].mean()))
    assert mean[1] > 1.3 * mean[0]


def test_ages_of_a_problem_reach_the_sampler() -> None:
    problem = synthetic_problem(2)
    aged = PopulationProblem(
        *(getattr(problem, name) for name in ("x_train", "y_train", "x_val", "y_val", "train_weight", "val_weight")),
        2,
        np.linspace(1, 0, len(problem.y_train)).astype(np.float32),
    )
    assert population_task(problem, 32, "cpu").time is None
    env = ClassWeightsEnv(problem=aged, **SMALL)  # type: ignore[arg-type]
    env.reset(seed=0)
    assert env._age is not None
    np.testing.assert_allclose(env._age[: len(problem.y_train)], aged.train_age, atol=1e-6)  # type: ignore[arg-type]
    assert ClassWeightsEnv(problem=aged, version=0, **SMALL)._age is None  # type: ignore[arg-type]


def test_observation_tells_the_weights() -> None:
    env = ClassWeightsEnv(**SMALL)  # type: ignore[arg-type]
    flat, _ = env.reset(seed=0)
    shared = dict(zip(SHARED_FEATURES, flat[-len(SHARED_FEATURES) :], strict=True))
    assert (shared["compensated"], shared["class_importance"], shared["hardness_importance"], shared["recency"]) == (1, 0.5, 0, 0)
    per_class = flat[: -len(SHARED_FEATURES)].reshape(2, -1)
    mass = env.weights.logit_offset(env._prior) - np.log(env._prior)
    np.testing.assert_allclose(per_class[:, PER_CLASS_FEATURES.index("log_mass_over_prior")], mass / 3, atol=1e-6)
    seen, _, _, _, _ = env.step(np.array([0, 0, 0, 0, 1.0, -1.0], np.float32))
    shared = dict(zip(SHARED_FEATURES, seen[-len(SHARED_FEATURES) :], strict=True))
    assert shared["hardness_importance"] == 0.25
    assert shared["recency"] == pytest.approx(np.log2(1 + 1 / 8) / 4, abs=1e-6)


def test_deterministic_and_episodes_differ() -> None:
    walks = []
    for _ in range(2):
        env = ClassWeightsEnv(**SMALL)  # type: ignore[arg-type]
        episodes = []
        for seed in (7, None):
            env.reset(seed=seed)
            episodes.append([env.step(np.array([-0.5, 0.5, 1.0, 0.3, 0.5, 0.0], np.float32))[0] for _ in range(3)])
        walks.append(episodes)
    assert all((a == b).all() for one, two in zip(*walks, strict=True) for a, b in zip(one, two, strict=True))
    assert np.abs(walks[0][0][-1] - walks[0][1][-1]).max() > 0


@pytest.mark.parametrize(
    "changed", [{"student": "tree"}, {"student": "classifier"}, {"reward": "accuracy"}, {"epochs": 0}, {"version": 2}, {"version": "1"}]
)
def test_refuses(changed: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ClassWeightsEnv(**(SMALL | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"num_classes": 1}, {"epochs": 1.5}, {"epochs": 0}, {"batch_size": 0}, {"version": 2}])
def test_a_wrong_number_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        ClassWeightsEnv(**wrong)


@pytest.mark.parametrize("version", [0, 1])
def test_a_step_needs_a_reset_and_an_action_of_the_space(version: int) -> None:
    env = ClassWeightsEnv(epochs=1, steps_per_epoch=1, version=version)
    with pytest.raises(InputError, match="call reset first"):
        env.step(np.zeros(2 + SIZE[version], np.float32))
    env.reset(seed=0)
    for size in (1 + SIZE[version], 3 + SIZE[version]):
        with pytest.raises(InputError, match="shape"):
            env.step(np.zeros(size, np.float32))
