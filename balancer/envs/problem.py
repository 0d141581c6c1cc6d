"""The problem that a population of small students plays: row features of a data set, standardised for a net of a few hundred steps.

Per numeric field a student sees its rank in train, mapped to a normal score, and a target-aware encoding: the log-odds of the leaf of a small decision
tree, pulled towards the prior where a leaf is small; per categorical field the log-odds of its value, smoothed the same way. All is fitted on train alone.

Of large tables the first class is thinned, each kept row standing for several. In the reward half the likely false alarms are kept first (half of the rows
are drawn by the summed log-odds of their fields, and weighted by the inverse): at a false-positive rate of .002 a uniform sample of 6,000 would judge a policy by
a dozen rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from balancer.errors import InputError
from balancer.sampling.seeding import generator, integer_seed

MAX_TRAIN = 120_000
MAX_REWARD = 8_000
TREE_ROWS = 40_000
"""Rows that a tree is fitted on, at most."""
TREE_LEAVES = 16
SMOOTHING = 50.0
"""Rows of prior that a leaf's or a value's log-odds are mixed with: few enough for rare frauds, many enough not to reveal single rows."""
_RANK_KNOTS = 257


@dataclass(frozen=True)
class PopulationProblem:
    """Row features of train and of the reward half of validation, and what each row stands for."""

    x_train: NDArray[np.float32]
    """(n, F)."""
    y_train: NDArray[np.int64]
    """(n,) class index, 0 the common one."""
    x_val: NDArray[np.float32]
    """(v, F)."""
    y_val: NDArray[np.int64]
    """(v,)."""
    train_weight: NDArray[np.float64]
    """(n,) rows of the data set that each training row stands for."""
    val_weight: NDArray[np.float64]
    """(v,)."""
    num_classes: int

    def __post_init__(self) -> None:
        for name, y in (("training", self.y_train), ("reward", self.y_val)):
            if len(y) == 0 or y.min() < 0 or y.max() >= self.num_classes:
                raise InputError(f"{name} labels of a population problem must be class indices from 0 to {self.num_classes - 1}")
            if not (y == 0).any() or not (y > 0).any():
                raise InputError(f"{name} rows hold no row of the first class, or none of the others; a policy can't be trained on them")

    @property
    def train_counts(self) -> NDArray[np.float64]:
        """(K,) rows of each class in the data set that the training rows stand for."""
        return np.bincount(self.y_train, self.train_weight, self.num_classes).astype(np.float64)

    @property
    def reward_counts(self) -> NDArray[np.float64]:
        """(K,) the same for the reward half."""
        return np.bincount(self.y_val, self.val_weight, self.num_classes).astype(np.float64)


@dataclass(frozen=True)
class RowEncoder:
    """Encodings of row fields, fitted on train alone; :func:`encoded_problem` fits one, and :meth:`transform` applies it to any further rows.

    The fields come as numeric columns, then categorical codes; a value that train never held tells as much as the prior does.
    """

    trees: tuple[DecisionTreeClassifier | None, ...]
    """Of each field the tree whose leaves are its groups; None for a categorical field, whose codes are."""
    odds: tuple[NDArray[np.float64], ...]
    """Of each field the log-odds of each group, relative to the prior's."""
    knots: tuple[NDArray[np.float64] | None, ...]
    """Of each numeric field its quantiles in train."""
    mean: NDArray[np.float64]
    """(F,) of the encoded columns in train."""
    spread: NDArray[np.float64]
    """(F,)."""

    def transform(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Student features (n, F) of the fields ``values`` (n, C)."""
        columns: list[NDArray[np.float64]] = []
        for field, (tree, knots) in enumerate(zip(self.trees, self.knots, strict=True)):
            x = _column(values, field)
            columns.append(self._told(field, _groups(tree, x)))
            if knots is not None:
                columns.append(_normal_rank(knots, x))
        return self._standardised(np.stack(columns, axis=1))

    def likely(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n,) sum of the log-odds of a row's fields: how likely it is positive, as a naive Bayes rule has it."""
        total = np.zeros(len(values))
        for field, tree in enumerate(self.trees):
            total += self._told(field, _groups(tree, _column(values, field)))
        return total

    def _told(self, field: int, group: NDArray[np.int64]) -> NDArray[np.float64]:
        odds = self.odds[field]
        return np.where(group < len(odds), odds[np.minimum(group, len(odds) - 1)], 0.0)

    def _standardised(self, columns: NDArray[np.float64]) -> NDArray[np.float32]:
        told = self.spread > 1e-5  # a field that tells nothing of any row stays at 0 instead of being blown up
        return (np.clip((columns - self.mean) / self.spread, -8, 8) * told).astype(np.float32)


def problem_from_arrays(
    train_values: NDArray[np.float32],
    train_label: NDArray[np.integer[Any]],
    reward_values: NDArray[np.float32],
    reward_label: NDArray[np.integer[Any]],
    *,
    num_numeric: int,
    num_classes: int,
    seed: int,
    max_train: int = MAX_TRAIN,
    max_reward: int = MAX_REWARD,
) -> PopulationProblem:
    """Problem from the fields of target rows.

    Args:
        train_values: (n, C) numeric fields, then categorical codes, of the training rows.
        train_label: (n,) class index.
        reward_values: (v, C) of the reward half of validation.
        reward_label: (v,).
        num_numeric: how many of the C fields are numeric.
        num_classes: K.
        seed: thins and breaks ties.
        max_train: most training rows kept.
        max_reward: most reward rows kept.

    Raises:
        InputError: a part without rows of the first class, or without any of the others.
    """
    problem, _ = encoded_problem(
        train_values,
        train_label,
        reward_values,
        reward_label,
        num_numeric=num_numeric,
        num_classes=num_classes,
        seed=seed,
        max_train=max_train,
        max_reward=max_reward,
    )
    return problem


def encoded_problem(
    train_values: NDArray[np.float32],
    train_label: NDArray[np.integer[Any]],
    reward_values: NDArray[np.float32],
    reward_label: NDArray[np.integer[Any]],
    *,
    num_numeric: int,
    num_classes: int,
    seed: int,
    max_train: int = MAX_TRAIN,
    max_reward: int = MAX_REWARD,
) -> tuple[PopulationProblem, RowEncoder]:
    """The problem of :func:`problem_from_arrays`, same arguments and errors, and the encoder that further rows of its students need."""
    reward_label = np.asarray(reward_label)
    chosen, train_weight = _thinned(np.asarray(train_label), max_train, generator(seed, "thin train"))
    values, label = train_values[chosen], np.asarray(train_label)[chosen].astype(np.int64)
    encoder, x_train = _fit_encoder(values, label, train_weight, num_numeric, seed)
    held, val_weight = _likely(reward_label, lambda rows: encoder.likely(reward_values[rows]), max_reward, generator(seed, "thin reward"))
    x_val = encoder.transform(reward_values[held])
    problem = PopulationProblem(x_train, label, x_val, reward_label[held].astype(np.int64), train_weight, val_weight, num_classes)
    return problem, encoder


def _fit_encoder(
    values: NDArray[np.float32], label: NDArray[np.int64], weight: NDArray[np.float64], num_numeric: int, seed: int
) -> tuple[RowEncoder, NDArray[np.float32]]:
    """Encoder of training rows (n, C) that stand for ``weight`` (n,) rows each, and their features (n, F)."""
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
            tree.fit(x[fitted, None], positive[fitted], sample_weight=fitted_weight)
        group = _groups(tree, x)
        trees.append(tree)
        odds.append(_log_odds(group, positive, weight, int(group.max()) + 1))
        columns.append(odds[-1][group])
        knots.append(None if tree is None else np.quantile(x, np.linspace(0, 1, _RANK_KNOTS)))
        if (quantiles := knots[-1]) is not None:
            columns.append(_normal_rank(quantiles, x))
    raw = np.stack(columns, axis=1)
    mean = np.average(raw, axis=0, weights=weight)
    spread = np.sqrt(np.average((raw - mean) ** 2, axis=0, weights=weight)) + 1e-6
    encoder = RowEncoder(tuple(trees), tuple(odds), tuple(knots), mean, spread)
    return encoder, encoder._standardised(raw)


def _thinned(label: NDArray[np.integer[Any]], limit: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows kept, in order, and how many each stands for: the other classes up to half the limit, the first class up to what is left."""
    others = np.flatnonzero(label > 0)
    kept_others = others if len(others) <= limit // 2 else np.sort(rng.choice(others, limit // 2, replace=False))
    common = np.flatnonzero(label == 0)
    room = limit - len(kept_others)
    kept_common = common if len(common) <= room else np.sort(rng.choice(common, room, replace=False))
    rows = np.concatenate([kept_common, kept_others])
    weight = np.concatenate(
        [np.full(len(kept), len(whole) / max(len(kept), 1)) for kept, whole in ((kept_common, common), (kept_others, others))]
    )
    order = np.argsort(rows, kind="stable")
    return rows[order], weight[order]


def _likely(
    label: NDArray[np.integer[Any]],
    odds_of: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    limit: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows kept and how many each stands for: the others as in :func:`_thinned`, of the first class half evenly, half by their odds.

    ``odds_of`` gives the log-odds of rows (m,), and is not called where all rows are kept.
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
    # Systematic sampling: one random number, as many rows as the chances sum to, each with its own chance.
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
    return np.nan_to_num(values[:, field].astype(np.float64))


def _groups(tree: DecisionTreeClassifier | None, x: NDArray[np.float64]) -> NDArray[np.int64]:
    """Leaf of a numeric value, or the code of a categorical one."""
    return np.asarray(x if tree is None else tree.apply(x[:, None]), dtype=np.int64)


def _normal_rank(knots: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mid-rank of ``x`` among the quantiles ``knots`` of train, as a logistic approximation of the normal score."""
    rank = (np.searchsorted(knots, x, side="left") + np.searchsorted(knots, x, side="right")) / (2 * _RANK_KNOTS)
    rank = np.clip(rank, 1 / (4 * _RANK_KNOTS), 1 - 1 / (4 * _RANK_KNOTS))
    return np.asarray(np.log(rank / (1 - rank)) / 1.702, dtype=np.float64)


def _log_odds(group: NDArray[np.int64], positive: NDArray[np.int64], weight: NDArray[np.float64], num_groups: int) -> NDArray[np.float64]:
    """(num_groups,) smoothed log-odds of a positive in each group, relative to the prior's."""
    prior = float((weight * positive).sum() / weight.sum())
    hits = np.bincount(group, weight * positive, num_groups) + SMOOTHING * prior
    misses = np.bincount(group, weight * (1 - positive), num_groups) + SMOOTHING * (1 - prior)
    return np.asarray(np.log(hits / misses) - np.log(prior / (1 - prior)), dtype=np.float64)


def synthetic_problem(num_classes: int = 2, *, rows: int = 6_000, seed: int = 0) -> PopulationProblem:
    """Small made-up problem: about 3 % rows of the other classes, each partly apart and partly hidden among the first."""
    rng = generator(seed, "synthetic problem", num_classes)
    prior = np.full(num_classes, 0.03 / (num_classes - 1))
    prior[0] = 0.97
    label = np.concatenate([rng.choice(num_classes, 2 * rows, p=prior), np.repeat(np.arange(num_classes), 4)])
    label = rng.permutation(label)
    centre = rng.normal(size=(num_classes, 8)) * 1.6
    centre[0] = 0
    x = rng.normal(size=(len(label), 8)) + centre[label] * (rng.random((len(label), 1)) < 0.8)
    x[:, 4:] = np.abs(x[:, 4:])  # not linear
    cut = len(label) // 2
    return problem_from_arrays(
        x[:cut].astype(np.float32), label[:cut], x[cut:].astype(np.float32), label[cut:], num_numeric=8, num_classes=num_classes, seed=seed
    )
