"""The distribution of tasks: repeatable, varied, learnable, held-out tasks apart from training tasks."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from balancer.envs.task_env import TaskEpisode
from balancer.envs.tasks import BATCH_SIZE, EPOCHS, FEWEST_OF_CLASS, MAX_CLASSES, STEPS, Task, draw_task
from balancer.sampling.weights import SamplingWeights, stacked


@cache
def tasks() -> list[Task]:
    """Thirty tasks, which take seconds; not made in every process that lists the tests."""
    return [draw_task(0, index) for index in range(30)]


def _equal(one: Task, two: Task) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in (
            (one.problem.x_train, two.problem.x_train),
            (one.problem.y_val, two.problem.y_val),
            (one.goal.x, two.goal.x),
            (one.goal.weight, two.goal.weight),
        )
    )


def test_a_task_is_a_function_of_its_number() -> None:
    assert all(_equal(task, draw_task(0, index)) for index, task in enumerate(tasks()[:6]))
    assert not _equal(tasks()[0], tasks()[1])
    assert not _equal(tasks()[0], draw_task(0, 0, "heldout"))
    assert not _equal(tasks()[0], draw_task(1, 0))


def test_tasks_are_varied_and_whole() -> None:
    for task in tasks():
        problem, goal = task.problem, task.goal
        counts = np.bincount(problem.y_train, minlength=problem.num_classes)
        assert 2 <= problem.num_classes <= MAX_CLASSES
        assert counts.argmax() == 0
        assert counts.min() >= 1
        assert goal.x.shape[1] == problem.x_train.shape[1] == problem.x_val.shape[1]
        assert len(goal.x) == len(goal.y) == len(goal.weight)
        assert set(range(problem.num_classes)) == set(np.unique(goal.y).tolist()) or task.traits["kind"] == "simulated"
        assert np.isfinite(problem.x_train).all()
        assert np.isfinite(goal.weight).all()
        assert goal.weight.min() > 0
        assert task.epochs in EPOCHS
        assert task.epochs * task.steps_per_epoch <= STEPS[1] + task.epochs
        assert task.batch_size == BATCH_SIZE
    traits = [task.traits for task in tasks()]
    assert {"mixture", "simulated"} == {trait["kind"] for trait in traits}
    assert {"mlp", "transformer"} == {trait["net"] for trait in traits}
    minority = np.array([trait["minority"] for trait in traits])
    assert minority.min() < 0.02
    assert minority.max() > 0.1
    assert len({trait["classes"] for trait in traits}) >= 4


def test_mixtures_have_enough_rows_of_each_class() -> None:
    for task in tasks():
        if task.traits["kind"] == "mixture":
            counts = np.bincount(task.problem.y_train, minlength=task.problem.num_classes)
            assert counts[1:].min() >= FEWEST_OF_CLASS - 1  # a wrong label swaps rows, it loses none


@pytest.mark.parametrize("net", ["mlp", "transformer"])
def test_students_learn_something_of_the_goal(net: str) -> None:
    """Mean average precision well above what scoring at random reaches."""
    drawn = itertools.chain(tasks(), (draw_task(0, index) for index in range(len(tasks()), 200)))
    easy = (task for task in drawn if task.net == net and task.traits["classes"] == 2 and task.traits["steps"] < 150)
    chosen = list(itertools.islice(easy, 3))
    beyond = []
    for task in chosen:
        played = TaskEpisode(task, siblings=2)
        for _ in range(task.epochs):
            played.episode.train_epoch(stacked([SamplingWeights(np.full(2, 0.5))] * 2))
        prior = float(task.goal.weight[task.goal.y > 0].sum() / task.goal.weight.sum())
        beyond.append(float(played.goal().average_precision.max()) / prior)
    assert max(beyond) > 2
