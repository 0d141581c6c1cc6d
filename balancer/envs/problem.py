"""The problem of a population of small students: encoded row features of a data set.

For each numeric field a student gets the field's rank in train, mapped to a normal score, and a target-aware
encoding: the log-odds of the leaf of a small decision tree, smoothed towards the prior where a leaf is small.
For each categorical field it gets the log-odds of the value, smoothed in the same way. Everything is fitted
on train alone.

In large tables class 0 is thinned, and each kept row represents several. In the reward half, likely false
alarms are kept with higher probability: half of the rows are drawn by the summed log-odds of their fields and
weighted by the inverse. At a false-positive rate of .002, a uniform sample of 6,000 rows would evaluate a
policy on a dozen rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from balancer.data.split import Split
from balancer.errors import InputError
from balancer.sampling.pools import thinned_groups
from balancer.sampling.seeding import generator, integer_seed

if TYPE_CHECKING:
    from balancer.data.dataset import Dataset

MAX_TRAIN = 120_000
MAX_REWARD = 8_000
TREE_ROWS = 40_000
"""Rows on which a tree is fitted, at most."""
TREE_LEAVES = 16
SMOOTHING = 50.0
"""Rows of the prior that are added to those of a leaf or value before its log-odds are computed.

Few enough to keep the effect of rare frauds, enough to hide single rows."""
_RANK_KNOTS = 257


@dataclass(frozen=True)
class PopulationProblem:
    """Row features of train and of the reward half of validation, and how many rows each represents.

    Raises:
        InputError: A label is out of range, or a part lacks rows of class 0 or of all other classes.
    """

    x_train: NDArray[np.float32]
    """(n, F) features of the training rows."""
    y_train: NDArray[np.int64]
    """(n,) class index; class 0 is the negative class."""
    x_val: NDArray[np.float32]
    """(v, F) features of the reward rows."""
    y_val: NDArray[np.int64]
    """(v,) class index."""
    train_weight: NDArray[np.float64]
    """(n,) how many rows of the data set each training row represents."""
    val_weight: NDArray[np.float64]
    """(v,) the same for the reward rows."""
    num_classes: int
    train_age: NDArray[np.float32] | None = None
    """(n,) age of each training row as a fraction of their time span, 0 for the newest; None: not known."""

    def __post_init__(self) -> None:
        for name, y in (("training", self.y_train), ("reward", self.y_val)):
            if len(y) == 0 or y.min() < 0 or y.max() >= self.num_classes:
                raise InputError(f"{name} labels of a population problem must be class indices from 0 to {self.num_classes - 1}")
            if not (y == 0).any() or not (y > 0).any():
                raise InputError(f"{name} rows hold no row of the negative class, or none of the others; a policy can't be trained on them")

    @property
    def train_counts(self) -> NDArray[np.float64]:
        """(K,) rows of each class in the data set that the training rows represent."""
        return np.bincount(self.y_train, self.train_weight, self.num_classes).astype(np.float64)

    @property
    def reward_counts(self) -> NDArray[np.float64]:
        """(K,) the same for the reward rows."""
        return np.bincount(self.y_val, self.val_weight, self.num_classes).astype(np.float64)


@dataclass(frozen=True)
class RowEncoder:
    """Encodings of row fields, fitted on train alone.

    :func:`encoded_problem` fits an encoder, and :meth:`transform` applies it to other rows. The fields are
    numeric columns, then categorical codes; a value that does not occur in train has the log-odds of the
    prior.
    """

    trees: tuple[DecisionTreeClassifier | None, ...]
    """For each numeric field the tree whose leaves are its groups; None for a categorical field."""
    odds: tuple[NDArray[np.float64], ...]
    """For each field the log-odds of each group, relative to those of the prior."""
    knots: tuple[NDArray[np.float64] | None, ...]
    """For each numeric field its quantiles in train; None for a categorical field."""
    mean: NDArray[np.float64]
    """(F,) means of the encoded columns in train."""
    spread: NDArray[np.float64]
    """(F,) standard deviations of the encoded columns in train."""

    def transform(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features (n, F) of the fields ``values`` (n, C)."""
        columns: list[NDArray[np.float64]] = []
        for field, (tree, knots) in enumerate(zip(self.trees, self.knots, strict=True)):
            x = _column(values, field)
            columns.append(self._group_odds(field, _groups(tree, x)))
            if knots is not None:
                columns.append(_normal_rank(knots, x))
        return self._standardised(np.stack(columns, axis=1))

    def likely(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) sum of the log-odds of each row's fields, the score of a naive Bayes rule."""
        total = np.zeros(len(values))
        for field, tree in enumerate(self.trees):
            total += self._group_odds(field, _groups(tree, _column(values, field)))
        return total

    def _group_odds(self, field: int, group: NDArray[np.int64]) -> NDArray[np.float64]:
        odds = self.odds[field]
        return np.where(group < len(odds), odds[np.minimum(group, len(odds) - 1)], 0.0)

    def _standardised(self, columns: NDArray[np.float64]) -> NDArray[np.float32]:
        varies = self.spread > 1e-5  # a constant field is 0, not a rounding error divided by a tiny spread
        return (np.clip((columns - self.mean) / self.spread, -8, 8) * varies).astype(np.float32)


