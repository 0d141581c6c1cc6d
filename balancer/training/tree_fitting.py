"""Fit the boosted trees of a detector: first stage by folds of entities, second stage on its scores.

What is special: the first stage only has to rank, so on a large table it is fitted on all frauds and a
weighted part of the other rows, which costs nothing in quality. Where validation has too few frauds to stop
early, the number of trees is fixed and two fits are averaged: a hundred frauds have stopped a fit far too
early (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.evaluation.baselines import MAX_ROUNDS, PATIENCE, parameters_for
from balancer.inference.tree_stages import FOLDS, has_every_fold, row_folds
from balancer.sampling.seeding import generator, integer_seed

FEW_FRAUDS = 400
"""Frauds among the reward rows below which the number of trees is fixed."""
FIXED_ROUNDS = 200
"""Number of trees where it is fixed."""
SMALL_FRAUDS = 300
"""Frauds among the rows of a fit below which trees are small where their number is fixed."""
SMALL: dict[str, Any] = {"learning_rate": 0.03, "num_leaves": 8, "feature_fraction": 0.3}
"""Parameters of small trees. Larger ones would fit single frauds of the training rows
(docs/experiments.md)."""
SMALL_LEAF = 200
"""Fewest rows of a leaf of small trees, on a table of at least `ROWS_PER_LEAF` times as many rows."""
ROWS_PER_LEAF = 40
LEAST_LEAF = 20
"""Fewest rows of a leaf on any table."""
FIXED_FITS = 2
"""Fits that are averaged where the number of trees is fixed."""
KIND_ROUNDS = 100
"""Rounds of the trees that tell the kinds of fraud apart, of one tree for each kind."""
FIRST_NEGATIVES = 120_000
"""Negatives of the first stage, at most; each then represents several."""
STOP_NEGATIVES = 200_000
"""Negatives by which the first stage stops early, at most."""
LEAST_FRAUDS = 10
"""Frauds that every fold must have, where a detector with trees is asked for."""
ENOUGH_FRAUDS = 50
"""Frauds that every fold must have, where nothing is said; with fewer the network alone has been better."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TreeRows:
    """Rows of one fit."""

    rows: NDArray[np.int64]
    """(n,) store rows."""
    weight: NDArray[np.float64] | None
    """(n,) number of rows that each represents; None: 1."""


def enough_frauds(dataset: Dataset, least: int) -> bool:
    """Whether every fold of the training rows has ``least`` frauds and as many other rows."""
    rows = dataset.rows(Split.TRAIN)
    return has_every_fold(row_folds(dataset)[rows], dataset.store.label[rows] > 0, FOLDS, least)


def too_few(dataset: Dataset, least: int) -> str:
    """Say that a fold of the training rows has fewer than ``least`` frauds or other rows, and how many."""
    rows = dataset.rows(Split.TRAIN)
    fold, fraud = row_folds(dataset)[rows], dataset.store.label[rows] > 0
    frauds, others = (min(int((kind & (fold == number)).sum()) for number in range(FOLDS)) for kind in (fraud, ~fraud))
    found, kind = (frauds, "frauds") if frauds < least else (others, "legitimate rows")
    return f"a fold of the training rows has fewer than {least} {kind} ({found}, and each of the {FOLDS} folds needs {least})"


def train_frauds(dataset: Dataset) -> int:
    """Number of frauds among the training rows."""
    return int((dataset.store.label[dataset.rows(Split.TRAIN)] > 0).sum())


def few_frauds(dataset: Dataset) -> bool:
    """Whether the reward rows have too few frauds to stop a fit early."""
    return int((dataset.store.label[dataset.rows(Split.REWARD)] > 0).sum()) < FEW_FRAUDS


def fit_fold(dataset: Dataset, number: int, *, seed: int, threads: int, progress: Progress) -> str:
    """Fit the first stage of one fold on the training rows of the other folds.

    Args:
        dataset: The data set without score fields.
        number: The fold.
        seed: Random seed.
        threads: Threads of LightGBM.
        progress: Called after each tree with (trees so far, most trees).

    Returns:
        The trees in LightGBM's text format.
    """
    label = dataset.store.label
    train = dataset.rows(Split.TRAIN)
    inside = train[row_folds(dataset)[train] != number]
    rows = _thinned(inside, label, FIRST_NEGATIVES, generator(seed, "first stage", number))
    stop = None
    if not few_frauds(dataset):
        stop = _thinned(dataset.rows(Split.REWARD), label, STOP_NEGATIVES, generator(seed, "first stage stop"))
    return fit_rows(dataset, rows, stop, seed=integer_seed(seed, "first stage", number), threads=threads, progress=progress)


