"""A distribution of imbalanced problems to train sampling policies on, so that they work on unseen tables.

The best way to sample depends on the table: how rare the rare classes are, how much they overlap with the
common one, how many of their rows can't be distinguished at all, whether the learner is weak, or strong
enough to memorise them, and how long it trains. So all of these are drawn (domain randomisation). There are
problems where hardness matters most, where the share hardly matters, and where every repeat of a rare row
does harm. One task in eight is the project's transaction simulator, one in ten trains small transformers; the
others are mixtures of Gaussians under a non-linear map, with drifting centres.

Students are observed on a validation sample as small as a real one, but the reward is measured on a large
sample of the task's future (the goal). So the policy sees realistic noise, and its reward has little.

Task ``index`` is a function of (seed, split, index); ``heldout`` tasks share no random number with training
tasks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.simulation.stream import simulate
from balancer.data.split import Split
from balancer.envs.population import StudentKinds
from balancer.envs.problem import PopulationProblem, encoded_problem
from balancer.errors import InputError, MissingClassError
from balancer.sampling.seeding import generator, integer_seed
from balancer.sampling.weights import Floats

TaskSplit = Literal["train", "heldout"]
MAX_CLASSES = 10
ROWS = (1_000, 200_000)
"""Training rows, log-uniform."""
MINORITY = (1.0 / 3.0, 1e-3)
"""Prior of the minority (all classes but class 0)."""
FEWEST_OF_CLASS = 16
"""Smallest number of training rows of a class: with fewer rows nothing can be learned."""
PASSES = (0.3, 20.0)
"""Rows drawn in a training per row of the table, log-uniform; then limited by STEPS."""
STEPS = (100, 800)
"""Mini-batches of a training."""
BATCH_SIZE = 128
SLOWEST = 3e-3
"""Smallest learning rate of a student."""
TRANSFORMERS = 1 / 10
EPOCHS = (6, 8, 12, 24)
"""Epochs of a training where the caller gives none: divisors of the steps of a rollout."""
VALIDATION_SHARE = 1.0 / 3.0
"""Rows of the reward half per training row."""
VALIDATION_COMMON = 4_000
"""Rows of class 0 that are kept in the reward half; each then represents several."""
GOAL_ROWS = (5_000, 1_500)
"""Rows of the goal: of class 0, and of the minority."""
GOAL_PRIOR = 5e-3
"""Smallest prior of the minority in the goal: with less, a single negative row would decide the figures."""
SIMULATED_PART = 0.35
SIMULATED = 24
"""Number of simulated transaction tables for training; as many others are held out."""


@dataclass(frozen=True)
class Goal:
    """Rows on which the reward is measured."""

    x: NDArray[np.float32]
    """(n, F) features."""
    y: NDArray[np.int64]
    """(n,) class index."""
    weight: Floats
    """(n,) how many rows each represents."""


@dataclass(frozen=True)
class Task:
    """A problem and how its students train."""

    problem: PopulationProblem
    goal: Goal
    epochs: int
    steps_per_epoch: int
    batch_size: int
    net: Literal["mlp", "transformer"]
    seed: int
    """Random seed of the students."""
    traits: dict[str, Any]
    """Properties that were drawn (kind, classes, prior, rows, ...), for tables of a policy's gains."""

    def kinds(self, groups: int, siblings: int) -> StudentKinds:
        """Kinds of students that differ widely in weight decay, dropout, width and learning rate.

        No student is so slow that it has learned nothing by the end.
        """
        wide = StudentKinds.drawn(self.seed, 0, groups, siblings, spread="wide")
        return replace(wide, learning_rate=SLOWEST * (wide.learning_rate / 1e-3) ** 0.63)


