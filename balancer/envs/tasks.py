"""A distribution of imbalanced problems to learn a sampling policy on, so that it serves tables it has never seen.

What decides how to sample differs from table to table: how rare the rare classes are, how much they overlap with the common one, how many
rows of them can't be told apart at all, whether the learner is weak or strong enough to memorise them, and how long it trains. So all of
these are drawn (domain randomisation): problems where hardness is everything, where the share hardly matters, and where each repeat of a
rare row does harm. One task in eight is the project's own transaction simulator, one in ten trains small transformers; the others are
mixtures of Gaussians, bent, with drifting centres.

Students are watched on a validation sample as small as a real one, but *paid* on a large sample of the task's future (the goal): the
policy sees the noise of real life, its reward has little of it.

Task ``index`` is a function of (seed, split, index); ``heldout`` tasks share no random number with those of training.
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
from balancer.envs.problem import PopulationProblem, problem_from_arrays
from balancer.errors import InputError, MissingClassError
from balancer.sampling.seeding import generator, integer_seed
from balancer.sampling.weights import Floats

TaskSplit = Literal["train", "heldout"]
MAX_CLASSES = 10
ROWS = (1_000, 200_000)
"""Training rows, log-uniform."""
MINORITY = (1.0 / 3.0, 1e-3)
"""Prior of the classes other than the first together."""
FEWEST_OF_CLASS = 16
"""Training rows of a class, at the least: with fewer nothing can be learned."""
PASSES = (0.3, 20.0)
"""Rows drawn in a training per row of the table, log-uniform; then bounded by STEPS."""
STEPS = (100, 800)
"""Mini-batches of a training."""
BATCH_SIZE = 128
SLOWEST = 3e-3
"""Lowest learning rate of a student."""
TRANSFORMERS = 1 / 10
EPOCHS = (6, 8, 12, 24)
"""Epochs of a training, where the caller leaves them open: the divisors of a rollout."""
VALIDATION_SHARE = 1.0 / 3.0
"""Rows of the reward half per training row."""
VALIDATION_COMMON = 4_000
"""Rows of the first class kept in it; each then stands for several."""
GOAL_ROWS = (5_000, 1_500)
"""Rows of the goal: of the first class, and of the others together."""
GOAL_PRIOR = 5e-3
"""The goal counts its rare classes for no less than this: beyond, one row of the common class would decide everything."""
SIMULATED_PART = 0.35
SIMULATED = 24
"""Simulated transaction tables that training knows; as many others are held out."""


@dataclass(frozen=True)
class Goal:
    """Rows that the reward is measured on."""

    x: NDArray[np.float32]
    """(n, F)."""
    y: NDArray[np.int64]
    """(n,)."""
    weight: Floats
    """(n,) how many rows each stands for."""


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
    """Of the students."""
    traits: dict[str, Any]
    """What was drawn, for tables and for telling where a policy gains: kind, classes, prior, rows, repeats and the like."""

    def kinds(self, groups: int, siblings: int) -> StudentKinds:
        """Students of wide variety in weight decay, dropout, width and learning rate; none so slow that it has learned nothing by the end."""
        wide = StudentKinds.drawn(self.seed, 0, groups, siblings, spread="wide")
        return replace(wide, learning_rate=SLOWEST * (wide.learning_rate / 1e-3) ** 0.63)


def draw_task(seed: int, index: int, split: TaskSplit = "train", *, epochs: int | None = None) -> Task:
    """Task ``index`` of the distribution; ``epochs`` of its training, or as drawn."""
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


# Mixtures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _World:
    """Where the rows of each class come from: clusters that drift, part of a rare class hidden among the common one, all bent by a random layer."""

    centres: list[Floats]
    """Per class (clusters, L) at time 0."""
    weight: list[Floats]
    """Per class (clusters,) part of its rows; a small cluster of the common class near a rare one is its look-alikes."""
    drift: list[Floats]
    """Per class (clusters, L) how far a centre moves until time 1."""
    spread: list[Floats]
    """Per class (clusters,)."""
    hidden: Floats
    """(K,) part of a class's rows that come from the first class's clusters."""
    bend: Floats
    """(L, F) mixing of the latent coordinates into features."""
    bias: Floats
    """(F,)."""
    noise: float
    idle: int
    """Features that tell nothing, but by which single rows can be memorised."""

    def rows(self, label: NDArray[np.int64], time: Floats, rng: np.random.Generator) -> NDArray[np.float32]:
        """(n, F) features of rows of class ``label`` (n,) at ``time`` (n,)."""
        source = np.where(rng.random(len(label)) < self.hidden[label], 0, label)
        latent = np.empty((len(label), self.bend.shape[0]))
        for c, centres in enumerate(self.centres):
            own = np.flatnonzero(source == c)
            cluster = rng.choice(len(centres), size=len(own), p=self.weight[c])
            middle = centres[cluster] + time[own, None] * self.drift[c][cluster]
            latent[own] = middle + rng.normal(size=middle.shape) * self.spread[c][cluster, None]
        mixed = latent @ self.bend
        bent = np.where(np.arange(mixed.shape[1]) % 2, np.tanh(mixed + self.bias), mixed)
        told = bent + self.noise * rng.normal(size=bent.shape)
        return np.concatenate([told, rng.normal(size=(len(label), self.idle))], axis=1).astype(np.float32)


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
        # Often near the rarest kinds of the common class: most of that is far away and easy, a few of its rows are look-alikes.
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
    thinner = 3 if transformer else 1  # scoring one costs ten times as much
    goal_counts = np.concatenate([[GOAL_ROWS[0]], np.maximum(np.round(GOAL_ROWS[1] * parts), 150)]).astype(np.int64) // thinner
    y_goal = np.repeat(np.arange(classes), goal_counts)
    x_goal = world.rows(y_goal, rng.uniform(0.8, 1.0, len(y_goal)), rng)
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0) + 1e-6

    def standard(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(np.clip((x - mean) / deviation, -8, 8), dtype=np.float32)

    problem = PopulationProblem(standard(x_train), y_train, standard(x_val), y_val, np.ones(len(y_train)), weight, classes)
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
    """Labels of which a part is wrong: rare rows reported as common, and as many common ones as rare."""
    label = label.copy()
    for c in range(1, int(label.max()) + 1):
        own, common = np.flatnonzero(label == c), np.flatnonzero(label == 0)
        count = min(int(flipped * len(own)), len(own) - 2, len(common) // 2)
        if count > 0:
            lost, gained = rng.choice(own, count, replace=False), rng.choice(common, count, replace=False)
            label[lost], label[gained] = 0, c
    return label


# Simulated transactions -----------------------------------------------------------------------------------------------


def _some_fields(
    problem: PopulationProblem, goal: Goal, traits: dict[str, Any], rng: np.random.Generator
) -> tuple[PopulationProblem, Goal, dict[str, Any]]:
    """A quarter of the encoded fields or more: poor and rich tables from the same transactions."""
    features = problem.x_train.shape[1]
    kept = np.sort(rng.permutation(features)[: max(6, int(rng.uniform(0.25, 1.0) * features))])
    thinner = replace(problem, x_train=problem.x_train[:, kept], x_val=problem.x_val[:, kept])
    return thinner, replace(goal, x=goal.x[:, kept]), traits | {"fields": len(kept)}


def _simulated_dataset(rows: int, rate: float, kinds: Literal["binary", "types"], seed: int) -> Dataset:
    """Simulated table; one with more fraud where a part of the split came out without any."""
    for more in (1, 2, 4):
        frame = simulate(rows, seed=seed, fraud_rate=min(more * rate, 0.2), labels=kinds)
        try:
            return load_dataset(frame, resolve_spec(frame))
        except MissingClassError:
            continue
    raise InputError(f"the simulator made no table of {rows} rows with fraud in every part of the split (seed {seed})")


@functools.cache
def _simulated(seed: int, split: TaskSplit, number: int) -> tuple[PopulationProblem, Goal, dict[str, Any]]:
    """Transactions of the project's simulator, seen by the target rows' own fields; the goal is everything after the reward half."""
    rng = generator(seed, f"task simulated {split}", number)
    rows, rate = int(_log_uniform(rng, 10_000, 40_000)), _log_uniform(rng, 6e-3, 4e-2)
    kinds: Literal["binary", "types"] = "types" if number % 3 == 0 else "binary"
    rate = max(rate, 180 / rows * (2 if kinds == "types" else 1))
    dataset = _simulated_dataset(rows, rate, kinds, integer_seed(seed, f"task table {split}", number))
    store, classes = dataset.store, len(dataset.schema.classes)
    after = np.concatenate([dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)])
    train, reward = dataset.rows(Split.TRAIN), dataset.rows(Split.REWARD)
    # One call encodes reward and goal rows alike; which is which is told by their number.
    both = problem_from_arrays(
        store.values[train],
        store.label[train].astype(np.int64),
        store.values[np.concatenate([reward, after])],
        store.label[np.concatenate([reward, after])].astype(np.int64),
        num_numeric=store.num_numeric,
        num_classes=classes,
        seed=number,
        max_reward=len(reward) + len(after),
    )
    cut = len(reward)
    problem = PopulationProblem(
        both.x_train, both.y_train, both.x_val[:cut], both.y_val[:cut], both.train_weight, both.val_weight[:cut], classes
    )
    goal = Goal(both.x_val[cut:], both.y_val[cut:], both.val_weight[cut:])
    return (
        problem,
        goal,
        {"kind": "simulated", "classes": classes, "rows": rows, "minority": float((both.y_train > 0).mean()), "noise": 0.0},
    )