def fit_second(dataset: Dataset, member: int, *, seed: int, threads: int, progress: Progress) -> str:
    """Fit a member of the second stage on all training rows.

    Args:
        dataset: The data set with filled score fields.
        member: Number of the member; members differ in their seed only.
        seed: Random seed.
        threads: Threads of LightGBM.
        progress: Called after each tree with (trees so far, most trees).

    Returns:
        The trees in LightGBM's text format.
    """
    stop = None if few_frauds(dataset) else TreeRows(dataset.rows(Split.REWARD), None)
    rows = TreeRows(dataset.rows(Split.TRAIN), None)
    return fit_rows(dataset, rows, stop, seed=integer_seed(seed, "second stage", member), threads=threads, progress=progress)


def second_members(dataset: Dataset) -> int:
    """Number of members of the second stage."""
    return FIXED_FITS if few_frauds(dataset) else 1


def fit_kinds(dataset: Dataset, *, seed: int, threads: int, progress: Progress = lambda *_: None) -> str:
    """Fit trees that tell the kinds of fraud apart, on the frauds of the training rows.

    Args:
        dataset: The data set with filled score fields and more than two classes.
        seed: Random seed.
        threads: Threads of LightGBM.
        progress: Called after each round, of one tree for each kind, with (rounds so far, most rounds).

    Returns:
        The trees in LightGBM's text format.
    """
    rows = dataset.rows(Split.TRAIN)
    frauds = rows[dataset.store.label[rows] > 0]
    changes = {"objective": "multiclass", "num_class": len(dataset.schema.classes) - 1, "metric": "multi_logloss", "min_data_in_leaf": 5}
    target = (dataset.store.label[frauds] - 1).astype(np.float32)
    changes |= {"seed": integer_seed(seed, "kinds")}
    return _train(dataset, TreeRows(frauds, None), target, None, changes, threads, KIND_ROUNDS, progress)


def fit_rows(dataset: Dataset, rows: TreeRows, stop: TreeRows | None, *, seed: int, threads: int, progress: Progress) -> str:
    """Fit trees that tell fraud from other rows.

    Args:
        dataset: Its fields are read.
        rows: Rows to fit.
        stop: Rows by which the fit stops early; None: the number of trees is fixed.
        seed: Random seed.
        threads: Threads of LightGBM.
        progress: Called after each tree with (trees so far, most trees).

    Returns:
        The trees in LightGBM's text format.
    """
    target = (dataset.store.label[rows.rows] > 0).astype(np.float32)
    if stop is not None:
        return _train(dataset, rows, target, stop, {"seed": seed}, threads, MAX_ROUNDS, progress)
    changes: dict[str, Any] = {"seed": seed}
    if int(target.sum()) < SMALL_FRAUDS:
        leaf = min(SMALL_LEAF, max(LEAST_LEAF, len(rows.rows) // ROWS_PER_LEAF))
        changes |= SMALL | {"min_data_in_leaf": leaf}
    return _train(dataset, rows, target, None, changes, threads, FIXED_ROUNDS, progress)


def _train(
    dataset: Dataset,
    rows: TreeRows,
    target: NDArray[np.float32],
    stop: TreeRows | None,
    changes: dict[str, Any],
    threads: int,
    rounds: int,
    progress: Progress,
) -> str:
    import lightgbm as lgb

    store = dataset.store
    frauds = int((store.label[rows.rows] > 0).sum())
    parameters = parameters_for(frauds) | {"num_threads": threads} | changes
    names = [*dataset.schema.numeric_fields, *dataset.schema.categorical_fields]
    data = lgb.Dataset(
        store.values[rows.rows],
        label=target,
        weight=rows.weight,
        feature_name=[f"field_{number}" for number in range(len(names))],  # LightGBM refuses some characters in names
        categorical_feature=list(range(store.num_numeric, store.values.shape[1])),
        params=parameters,
    )
    callbacks: list[Callable[..., Any]] = [lambda env: progress(env.iteration + 1, rounds)]
    valid = []
    if stop is not None:
        label = (store.label[stop.rows] > 0).astype(np.float32)
        valid.append(data.create_valid(store.values[stop.rows], label=label, weight=stop.weight))
        callbacks.append(lgb.early_stopping(PATIENCE, verbose=False))
    booster = lgb.train(parameters, data, rounds, valid_sets=valid, callbacks=callbacks)
    return str(booster.model_to_string(num_iteration=booster.best_iteration if stop is not None else rounds))


def _thinned(rows: NDArray[np.int64], label: NDArray[np.int16], most: int, rng: np.random.Generator) -> TreeRows:
    """All frauds of ``rows`` and at most ``most`` others, which represent the others that are left out."""
    frauds, others = rows[label[rows] > 0], rows[label[rows] == 0]
    if len(others) <= most:
        return TreeRows(rows, None)
    kept = rng.choice(others, most, replace=False)
    chosen = np.sort(np.concatenate([frauds, kept]))
    return TreeRows(chosen, np.where(label[chosen] > 0, 1.0, len(others) / most))
