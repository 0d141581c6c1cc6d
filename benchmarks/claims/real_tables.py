"""Fourteen real tables and ten made ones: `auto` with default settings against the best fixed treatment.

Claim: for each table and learner, against the fixed treatment that is best in hindsight, by its average
precision on the test rows, `auto` wins or ties on at least 90 %, and loses at most once.

The verdict is a tie where the 95 % interval of the paired difference over ten random splits includes 0. The
splits share rows, so a plain interval would be too narrow. It is the corrected resampled t interval (Nadeau
and Bengio, 2003, "Inference for the generalization error"): the variance of the mean of n differences is
their variance times 1/n + (test rows / training rows). The best of several treatments by their test rows is
flattered, more so on small tables.

Finished pairs of table and learner are kept, so a stopped run continues.

    python -m benchmarks.claims.real_tables         # -> benchmarks/results/real_tables.json
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.lib.commands import parser
from benchmarks.lib.made_tables import MADE
from benchmarks.lib.recording import RESULTS, record, recorded, rounded
from benchmarks.lib.statistics import corrected_interval
from benchmarks.lib.table_learners import LEARNERS
from benchmarks.lib.tables import REAL, TEST, TRAIN, TableFold, real_table

FIGURES = ("average_precision", "f1", "ece")
TABLES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {name: partial(real_table, name) for name in REAL} | MADE


def measure(name: str, learner: str, splits: int) -> dict[str, Any]:
    """Train a learner under every treatment on splits of a table; compare ``auto`` with the best fixed."""
    x, y = TABLES[name]()
    figures: dict[str, list[dict[str, float]]] = {}
    for split in range(splits):
        fold = TableFold.of(x, y, split)
        for treatment, scores in LEARNERS[learner].train(fold):
            figures.setdefault(treatment, []).append(fold.figures(*scores))
    values = {treatment: {key: np.array([each[key] for each in cells]) for key in FIGURES} for treatment, cells in figures.items()}
    fixed = [treatment for treatment in values if treatment != "auto"]
    against = {treatment: compared(values["auto"]["average_precision"], values[treatment]["average_precision"]) for treatment in fixed}
    best = max(fixed, key=lambda treatment: values[treatment]["average_precision"].mean())
    return {
        "rows": len(y),
        "rare": {str(c): int((y == c).sum()) for c in range(1, int(y.max()) + 1)},
        "splits": splits,
        "best_fixed": best,
        "verdict": against[best]["verdict"],
        "difference": {key: against[best][key] for key in ("difference", "low", "high")},
        "means": {treatment: {key: float(each[key].mean()) for key in FIGURES} for treatment, each in values.items()},
        "against": against,
    }


def compared(value: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Mean difference over the splits with its interval, and the verdict for ``value``."""
    mean, low, high = corrected_interval((value - base).tolist(), TEST / TRAIN)
    verdict = "tie" if low is None or high is None or low <= 0 <= high else "win" if low > 0 else "loss"
    return {"verdict": verdict, "difference": mean, "low": low, "high": high}


def summary(tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Number of wins, ties and losses, by learner and of all."""
    found: dict[str, dict[str, int]] = {}
    for learner in (*LEARNERS, "all"):
        verdicts = [result["verdict"] for results in tables.values() for key, result in results.items() if learner in (key, "all")]
        found[learner] = {verdict: verdicts.count(verdict) for verdict in ("win", "tie", "loss")}
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--splits", type=int, default=10, help="random splits per table")
    options.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES), help="tables to measure")
    options.add_argument("--learners", nargs="+", choices=list(LEARNERS), default=list(LEARNERS), help="learners to train")
    options.add_argument("--again", action="store_true", help="measure pairs again that are recorded already")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "real_tables.json"
    results: dict[str, dict[str, Any]] = recorded(path).get("tables", {})
    for name in arguments.only:
        for learner in arguments.learners:
            done = results.setdefault(name, {})
            if learner in done and done[learner]["splits"] == arguments.splits and not arguments.again:
                continue
            done[learner] = rounded(measure(name, learner, arguments.splits), 4)
            tables = {key: results[key] for key in TABLES if results.get(key)}
            record({"auto_against_the_best_fixed": summary(tables), "tables": tables}, path)


if __name__ == "__main__":
    main()
