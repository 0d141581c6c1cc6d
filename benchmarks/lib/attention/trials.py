"""Classifiers trained on whole histories of public streams, with dense and with sparse attention.

A cell is one training: stream, attention, length of the history, window, global nodes, seed, steps. Each cell
is stored in a separate file as soon as it is finished. A stopped run therefore continues where it was, two
parts of the benchmark share cells, and two processes can work at the same time. Trainings with sparse and
with dense attention differ in the attention alone: seeds, rows and their order are the same, so differences
are paired by seed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from balancer.data.dataset import Dataset
from benchmarks.lib import cells
from benchmarks.lib.checks import claim
from benchmarks.lib.sequence_trial import train_trial
from benchmarks.lib.statistics import mean_interval
from benchmarks.lib.streams import missing
from benchmarks.lib.training import load_stream

WINDOW, GLOBALS = 64, 8
SWEEP_HISTORY = 1024
WITHIN = 0.008
"""Claim: the relative loss of average precision is at most this."""
Train = Callable[..., dict[str, Any]]
Speed = Callable[[list[tuple[int, int]]], list[float]]


@dataclass(frozen=True)
class Effort:
    """Settings that all cells of a run share."""

    work: Path
    """Folder of the finished cells."""
    steps: int
    """Optimizer steps of a training."""
    warmup: float = 0.4
    """Share of the steps in which sparse attention is dense while its score learns by distillation."""
    threads: int = 1
    """CPU threads of a training."""


@dataclass(frozen=True)
class Cell:
    """One training."""

    data: str
    attention: str
    history_length: int
    attention_window: int
    num_global: int
    seed: int

    def name(self, effort: Effort) -> str:
        """Name of its file: everything that its figures depend on."""
        shape = "" if self.attention == "dense" else f"-w{self.attention_window}-k{self.num_global}-warm{effort.warmup:g}"
        return f"{self.data}-{self.attention}-h{self.history_length}{shape}-s{self.seed}-steps{effort.steps}.json"


@cache
def dataset(data: str) -> Dataset:
    """A stream, read once per process."""
    return load_stream(data)


def trained(cell: Cell, effort: Effort, train: Train = train_trial) -> dict[str, Any]:
    """The figures of a cell, from its file if it is finished."""
    file = effort.work / cell.name(effort)

    def measure() -> dict[str, Any]:
        given = asdict(cell)
        given.pop("data")
        shared = {"steps": effort.steps, "warmup": effort.warmup, "threads": effort.threads}
        result = train(dataset(cell.data), **given, **shared)
        print(f"{file.name}: AP {result['average_precision']:.4f}, {result['seconds_train']:.0f} s, pid {os.getpid()}", file=sys.stderr)
        return {"cell": asdict(cell)} | shared | result

    return cells.stored(file, measure)


def quality(data: str, histories: Iterable[int], seeds: Iterable[int], effort: Effort, train: Train = train_trial) -> dict[str, Any]:
    """Average precision of sparse minus dense attention on one stream, by length of the history."""
    reason = missing(data)
    if reason is not None:
        return {"skipped": reason}
    seeds = list(seeds)
    found = {}
    for history in histories:
        pairs = [
            [trained(Cell(data, attention, history, WINDOW, GLOBALS, seed), effort, train) for attention in ("dense", "sparse")]
            for seed in seeds
        ]
        found[str(history)] = _quality_of(pairs)
    return {
        "seeds": seeds,
        "steps": effort.steps,
        "warmup": effort.warmup,
        "window": WINDOW,
        "global_nodes": GLOBALS,
        "histories": found,
    }


def _quality_of(pairs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    columns = {name: [pair[at] for pair in pairs] for at, name in enumerate(("dense", "sparse"))}
    values = {name: [cell["average_precision"] for cell in column] for name, column in columns.items()}
    base = float(np.mean(values["dense"]))
    mean, low, high = mean_interval([sparse - dense for dense, sparse in zip(values["dense"], values["sparse"], strict=True)])
    relative = [None if end is None else end / base for end in (mean, low, high)]
    found = claim("average precision of sparse attention not more than .8 % below that of dense", relative[0], -WITHIN)
    if relative[1] is not None and relative[2] is not None and relative[1] < -WITHIN < relative[2]:
        found["holds"] += ", within noise"
    return {
        "average_precision": values,
        "mean": {name: float(np.mean(column)) for name, column in values.items()},
        "difference": {"difference": mean, "low": low, "high": high},
        "relative": {"difference": relative[0], "low": relative[1], "high": relative[2]},
        "backend": pairs[0][1]["backend"],
        "seconds_train": {name: float(np.mean([cell["seconds_train"] for cell in column])) for name, column in columns.items()},
        "claim": found,
    }


def sweep(
    data: str, windows: Iterable[int], global_nodes: Iterable[int], seed: int, effort: Effort, speed: Speed, train: Train = train_trial
) -> dict[str, Any]:
    """Average precision on one stream, and speed, by window and number of global nodes; one seed.

    Args:
        data: the stream.
        windows: windows to try, in transactions.
        global_nodes: numbers of global nodes to try.
        seed: seed of every training.
        effort: length of the trainings and the folder of finished cells.
        speed: how many times faster than dense attention each pair of window and global nodes is. It is
            called once, after the trainings, so that all pairs are timed in turns.
        train: trains one cell.
    """
    reason = missing(data)
    if reason is not None:
        return {"skipped": reason}
    shapes = list(product(windows, global_nodes))

    def precision(attention: str, window: int, num_global: int) -> float:
        cell = Cell(data, attention, SWEEP_HISTORY, window, num_global, seed)
        return float(trained(cell, effort, train)["average_precision"])

    dense = precision("dense", WINDOW, GLOBALS)
    sparse = [precision("sparse", *shape) for shape in shapes]
    points = [
        {"window": window, "global_nodes": num_global, "average_precision": value, "times_faster": times}
        for (window, num_global), value, times in zip(shapes, sparse, speed(shapes), strict=True)
    ]
    setting = {"seed": seed, "steps": effort.steps, "warmup": effort.warmup, "history": SWEEP_HISTORY}
    return setting | {"dense": {"average_precision": dense}, "points": points}