def draw_task(seed: int, index: int, split: TaskSplit = "train", *, epochs: int | None = None) -> Task:
    """Draw task ``index`` of the distribution; None draws the number of epochs too."""
    rng = generator(seed, f"task {split}", index)
    simulated = rng.random() < SIMULATED_PART
    transformer = bool(not simulated and rng.random() < TRANSFORMERS / (1 - SIMULATED_PART))
    if simulated:
        problem, goal, traits = _some_fields(*_simulated(seed, split, int(rng.integers(SIMULATED))), rng)
    else:
        problem, goal, traits = _mixture(rng, transformer)
    rows = float(problem.train_counts.sum())
    passes = _log_uniform(rng, *PASSES)
    steps = int(np.clip(passes * rows / BATCH_SIZE, *STEPS))
    if transformer:
        steps = min(steps, STEPS[1] // 4)
    epochs = int(rng.choice(EPOCHS)) if epochs is None else epochs
    steps_per_epoch = max(1, round(steps / epochs))
    drawn = epochs * steps_per_epoch * BATCH_SIZE
    traits |= {"net": "transformer" if transformer else "mlp", "passes": drawn / rows, "epochs": epochs, "steps": epochs * steps_per_epoch}
    return Task(
        problem,
        goal,
        epochs,
        steps_per_epoch,
        BATCH_SIZE,
        "transformer" if transformer else "mlp",
        integer_seed(seed, f"task students {split}", index),
        traits,
    )


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


# Mixtures --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _World:
    """The distribution of the rows of each class.

    Rows come from clusters that drift. Part of a rare class is hidden among the common class. A random layer
    maps all rows non-linearly.
    """

    centres: list[Floats]
    """For each class, (clusters, L) centres at time 0."""
    weight: list[Floats]
    """For each class, (clusters,) fraction of its rows in each cluster.

    A small cluster of the common class near a rare one holds rows that look like the rare class."""
    drift: list[Floats]
    """For each class, (clusters, L) movement of the centres until time 1."""
    spread: list[Floats]
    """For each class, (clusters,) standard deviations."""
    hidden: Floats
    """(K,) fraction of the rows of each class that come from the clusters of class 0."""
    bend: Floats
    """(L, F) matrix from latent coordinates to features."""
    bias: Floats
    """(F,) bias of the features."""
    noise: float
    """Standard deviation of the noise of the features."""
    idle: int
    """Number of uninformative features, by which single rows can be memorised."""

    def rows(self, label: NDArray[np.int64], time: Floats, rng: np.random.Generator) -> NDArray[np.float32]:
        """(n, F) features of rows of class ``label`` (n,) at ``time`` (n,)."""
        source = np.where(rng.random(len(label)) < self.hidden[label], 0, label)
        latent = np.empty((len(label), self.bend.shape[0]))
        for c, centres in enumerate(self.centres):
            rows = np.flatnonzero(source == c)
            cluster = rng.choice(len(centres), size=len(rows), p=self.weight[c])
            middle = centres[cluster] + time[rows, None] * self.drift[c][cluster]
            latent[rows] = middle + rng.normal(size=middle.shape) * self.spread[c][cluster, None]
        mixed = latent @ self.bend
        bent = np.where(np.arange(mixed.shape[1]) % 2, np.tanh(mixed + self.bias), mixed)
        noisy = bent + self.noise * rng.normal(size=bent.shape)
        return np.concatenate([noisy, rng.normal(size=(len(label), self.idle))], axis=1).astype(np.float32)


def _world(rng: np.random.Generator, classes: int, features: int, idle: int) -> _World:
    latent = int(rng.integers(2, max(3, features // 2) + 1))
    common = rng.normal(size=(int(rng.integers(2, 9)), latent)) * 1.5
    apart = _log_uniform(rng, 1.2, 6.0)
    centres, drift, spread = [common], [0.15 * rng.normal(size=common.shape)], [rng.uniform(0.6, 1.2, len(common))]
    weight = [rng.dirichlet(np.full(len(common), 0.5))]
    lookalikes, moves = rng.random() < 0.5, rng.uniform(0, 1.0)
    for _ in range(classes - 1):
        clusters = int(rng.integers(1, 5))
        direction = rng.normal(size=(clusters, latent))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        # Often near the smallest clusters of the common class: then most negatives are far away and easy, and
        # a few look like the rare class.
        near = np.argsort(weight[0])[: max(1, len(common) // 2)] if lookalikes else np.arange(len(common))
        centres.append(common[rng.choice(near, size=clusters)] + (0.5 if lookalikes else 1.0) * apart * direction)
        weight.append(rng.dirichlet(np.full(clusters, 2.0)))
        drift.append(moves * rng.normal(size=(clusters, latent)))
        spread.append(rng.uniform(0.15, 0.8, clusters))
    hidden = np.concatenate([[0.0], np.full(classes - 1, rng.choice([0.0, rng.uniform(0, 0.4)]))])
    return _World(
        centres,
        weight,
        drift,
        spread,
        hidden,
        rng.normal(size=(latent, features)) / np.sqrt(latent),
        rng.normal(size=features),
        _log_uniform(rng, 0.03, 0.3),
        idle,
    )


def _mixture(rng: np.random.Generator, transformer: bool) -> tuple[PopulationProblem, Goal, dict[str, Any]]:
    classes = 2 if rng.random() < 0.7 else int(rng.integers(3, MAX_CLASSES + 1))
    features = int(rng.integers(4, 11 if transformer else 21))
    rows = int(_log_uniform(rng, ROWS[0], ROWS[1] / (4 if transformer else 1)))
    minority = max(_log_uniform(rng, MINORITY[1], MINORITY[0]), 2.0 * FEWEST_OF_CLASS * (classes - 1) / rows)
    parts = rng.dirichlet(np.full(classes - 1, 2.0))
    prior = np.concatenate([[1.0 - minority], minority * parts])
    idle = 0 if transformer or rng.random() < 0.3 else round(_log_uniform(rng, 1, 64))
    world = _world(rng, classes, features, idle)
    flipped = float(rng.choice([0.0, rng.uniform(0.0, 0.25)]))

    train_counts = np.maximum(np.round(prior * rows), FEWEST_OF_CLASS).astype(np.int64)
    y_train = rng.permutation(np.repeat(np.arange(classes), train_counts))
    x_train = world.rows(y_train, np.linspace(0, 0.6, len(y_train)), rng)
    y_train = _noisy(y_train, flipped, rng)
    reward_counts = rng.poisson(np.maximum(prior * rows * VALIDATION_SHARE, FEWEST_OF_CLASS / 2))
    reward_counts = np.maximum(reward_counts, 4)
    kept = np.minimum(reward_counts, [VALIDATION_COMMON, *reward_counts[1:]])
    y_val = np.repeat(np.arange(classes), kept)
    x_val = world.rows(y_val, rng.uniform(0.6, 0.8, len(y_val)), rng)
    weight = np.where(y_val == 0, reward_counts[0] / kept[0], 1.0)
    y_val = _noisy(y_val, flipped, rng)
    goal_prior = prior.copy()
    if minority < GOAL_PRIOR:
        goal_prior = np.concatenate([[1.0 - GOAL_PRIOR], GOAL_PRIOR * parts])
    thinner = 3 if transformer else 1  # scoring takes ten times as long
    goal_counts = np.concatenate([[GOAL_ROWS[0]], np.maximum(np.round(GOAL_ROWS[1] * parts), 150)]).astype(np.int64) // thinner
    y_goal = np.repeat(np.arange(classes), goal_counts)
    x_goal = world.rows(y_goal, rng.uniform(0.8, 1.0, len(y_goal)), rng)
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0) + 1e-6

    def standard(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(np.clip((x - mean) / deviation, -8, 8), dtype=np.float32)

    age = np.linspace(1.0, 0.0, len(y_train), dtype=np.float32)  # the rows are in order of time
    problem = PopulationProblem(standard(x_train), y_train, standard(x_val), y_val, np.ones(len(y_train)), weight, classes, age)
    goal = Goal(standard(x_goal), y_goal, (goal_prior / goal_counts)[y_goal] * goal_counts.sum())
    traits = {
        "kind": "mixture",
        "classes": classes,
        "rows": rows,
        "minority": 1.0 - float(train_counts[0]) / len(y_train),
        "noise": flipped,
    }
    return problem, goal, traits


def _noisy(label: NDArray[np.int64], flipped: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Labels with errors: some rare rows are labelled common, and as many common rows are labelled rare."""
    label = label.copy()
    for c in range(1, int(label.max()) + 1):
        rare, common = np.flatnonzero(label == c), np.flatnonzero(label == 0)
        count = min(int(flipped * len(rare)), len(rare) - 2, len(common) // 2)
        if count > 0:
            lost, gained = rng.choice(rare, count, replace=False), rng.choice(common, count, replace=False)
            label[lost], label[gained] = 0, c
    return label


# Simulated transactions ------------------------------------------------------------------------------------


def _some_fields(
    problem: PopulationProblem, goal: Goal, traits: dict[str, Any], rng: np.random.Generator
) -> tuple[PopulationProblem, Goal, dict[str, Any]]:
    """The task with a random subset of the encoded fields, a quarter or more: poor and rich tables."""
    features = problem.x_train.shape[1]
    kept = np.sort(rng.permutation(features)[: max(6, int(rng.uniform(0.25, 1.0) * features))])
    thinner = replace(problem, x_train=problem.x_train[:, kept], x_val=problem.x_val[:, kept])
    return thinner, replace(goal, x=goal.x[:, kept]), traits | {"fields": len(kept)}


def _simulated_dataset(rows: int, rate: float, kinds: Literal["binary", "types"], seed: int) -> Dataset:
    """Simulate a table, with more fraud where a split would otherwise have none."""
    for more in (1, 2, 4):
        frame = simulate(rows, seed=seed, fraud_rate=min(more * rate, 0.2), labels=kinds)
        try:
            # The shipped policies were trained on these fields; with others the tasks would be others.
            return load_dataset(frame, resolve_spec(frame)).without_context_past()
        except MissingClassError:
            continue
    raise InputError(f"the simulator made no table of {rows} rows with fraud in every part of the split (seed {seed})")


@functools.cache
def _simulated(seed: int, split: TaskSplit, number: int) -> tuple[PopulationProblem, Goal, dict[str, Any]]:
    """A problem from the project's simulator; the goal is everything after the reward half."""
    rng = generator(seed, f"task simulated {split}", number)
    rows, rate = int(_log_uniform(rng, 10_000, 40_000)), _log_uniform(rng, 6e-3, 4e-2)
    kinds: Literal["binary", "types"] = "types" if number % 3 == 0 else "binary"
    rate = max(rate, 180 / rows * (2 if kinds == "types" else 1))
    dataset = _simulated_dataset(rows, rate, kinds, integer_seed(seed, f"task table {split}", number))
    store, classes = dataset.store, len(dataset.schema.classes)
    after = np.concatenate([dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)])
    train, reward = dataset.rows(Split.TRAIN), dataset.rows(Split.REWARD)
    # One call encodes reward and goal rows in the same way; the first rows are those of the reward half.
    both, _ = encoded_problem(
        store.values[train],
        store.label[train].astype(np.int64),
        store.values[np.concatenate([reward, after])],
        store.label[np.concatenate([reward, after])].astype(np.int64),
        num_numeric=store.num_numeric,
        num_classes=classes,
        seed=number,
        train_time=store.time[train],
        max_reward=len(reward) + len(after),
    )
    cut = len(reward)
    problem = PopulationProblem(
        both.x_train,
        both.y_train,
        both.x_val[:cut],
        both.y_val[:cut],
        both.train_weight,
        both.val_weight[:cut],
        classes,
        both.train_age,
    )
    goal = Goal(both.x_val[cut:], both.y_val[cut:], both.val_weight[cut:])
    return (
        problem,
        goal,
        {"kind": "simulated", "classes": classes, "rows": rows, "minority": float((both.y_train > 0).mean()), "noise": 0.0},
    )
