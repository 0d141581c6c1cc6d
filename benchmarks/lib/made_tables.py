"""Ten imbalanced tables that scikit-learn and imbalanced-learn make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from imblearn.datasets import make_imbalance
from sklearn.datasets import load_breast_cancer, load_digits, make_classification, make_hastie_10_2, make_moons

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


MADE: dict[str, Callable[[], Table]] = {
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
