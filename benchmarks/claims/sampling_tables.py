"""Ten tables of scikit-learn and imbalanced-learn: `auto`, trained on none of them, against fixed treatments.

Claim: against the best fixed treatment of each table, chosen by its figures on the test rows, `auto` wins or
ties on most tables. A tie is a difference whose 95 % interval over the splits includes 0. The splits of a
table share rows, so the intervals are a little too narrow: some ties are counted as wins or losses.

    python -m benchmarks.claims.sampling_tables         # -> benchmarks/results/sampling_tables.json
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from imblearn.datasets import make_imbalance
from sklearn.datasets import load_breast_cancer, load_digits, make_classification, make_hastie_10_2, make_moons
from sklearn.model_selection import train_test_split

from balancer.comparison.figures import EvaluatedRows
from balancer.comparison.population import PopulationFold, PopulationTrainer
from balancer.comparison.running import trained_cells
from balancer.comparison.statistics import means, paired
from balancer.envs.problem import encoded_problem
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, record, recorded

FIXED = ("none", "one_to_one", "under", "smote", "class_weight", "focal", "logit_adjustment")
EPOCHS, BATCH_SIZE, PASSES = 10, 128, 6.0
"""Epochs, rows of a mini-batch, draws per training row; an epoch has 8 to 60 mini-batches."""
BESIDE_SIZE = (1, 4, 8, 9, 11, 14, 18, 19)
"""Columns of the breast cancer table that don't depend on the size of the nuclei (texture, smoothness,
symmetry, fractal dimension). With the size every treatment has an average precision of 1, so the table would
always be a tie.
"""
Table = tuple[np.ndarray, np.ndarray]


def _classification(rows: int, weights: list[float], **options: Any) -> Table:
    x, y = make_classification(
        rows,
        n_features=20,
        n_informative=8,
        n_redundant=4,
        n_classes=len(weights),
        weights=weights,
        random_state=1,
        **{"flip_y": 0.0} | options,
    )
    return np.asarray(x), np.asarray(y)


def _thinned(x: np.ndarray, y: np.ndarray, positives: int) -> Table:
    """Keep ``positives`` rows of class 1 and all rows of class 0."""
    made = make_imbalance(x, y, sampling_strategy={0: int((y == 0).sum()), 1: positives}, random_state=1)
    return np.asarray(made[0]), np.asarray(made[1])


def _moons() -> Table:
    x, y = make_moons((15_000, 300), noise=0.35, random_state=1)
    return np.asarray(x), np.asarray(y)


def _hastie() -> Table:
    x, y = make_hastie_10_2(24_000, random_state=1)
    return _thinned(x, (y > 0).astype(np.int64), 500)


def _digits() -> Table:
    x, y = load_digits(return_X_y=True)
    return _thinned(x, (y == 8).astype(np.int64), 80)


def _breast_cancer() -> Table:
    x, y = load_breast_cancer(return_X_y=True)
    return _thinned(x[:, BESIDE_SIZE], 1 - y, 50)  # malignant is class 0 there


TABLES: dict[str, Callable[[], Table]] = {
    "separable, 1 %": lambda: _classification(20_000, [0.99, 0.01], class_sep=1.5),
    "overlapping, 2 %": lambda: _classification(20_000, [0.98, 0.02], class_sep=0.5),
    "label noise, 3 %": lambda: _classification(20_000, [0.98, 0.02], flip_y=0.02),
    "many clusters, 3 %": lambda: _classification(20_000, [0.97, 0.03], n_clusters_per_class=8),
    "very rare, 0.3 %": lambda: _classification(40_000, [0.997, 0.003]),
    "four classes": lambda: _classification(20_000, [0.94, 0.03, 0.02, 0.01]),
    "moons, 2 %": _moons,
    "hastie, 4 %": _hastie,
    "digits, 8 against the rest": _digits,
    "breast cancer, made rare": _breast_cancer,
}


def fold_of(x: np.ndarray, y: np.ndarray, split: int) -> PopulationFold:
    """Split at random and stratified: 50 % train, 15 % reward, 15 % threshold, 20 % test."""
    parts = []
    rest = np.arange(len(y))
    for share in (0.2, 0.15 / 0.8, 0.15 / 0.65):
        rest, part = train_test_split(rest, test_size=share, stratify=y[rest], random_state=split)
        parts.append(part)
    test, threshold, reward = parts
    values, classes = x.astype(np.float32), tuple(str(c) for c in range(int(y.max()) + 1))
    problem, encoder = encoded_problem(
        values[rest], y[rest], values[reward], y[reward], num_numeric=x.shape[1], num_classes=len(classes), seed=split
    )
    evaluated = EvaluatedRows(classes, y[threshold], y[test], np.zeros(len(test)), None)
    return PopulationFold(problem, encoder.transform(values[threshold]), encoder.transform(values[test]), evaluated)


def measure(name: str, splits: int) -> dict[str, Any]:
    """Train under every treatment on splits of a table, and compare ``auto`` with the best fixed one."""
    x, y = TABLES[name]()
    results = []
    for split in range(splits):
        fold = fold_of(x, y, split)
        steps = int(np.clip(PASSES * len(fold.problem.y_train) / (EPOCHS * BATCH_SIZE), 8, 60))
        trainer = PopulationTrainer(fold, epochs=EPOCHS, steps_per_epoch=steps, batch_size=BATCH_SIZE)
        for treatment, cell in trained_cells(trainer, fold.evaluated, (*FIXED, "auto"), split, trials=1, tick=lambda text: None):
            results.append({"treatment": treatment, "fold": split, "seed": split} | cell)
    averages = means(results)
    best = max(FIXED, key=lambda policy: averages[policy]["average_precision"])
    differences = {other: paired(results, other)["auto"] for other in FIXED}
    difference = differences[best]["average_precision"]
    verdict = "tie" if difference["low"] <= 0 <= difference["high"] else "win" if difference["low"] > 0 else "loss"
    return {
        "rows": len(y),
        "rare": {str(c): int((y == c).sum()) for c in range(1, int(y.max()) + 1)},
        "best_fixed": best,
        "auto_against_it": verdict,
        "difference": difference,
        "average_precision": {policy: round(values["average_precision"], 4) for policy, values in averages.items()},
        "f1": {policy: round(values["f1"], 4) for policy, values in averages.items()},
        "paired": {other: {key: value[key] for key in ("average_precision", "f1", "ece")} for other, value in differences.items()},
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--splits", type=int, default=10, help="random splits per table")
    options.add_argument("--only", nargs="+", choices=list(TABLES), default=list(TABLES), help="tables to measure")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "sampling_tables.json"
    results = recorded(path).get("tables", {})
    for name in arguments.only:
        results[name] = measure(name, arguments.splits)
        tables = {key: results[key] for key in TABLES if key in results}
        verdicts = [result["auto_against_it"] for result in tables.values()]
        count = {verdict: verdicts.count(verdict) for verdict in ("win", "tie", "loss")}
        record({"splits": arguments.splits, "auto_against_the_best_fixed": count, "tables": tables}, path)


if __name__ == "__main__":
    main()
