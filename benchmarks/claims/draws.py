"""How many draws sampling with compensation needs to be as good as other treatments at full budget.

The small network of the population is trained on two public streams, over rolling windows of time, with 100
to 1,600 mini-batches of 128 rows. The learning rate falls to zero within each budget. For each stream the
result holds the average precision on the test rows of every treatment at every budget, and for each other
treatment the smallest budget at which `auto` reaches what that treatment has at the full budget. Under
`best_epoch` stand the same figures with every student scored as it was after the epoch with its best average
precision on the reward rows, and not as it was after the last.

Claim: `auto` reaches the average precision that no resampling, 1:1 over-sampling and logit adjustment have at
the full budget with at least three times fewer draws, on each stream.

    python -m benchmarks.claims.draws         # -> benchmarks/results/draws.json
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from rich.console import Console

from balancer.comparison.fold_training import trained_cells
from balancer.comparison.folds import FoldedTable
from balancer.comparison.population import PopulationFold, PopulationTrainer
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, record, recorded
from benchmarks.lib.streams import PUBLIC, STREAMS, missing

OTHERS = ("none", "one_to_one", "logit_adjustment")
BUDGETS = (100, 200, 400, 800, 1600)
"""Mini-batches of a training."""
EPOCHS, BATCH_SIZE = 10, 128
LEAST = 3.0
"""How many times fewer draws are claimed."""


def measure(name: str, arguments: argparse.Namespace, console: Console, *, keep_best: bool) -> dict[str, Any]:
    """Average precision of every treatment at every budget on one stream, and what follows from it."""
    first_seed = arguments.first_seed
    treatments = (*OTHERS, "auto")
    table = FoldedTable(STREAMS[name].table, folds=arguments.folds, spec_file=STREAMS[name].spec)
    figures: dict[str, dict[int, list[float]]] = {treatment: {budget: [] for budget in BUDGETS} for treatment in treatments}
    for fold in table.folds:
        encoded = PopulationFold.of(table.load(fold), first_seed)
        for budget in BUDGETS:
            trainer = PopulationTrainer(
                encoded, epochs=EPOCHS, steps_per_epoch=budget // EPOCHS, batch_size=BATCH_SIZE, keep_best=keep_best
            )
            for seed in range(first_seed, first_seed + arguments.seeds):
                for treatment, cell in trained_cells(trainer, encoded.evaluated, treatments, seed, trials=1, tick=lambda text: None):
                    figures[treatment][budget].append(cell["average_precision"])
        kept = "best" if keep_best else "last"
        console.print(f"{name}, {kept} epoch, window {fold.index + 1} of {len(table.folds)} done", highlight=False)
    means = {treatment: {budget: float(np.mean(values)) for budget, values in by.items()} for treatment, by in figures.items()}
    return {
        "average_precision": {treatment: {str(b): round(v, 4) for b, v in by.items()} for treatment, by in means.items()},
        "fewer_draws": {other: fewer_draws(means["auto"], means[other]) for other in OTHERS},
    }


def epochs_kept(name: str, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The figures of the last epoch, and under ``best_epoch`` those of the epoch that validation prefers."""
    last, best = (measure(name, arguments, console, keep_best=kept) for kept in (False, True))
    return last | {"best_epoch": best}


def fewer_draws(ours: dict[int, float], other: dict[int, float]) -> dict[str, Any]:
    """The smallest budget at which ``ours`` reaches ``other`` at its full budget, and the ratio of the two.

    Args:
        ours: Average precision by number of mini-batches.
        other: The same of another treatment.
    """
    full = max(other)
    enough = [budget for budget in sorted(ours) if ours[budget] >= other[full]]
    factor = full / enough[0] if enough else None
    return {"mini_batches": enough[0] if enough else None, "of": full, "times_fewer": factor, "holds": bool(factor and factor >= LEAST)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=PUBLIC, default=list(PUBLIC), help="streams to measure")
    options.add_argument("--folds", type=int, default=5, help="rolling windows of time")
    options.add_argument("--seeds", type=int, default=2, help="seeds per window")
    options.add_argument("--first-seed", type=int, default=200, help="first seed")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    console, path = Console(stderr=True), RESULTS / "draws.json"
    for name in arguments.only:
        reason = missing(name)
        if reason is not None:
            print(reason)
            continue
        results = recorded(path).get("streams", {}) | {name: epochs_kept(name, arguments, console)}
        budget = {"folds": arguments.folds, "seeds": arguments.seeds, "first_seed": arguments.first_seed, "batch_size": BATCH_SIZE}
        record(budget | {"streams": results}, path)


if __name__ == "__main__":
    main()
