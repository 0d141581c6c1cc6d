"""Classifiers trained on whole histories of public streams, dense against sparse attention, cell by cell; measures for attention.py.

A cell is one training: data, attention, history, window, global nodes, seed, steps. Each lies in a file of its own as soon as it is done, so a killed run goes on
where it was, the two parts share cells, and two processes can work side by side. Sparse and dense training differ in the attention alone: seeds, rows and
their order are the same, so differences are paired by seed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from attention_timing import claim
from main_job import DATASETS
from scipy import stats

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.files import write_text
from balancer.training.sequence_trial import train_trial

STREAMS = ("handbook", "sparkov")
WINDOW, GLOBALS = 64, 8
SWEEP_HISTORY = 1024
WITHIN = 0.008
"""Wanted: the relative loss of average precision is no larger."""
Train = Callable[..., dict[str, Any]]
Speed = Callable[[list[tuple[int, int]]], list[float]]


@dataclass(frozen=True)
class Effort:
    """What every cell of a run shares."""

    work: Path
    """Folder of finished cells."""
    steps: int
    """Optimizer steps of a training."""
    warmup: float = 0.4
    """Share of them in which sparse attention is dense and its score learns by distillation."""
    threads: int = 1
    """Of a training."""


@dataclass(frozen=True)
class Cell:
    """One training."""

    data: str
    attention: str
    history: int
    window: int
    num_global: int
    seed: int

    def name(self, effort: Effort) -> str:
        """Of its file: everything that its figures depend on."""
        shape = "" if self.attention == "dense" else f"-w{self.window}-k{self.num_global}-warm{effort.warmup:g}"
        return f"{self.data}-{self.attention}-h{self.history}{shape}-s{self.seed}-steps{effort.steps}.json"


@cache
def dataset(data: str) -> Dataset:
    """A stream; read once a process."""
    table, spec, _ = DATASETS[data]
    return load_dataset(table, resolve_spec(table, spec_file=spec))


def absent(data: str) -> str | None:
    """Why a stream can't be trained on, or None."""
    if DATASETS[data][0].is_file():
        return None
    return f"{data}/transactions.parquet is not there: these public streams are fetched apart from the repository"


def trained(cell: Cell, effort: Effort, train: Train = train_trial) -> dict[str, Any]:
    """The figures of a cell, from its file where it is finished."""
    file = effort.work / cell.name(effort)
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    given = asdict(cell)
    given.pop("data")
    result = train(dataset(cell.data), **given, steps=effort.steps, warmup=effort.warmup, threads=effort.threads)
    effort.work.mkdir(parents=True, exist_ok=True)
    content = {"cell": asdict(cell), "steps": effort.steps, "warmup": effort.warmup, "threads": effort.threads} | result
    write_text(file, json.dumps(content, indent=2) + "\n")
    print(f"{file.name}: AP {result['average_precision']:.4f}, {result['seconds_train']:.0f} s, pid {os.getpid()}", file=sys.stderr)
    return content


def quality(data: str, histories: Iterable[int], seeds: Iterable[int], effort: Effort, train: Train = train_trial) -> dict[str, Any]:
    """Average precision of sparse less that of dense attention on one stream, by history, over seeds."""
    missing = absent(data)
    if missing is not None:
        return {"skipped": missing}
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
    values = {name: [pair[at]["average_precision"] for pair in pairs] for at, name in enumerate(("dense", "sparse"))}
    base = float(np.mean(values["dense"]))
    mean, low, high = interval(np.array(values["sparse"]) - np.array(values["dense"]))
    relative = [None if end is None else end / base for end in (mean, low, high)]
    found = claim("average precision of sparse attention not more than .8 % below that of dense", relative[0], -WITHIN)
    if relative[1] is not None and relative[2] is not None and relative[1] < -WITHIN < relative[2]:
        found["holds"] += ", within noise"
    return {
        "average_precision": values,
        "mean": {name: float(np.mean(own)) for name, own in values.items()},
        "difference": {"difference": mean, "low": low, "high": high},
        "relative": {"difference": relative[0], "low": relative[1], "high": relative[2]},
        "backend": pairs[0][1]["backend"],
        "seconds_train": {
            name: float(np.mean([pair[at]["seconds_train"] for pair in pairs])) for at, name in enumerate(("dense", "sparse"))
        },
        "claim": found,
    }


def interval(differences: np.ndarray) -> tuple[float, float | None, float | None]:
    """Mean of paired differences with its 95 % interval by Student's t, None where there is one only."""
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, None, None
    reach = float(stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5)
    return mean, mean - reach, mean + reach


def sweep(
    data: str, windows: Iterable[int], global_nodes: Iterable[int], seed: int, effort: Effort, speed: Speed, train: Train = train_trial
) -> dict[str, Any]:
    """Average precision on one stream, and speed, by window and number of global nodes; one seed.

    ``speed`` gives the times faster than dense of pairs of window and global nodes: all measured in turns, when the trainings are done.
    """
    missing = absent(data)
    if missing is not None:
        return {"skipped": missing}
    shapes = list(product(windows, global_nodes))
    dense = trained(Cell(data, "dense", SWEEP_HISTORY, WINDOW, GLOBALS, seed), effort, train)["average_precision"]
    precision = [
        trained(Cell(data, "sparse", SWEEP_HISTORY, window, num_global, seed), effort, train)["average_precision"]
        for window, num_global in shapes
    ]
    points = [
        {"window": window, "global_nodes": num_global, "average_precision": own, "times_faster": times}
        for (window, num_global), own, times in zip(shapes, precision, speed(shapes), strict=True)
    ]
    about = {"seed": seed, "steps": effort.steps, "warmup": effort.warmup, "history": SWEEP_HISTORY}
    return about | {"dense": {"average_precision": dense}, "points": points}
