"""Targets of the auxiliary tasks: the next transaction of the same entity, or hidden fields of this one.

Targets are computed from the store when they are needed. They need no label, so unlabelled rows are used too.
A next row counts only if it is in the same split as its predecessor, so training sees nothing of the
validation and test rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from balancer.data.dataset import Dataset
from balancer.data.spec import nearest
from balancer.data.split import Split
from balancer.errors import InputError
from balancer.models import AuxiliaryTask, ModelConfig
from balancer.names import AUXILIARY_TASKS

BUCKETS = 8
"""Classes of ``next_amount`` and ``next_time``, with borders at quantiles of the training rows."""
HIDDEN = 0.5
"""Probability that a field of a row is hidden in ``masked_fields``."""


def make_task(name: str, dataset: Dataset, config: ModelConfig) -> AuxiliaryTask:
    """Make an auxiliary task; its classes come from the training rows.

    Args:
        name: One of :data:`balancer.names.AUXILIARY_TASKS`.
        dataset: A data set that has been split.
        config: Configuration of the model.

    Raises:
        InputError: There is no such task, or the table lacks what it predicts.
    """
    store, train = dataset.store, np.flatnonzero(dataset.split == Split.TRAIN)
    if name not in AUXILIARY_TASKS:
        raise InputError(f"--tasks: unknown task '{name}'; {nearest(name, AUXILIARY_TASKS)}")
    if dataset.schema.spec.entity is None and name != "masked_fields":
        raise InputError(f"--tasks {name} needs histories: name the column of the entity by --entity")
    if name == "next_category":
        if not config.categorical_fields:
            raise InputError("--tasks next_category: the table has no categorical column; name one by --categorical")
        return AuxiliaryTask(name, (config.cardinalities[0],), config.categorical_fields[:1])
    if name in ("next_amount", "next_time"):
        if name == "next_amount" and dataset.schema.spec.amount is None:
            raise InputError("--tasks next_amount: the table has no amount; name its column by --amount")
        value = store.amount[train] if name == "next_amount" else _time_to_next(dataset, train)
        value = value[np.isfinite(value)]
        edges = np.unique(np.quantile(value, np.linspace(0, 1, BUCKETS + 1)[1:-1])) if len(value) else np.zeros(0)
        if not len(edges):
            raise InputError(f"--tasks {name}: no training row is followed by another of its entity; leave the task out")
        return AuxiliaryTask(name, (len(edges) + 1,), (name,), tuple(edges.tolist()))
    # The bin of missing values, where a field has one, is its last.
    bins = (len(edges) - 1 + (name in config.missing) for name, edges in zip(config.numeric_fields, config.edges, strict=True))
    sizes = (*bins, *config.cardinalities)
    # A field of a single bin gets a second class that never occurs, because a task has at least two classes.
    return AuxiliaryTask(name, tuple(max(2, size) for size in sizes), (*config.numeric_fields, *config.categorical_fields))


def task_targets(dataset: Dataset, config: ModelConfig, task: AuxiliaryTask, rows: NDArray[np.integer]) -> NDArray[np.int64]:
    """Class indices (n, F) of a task's F targets.

    Args:
        dataset: A data set that has been split.
        config: Configuration of the model.
        task: The task.
        rows: Store rows (n,).

    Returns:
        (n, F) int64; -1 where a row has no target.
    """
    index = np.asarray(rows, dtype=np.int64)
    if task.name == "masked_fields":
        return _codes(dataset, config, index)
    after = _next(dataset, index)
    known = after >= 0
    after = np.where(known, after, index)
    if task.name == "next_fields":
        codes = _codes(dataset, config, after)
    elif task.name == "next_category":
        codes = dataset.store.values[after, dataset.store.num_numeric].astype(np.int64)[:, None]
    else:
        value = dataset.store.amount[after] if task.name == "next_amount" else dataset.store.time[after] - dataset.store.time[index]
        codes = np.searchsorted(np.asarray(task.edges), value, side="right")[:, None].astype(np.int64)
    codes[~known] = -1
    return codes


def _next(dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) the next row of the same entity in the same split; -1 where there is none."""
    store = dataset.store
    after = np.minimum(rows + 1, len(store) - 1)
    same = (after > rows) & (store.entity[after] == store.entity[rows]) & (dataset.split[after] == dataset.split[rows])
    return np.where(same, after, -1)


def _time_to_next(dataset: Dataset, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    after = _next(dataset, rows)
    return np.where(after >= 0, dataset.store.time[np.maximum(after, 0)] - dataset.store.time[rows], np.nan)


def _codes(dataset: Dataset, config: ModelConfig, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, C) the bin of each numeric field, then the categorical codes; -1 for a number without a bin."""
    values = dataset.store.values[rows]
    codes = np.empty(values.shape, dtype=np.int64)
    for column, edges in enumerate(config.edges):
        codes[:, column] = np.searchsorted(np.asarray(edges[1:-1], dtype=np.float32), values[:, column], side="left")
        codes[np.isnan(values[:, column]), column] = len(edges) - 1 if config.numeric_fields[column] in config.missing else -1
    numeric = len(config.edges)
    codes[:, numeric:] = values[:, numeric:].astype(np.int64)
    return codes
