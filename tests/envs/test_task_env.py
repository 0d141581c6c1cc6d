"""TaskVecEnv: padding, rewards among siblings, whole episodes in a rollout, resuming at its boundary."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from balancer.envs.task_env import ROLLOUT_STEPS, TaskEpisode, TaskVecEnv, padded
from balancer.envs.tasks import EPOCHS, MAX_CLASSES, Task, draw_task
from balancer.errors import InputError
from balancer.policy_learning.network import ActorNetwork, ClassWeightsPolicy, split_flat
from balancer.sampling.constant_policy import COMPENSATED
from balancer.sampling.observation import PER_CLASS_FEATURES, SHARED_FEATURES, Observation
from balancer.sampling.scores import macro_metrics


@functools.cache
def _small(number: int, epochs: int) -> Task:
    """The first tasks of the distribution that train for the shortest time, on small tables."""
    found = -1
    for index in range(10_000):
        task = draw_task(5, index, epochs=epochs)
        found += (
            task.net == "mlp"
            and task.traits["kind"] == "mixture"
            and task.traits["rows"] < 4000
            and task.epochs * task.steps_per_epoch <= 108
        )
        if found == number % 3:
            return task
    raise AssertionError


def _env(**changed: object) -> TaskVecEnv:
    return TaskVecEnv(_small, **({"slots": 2, "siblings": 2} | changed))  # type: ignore[arg-type]


def test_a_step_needs_a_reset() -> None:
    env = _env()
    with pytest.raises(InputError, match="call reset first"):
        env.step(np.zeros((env.num_envs, MAX_CLASSES + 4), np.float32))


def _walk(env: TaskVecEnv, steps: int, first: int = 0) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    seen, paid, over = [env.reset()], [], []
    for step in range(first, first + steps):
        action = np.random.default_rng(step).uniform(-1, 1, (env.num_envs, MAX_CLASSES + 4))
        flat, reward, done, _ = env.step(action)
        seen.append(flat)
        paid.append(reward)
        over.append(done)
    return seen, paid, over


def test_every_length_of_episode_divides_a_rollout() -> None:
    assert all(ROLLOUT_STEPS % epochs == 0 for epochs in EPOCHS)


@pytest.mark.parametrize("pay", ["final", "step"])
def test_a_rollout_is_whole_episodes_and_resumes_at_its_boundary(pay: str) -> None:
    env = _env(pay=pay)
    seen, paid, over = _walk(env, ROLLOUT_STEPS + 1)
    assert over[ROLLOUT_STEPS - 1].all()
    assert len(env.finals) == sum(int(done.reshape(2, 2)[:, 0].sum()) for done in over)
    assert all(env.observation_space.contains(line) for flat in seen for line in flat)
    for reward, done in zip(paid, over, strict=True):
        np.testing.assert_allclose(reward.reshape(2, 2).sum(axis=1), 0, atol=1e-5)
        if pay == "final":
            assert not np.any(reward[~done])
    resumed = _env(pay=pay)
    resumed.load_state_dict(env.state_dict())
    resumed.next_rollout = 1
    again, repaid, _ = _walk(resumed, 1, first=ROLLOUT_STEPS)
    np.testing.assert_array_equal(again[0], seen[ROLLOUT_STEPS])
    np.testing.assert_array_equal(again[1], seen[ROLLOUT_STEPS + 1])
    np.testing.assert_array_equal(repaid[0], paid[ROLLOUT_STEPS])


def test_support_holds_what_was_seen() -> None:
    env = _env()
    seen, _, _ = _walk(env, 3)
    low, high = env.support["shared"]
    shared = np.concatenate(seen)[:, -len(SHARED_FEATURES) :]
    np.testing.assert_allclose(low, shared.min(axis=0))
    np.testing.assert_allclose(high, shared.max(axis=0))


def test_equal_actions_earn_nothing() -> None:
    env = _env()
    env.reset()
    for _ in range(ROLLOUT_STEPS):
        _, reward, _, _ = env.step(np.full((4, MAX_CLASSES + 4), 0.2))
        np.testing.assert_allclose(reward, 0, atol=1e-6)


def test_classes_that_are_not_there_count_for_nothing() -> None:
    """Padding to ten classes changes neither the actions of the real classes nor values and probabilities."""
    rng = np.random.default_rng(0)
    seen = Observation(
        rng.uniform(-1, 1, (3, 4, len(PER_CLASS_FEATURES))).astype(np.float32),
        rng.uniform(-1, 1, (3, len(SHARED_FEATURES))).astype(np.float32),
    )
    torch.manual_seed(0)
    actor = ActorNetwork()
    for last in (actor.share_2, actor.overall):
        torch.nn.init.normal_(last.weight)
    plain, wide = torch.as_tensor(seen.flat()), torch.as_tensor(padded(seen))
    assert split_flat(wide)[2].tolist() == [[1.0] * 4 + [0.0] * 6] * 3
    expected, found = actor(plain), actor(wide)
    torch.testing.assert_close(found[:, :4], expected[:, :4])
    torch.testing.assert_close(found[:, MAX_CLASSES:], expected[:, 4:])
    assert not found[:, 4:MAX_CLASSES].any()

    import gymnasium

    def policy(classes: int) -> ClassWeightsPolicy:
        torch.manual_seed(1)
        space = gymnasium.spaces.Box(-5, 5, (classes * len(PER_CLASS_FEATURES) + len(SHARED_FEATURES),), np.float32)
        return ClassWeightsPolicy(space, gymnasium.spaces.Box(-1, 1, (classes + 4,), np.float32), lambda _: 1e-3)

    narrow, broad = policy(4), policy(MAX_CLASSES)
    action = torch.as_tensor(rng.uniform(-1, 1, (3, 8)), dtype=torch.float32)
    wider = torch.cat([action[:, :4], torch.as_tensor(rng.uniform(-1, 1, (3, 6)), dtype=torch.float32), action[:, 4:]], dim=1)
    for one, two in zip(narrow.evaluate_actions(plain, action), broad.evaluate_actions(wide, wider), strict=True):
        torch.testing.assert_close(one, two)


def test_a_student_counts_as_it_was_after_its_best_epoch() -> None:
    task = _small(0, 6)
    episode = TaskEpisode(task, siblings=4)
    assert episode.episode.stack.compensated.all()
    assert episode.weights.student(0).to_dict() == COMPENSATED.weights(episode.episode.prior).to_dict()
    rng, goals, figures = np.random.default_rng(0), [], []
    while not episode.done:
        episode.act(rng.uniform(-1, 1, (4, task.problem.num_classes + 4)))
        stack = episode.episode.stack
        goals.append(macro_metrics(task.goal.y, stack.score(task.goal.x), task.goal.weight).average_precision)
        figures.append(macro_metrics(task.problem.y_val, stack.score(task.problem.x_val), task.problem.val_weight).average_precision)
    best = np.argmax(figures, axis=0)
    assert (best < 5).any()
    np.testing.assert_array_equal(episode.goal().average_precision, np.array(goals)[best, np.arange(4)])


def test_tasks_have_drift_and_ages() -> None:
    drawn = [draw_task(0, index) for index in range(12)]
    for task in drawn:
        age = task.problem.train_age
        assert age is not None
        assert age.shape == task.problem.y_train.shape
        assert (age.min(), age.max()) == (0, pytest.approx(1, abs=1e-6))


@pytest.mark.parametrize("changed", [{"slots": 0}, {"siblings": 1}, {"reward": "accuracy"}])
def test_refuses(changed: dict[str, object]) -> None:
    with pytest.raises(InputError):
        _env(**changed)