def encoded_problem(
    train_values: NDArray[np.float32],
    train_label: NDArray[np.integer[Any]],
    reward_values: NDArray[np.float32],
    reward_label: NDArray[np.integer[Any]],
    *,
    num_numeric: int,
    num_classes: int,
    seed: int,
    train_time: NDArray[np.float64] | None = None,
    max_train: int = MAX_TRAIN,
    max_reward: int = MAX_REWARD,
) -> tuple[PopulationProblem, RowEncoder]:
    """Make a problem from the fields of rows, and the encoder for other rows.

    Args:
        train_values: (n, C) numeric fields, then categorical codes, of the training rows.
        train_label: (n,) class index.
        reward_values: (v, C) fields of the reward half of validation.
        reward_label: (v,) class index.
        num_numeric: How many of the C fields are numeric.
        num_classes: K.
        seed: Random seed of the thinning and of the trees.
        train_time: (n,) time of each training row; None: not known.
        max_train: Largest number of training rows to keep.
        max_reward: Largest number of reward rows to keep.

    Raises:
        InputError: A part lacks rows of class 0 or of all other classes.
    """
    reward_label = np.asarray(reward_label)
    chosen, train_weight = _thinned(np.asarray(train_label), max_train, generator(seed, "thin train"))
    values, label = train_values[chosen], np.asarray(train_label)[chosen].astype(np.int64)
    encoder, x_train = _fit_encoder(values, label, train_weight, num_numeric, seed)
    held, val_weight = _likely(reward_label, lambda rows: encoder.likely(reward_values[rows]), max_reward, generator(seed, "thin reward"))
    x_val = encoder.transform(reward_values[held])
    age = None
    if train_time is not None:
        time = np.asarray(train_time, dtype=np.float64)
        age = ((time.max() - time[chosen]) / max(float(time.max() - time.min()), 1e-300)).astype(np.float32)
    y_val = reward_label[held].astype(np.int64)
    problem = PopulationProblem(x_train, label, x_val, y_val, train_weight, val_weight, num_classes, age)
    return problem, encoder


def dataset_problem(dataset: Dataset, seed: int) -> tuple[PopulationProblem, RowEncoder]:
    """The problem of a data set that has been split, and its encoder.

    Students see the fields of the training and reward rows, without their histories.

    Args:
        dataset: The data set.
        seed: Random seed.
    """
    store = dataset.store
    train, reward = dataset.rows(Split.TRAIN), dataset.rows(Split.REWARD)
    return encoded_problem(
        store.values[train],
        store.label[train].astype(np.int64),
        store.values[reward],
        store.label[reward].astype(np.int64),
        num_numeric=store.num_numeric,
        num_classes=len(dataset.schema.classes),
        seed=integer_seed(seed, "problem"),
        train_time=store.time[train],
    )


def _fit_encoder(
    values: NDArray[np.float32], label: NDArray[np.int64], weight: NDArray[np.float64], num_numeric: int, seed: int
) -> tuple[RowEncoder, NDArray[np.float32]]:
    """Encoder of training rows (n, C) that represent ``weight`` (n,) rows each, and their features (n, F)."""
    positive = (label > 0).astype(np.int64)
    fitted, fitted_weight = _thinned(label, TREE_ROWS, generator(seed, "thin trees"))
    fitted_weight = fitted_weight * weight[fitted]
    trees: list[DecisionTreeClassifier | None] = []
    odds: list[NDArray[np.float64]] = []
    knots: list[NDArray[np.float64] | None] = []
    columns: list[NDArray[np.float64]] = []
    for field in range(values.shape[1]):
        x, tree = _column(values, field), None
        if field < num_numeric:
            tree = DecisionTreeClassifier(
                max_leaf_nodes=TREE_LEAVES, min_samples_leaf=20, criterion="entropy", random_state=integer_seed(seed, "tree", field)
            )
            known = ~np.isnan(x[fitted])
            if not known.any():
                known[:] = True
            tree.fit(np.nan_to_num(x[fitted[known], None]), positive[fitted[known]], sample_weight=fitted_weight[known])
        group = _groups(tree, x)
        trees.append(tree)
        odds.append(_log_odds(group, positive, weight, int(group.max()) + 1))
        columns.append(odds[-1][group])
        present = x[~np.isnan(x)]
        knots.append(None if tree is None else np.quantile(present if len(present) else np.zeros(1), np.linspace(0, 1, _RANK_KNOTS)))
        if (quantiles := knots[-1]) is not None:
            columns.append(_normal_rank(quantiles, x))
    raw = np.stack(columns, axis=1)
    mean = np.average(raw, axis=0, weights=weight)
    spread = np.sqrt(np.average((raw - mean) ** 2, axis=0, weights=weight)) + 1e-6
    encoder = RowEncoder(tuple(trees), tuple(odds), tuple(knots), mean, spread)
    return encoder, encoder._standardised(raw)


