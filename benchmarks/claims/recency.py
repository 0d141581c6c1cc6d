"""What it is worth to draw recent rows more often, on two public streams and on held-out tasks with drift.

The constant of the package is trained with half-lives from one span of the training rows down to an eighth
of it, and without one. Half-lives are compared on the same random numbers. The tasks are those of
``balancer.envs.tasks``: mixtures with drifting centres and simulated transactions, whose goal lies after the
training rows.

    python -m benchmarks.claims.recency         # -> benchmarks/results/recency.json
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from rich.console import Console

from balancer.comparison.fold_training import trained_cells
from balancer.comparison.folds import FoldedTable
from balancer.comparison.population import PopulationFold, PopulationTrainer
from balancer.policy_learning.comparison import compare_on_tasks
from balancer.sampling.constant_policy import COMPENSATED
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, record, recorded
from benchmarks.lib.streams import PUBLIC, STREAMS, missing

HALF_LIVES = (1.0, 0.5, 0.25, 0.125)
NONE = "no half-life"
EPOCHS, STEPS, BATCH_SIZE = 10, 40, 128


def treatments() -> dict[str, str]:
    """Name in the result to treatment: the constant of the package, and the same with each half-life."""
    constant = f"constant:share=third,hardness={COMPENSATED.hardness:g},class_importance={COMPENSATED.class_importance:g}"
    return {NONE: constant} | {f"half-life {half_life:g}": f"{constant},half_life={half_life:g}" for half_life in HALF_LIVES}


def on_stream(name: str, folds: int, seeds: int, first_seed: int) -> dict[str, Any]:
    """Average precision on the test rows by half-life, and the paired difference to none, over windows."""
    names = treatments()
    table = FoldedTable(STREAMS[name].table, folds=folds, spec_file=STREAMS[name].spec)
    figures: dict[str, list[list[float]]] = {treatment: [] for treatment in names.values()}
    for fold in table.folds:
        encoded = PopulationFold.of(table.load(fold), first_seed)
        trainer = PopulationTrainer(encoded, epochs=EPOCHS, steps_per_epoch=STEPS, batch_size=BATCH_SIZE)
        for values in figures.values():
            values.append([])
        for seed in range(first_seed, first_seed + seeds):
            for treatment, cell in trained_cells(trainer, encoded.evaluated, tuple(figures), seed, trials=1, tick=lambda text: None):
                figures[treatment][-1].append(cell["average_precision"])
    by_fold = {label: np.mean(figures[treatment], axis=1) for label, treatment in names.items()}
    return {label: _against(values, by_fold[NONE]) for label, values in by_fold.items()}


def on_tasks(number: int) -> dict[str, Any]:
    """The same on the goal of held-out tasks, over tasks."""
    policies = [dataclasses.replace(COMPENSATED, name=NONE)]
    policies += [dataclasses.replace(COMPENSATED, half_life=half_life, name=f"half-life {half_life:g}") for half_life in HALF_LIVES]
    compared = compare_on_tasks(policies, number, seed=5)
    values = compared.figures["average_precision"]
    return {name: _against(values[:, i], values[:, 0]) for i, name in enumerate(compared.policies)}


def _against(values: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    """Mean, mean paired difference to the reference, and its standard error."""
    difference = values - reference
    error = float(difference.std(ddof=1) / np.sqrt(len(difference))) if len(difference) > 1 else None
    return {
        "average_precision": round(float(values.mean()), 4),
        "difference": round(float(difference.mean()), 4),
        "standard_error": None if error is None else round(error, 4),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--folds", type=int, default=5, help="rolling windows of time")
    options.add_argument("--seeds", type=int, default=3, help="seeds per window")
    options.add_argument("--first-seed", type=int, default=300, help="first seed")
    options.add_argument("--tasks", type=int, default=40, help="held-out tasks")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    console, path = Console(stderr=True), RESULTS / "recency.json"
    budget = {name: getattr(arguments, name) for name in ("folds", "seeds", "first_seed", "tasks")}
    for name in (*PUBLIC, "tasks"):
        reason = None if name == "tasks" else missing(name)
        if reason is not None:
            print(reason)
            continue
        measured = on_tasks(arguments.tasks) if name == "tasks" else on_stream(name, arguments.folds, arguments.seeds, arguments.first_seed)
        record(budget | {"parts": recorded(path).get("parts", {}) | {name: measured}}, path)
        console.print(f"{name} done", highlight=False)


if __name__ == "__main__":
    main()