def _thinned(label: NDArray[np.integer[Any]], limit: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows kept, in order, and how many each represents.

    Of the other classes at most half the limit is kept, of class 0 at most the rest.
    """
    others, negatives = np.flatnonzero(label > 0), np.flatnonzero(label == 0)
    groups = [(others, limit // 2), (negatives, limit - min(len(others), limit // 2))]
    rows, weight = thinned_groups(groups, rng, in_order=True)
    order = np.argsort(rows, kind="stable")
    return rows[order], weight[order]


def _likely(
    label: NDArray[np.integer[Any]],
    odds_of: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    limit: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows kept, in order, and how many each represents.

    Rows of the other classes are kept as in :func:`_thinned`. Half of the rows of class 0 are drawn evenly,
    half by their odds.

    Args:
        label: (v,) class index.
        odds_of: Computes the log-odds of rows (m,); it is not called where all rows are kept.
        limit: Largest number of rows.
        rng: Source of randomness.
    """
    rows, weight = _thinned(label, limit, rng)
    common = np.flatnonzero(label == 0)
    others = label[rows] > 0
    room = limit - int(others.sum())
    if len(common) <= room:
        return rows, weight
    odds = odds_of(common)
    likely = np.exp(0.5 * np.clip(odds - odds.max(), -40.0, 0.0)) + 1e-9
    chance = np.minimum(1.0, 0.5 * room * (1.0 / len(common) + likely / likely.sum()))
    # Systematic sampling with one random number: each row has its own chance, and their sum is the number of
    # rows.
    total = np.concatenate([[0.0], np.cumsum(chance)])
    offset = rng.random()
    kept = np.floor(total[1:] + offset) > np.floor(total[:-1] + offset)
    kept_weight = 1.0 / chance[kept]
    kept_weight *= len(common) / kept_weight.sum()
    merged = np.concatenate([common[kept], rows[others]])
    merged_weight = np.concatenate([kept_weight, weight[others]])
    order = np.argsort(merged, kind="stable")
    return merged[order], merged_weight[order]


def _column(values: NDArray[np.float32], field: int) -> NDArray[np.float64]:
    """Values (n,) of a field; only NaN, which is missing, is not finite."""
    return np.nan_to_num(values[:, field].astype(np.float64), nan=np.nan)


def _groups(tree: DecisionTreeClassifier | None, x: NDArray[np.float64]) -> NDArray[np.int64]:
    """Group of each value: the leaf of a number, one more for missing numbers, or the code of a category."""
    if tree is None:
        return x.astype(np.int64)
    missing = np.isnan(x)
    group = tree.apply(np.where(missing, 0.0, x)[:, None])
    return np.asarray(np.where(missing, tree.tree_.node_count, group), dtype=np.int64)


def _normal_rank(knots: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Approximate normal score of the mid-rank of ``x`` among the quantiles ``knots`` of train; of NaN 0."""
    rank = (np.searchsorted(knots, x, side="left") + np.searchsorted(knots, x, side="right")) / (2 * _RANK_KNOTS)
    rank = np.clip(rank, 1 / (4 * _RANK_KNOTS), 1 - 1 / (4 * _RANK_KNOTS))
    return np.where(np.isnan(x), 0.0, np.log(rank / (1 - rank)) / 1.702)


def _log_odds(group: NDArray[np.int64], positive: NDArray[np.int64], weight: NDArray[np.float64], num_groups: int) -> NDArray[np.float64]:
    """(num_groups,) smoothed log-odds of a positive row in each group, relative to those of the prior."""
    prior = float((weight * positive).sum() / weight.sum())
    hits = np.bincount(group, weight * positive, num_groups) + SMOOTHING * prior
    misses = np.bincount(group, weight * (1 - positive), num_groups) + SMOOTHING * (1 - prior)
    return np.asarray(np.log(hits / misses) - np.log(prior / (1 - prior)), dtype=np.float64)


def synthetic_problem(num_classes: int = 2, *, rows: int = 6_000, seed: int = 0) -> PopulationProblem:
    """Small synthetic problem: about 3 % positive rows, some of them hidden among the negative rows."""
    rng = generator(seed, "synthetic problem", num_classes)
    prior = np.full(num_classes, 0.03 / (num_classes - 1))
    prior[0] = 0.97
    label = np.concatenate([rng.choice(num_classes, 2 * rows, p=prior), np.repeat(np.arange(num_classes), 4)])
    label = rng.permutation(label)
    centre = rng.normal(size=(num_classes, 8)) * 1.6
    centre[0] = 0
    x = rng.normal(size=(len(label), 8)) + centre[label] * (rng.random((len(label), 1)) < 0.8)
    x[:, 4:] = np.abs(x[:, 4:])  # a non-linear relation
    cut = len(label) // 2
    problem, _ = encoded_problem(
        x[:cut].astype(np.float32), label[:cut], x[cut:].astype(np.float32), label[cut:], num_numeric=8, num_classes=num_classes, seed=seed
    )
    return problem
