"""The problem that a population of small students plays: row features of a data set, standardised for a net of a few hundred steps.

Per numeric field a student sees its rank in train, mapped to a normal score, and a target-aware encoding: the log-odds of the leaf of a small decision
tree, pulled towards the prior where a leaf is small; per categorical field the log-odds of its value, smoothed the same way. All is fitted on train alone.

Of large tables the first class is thinned, each kept row standing for several. In the reward half the likely false alarms are kept first (half of the rows
are drawn by the summed log-odds of their fields, and weighted by the inverse): at a false-positive rate of .002 a uniform sample of 6,000 would judge a policy by
a dozen rows.
"""

from __future__ import annotations

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
    reward_label = np.asarray(reward_label)
    chosen, train_weight = _thinned(np.asarray(train_label), max_train, generator(seed, "thin train"))
    values, label = train_values[chosen], np.asarray(train_label)[chosen].astype(np.int64)
    positive = (label > 0).astype(np.int64)
    fitted, fitted_weight = _thinned(label, TREE_ROWS, generator(seed, "thin trees"))
    fitted_weight = fitted_weight * train_weight[fitted]
    odds_reward = np.zeros(len(reward_label))
    encoders: list[tuple[DecisionTreeClassifier | None, NDArray[np.float64]]] = []
    for field in range(values.shape[1]):
        tree = None
        if field < num_numeric:
            tree = DecisionTreeClassifier(
                max_leaf_nodes=TREE_LEAVES, min_samples_leaf=20, criterion="entropy", random_state=integer_seed(seed, "tree", field)
            )
            tree.fit(_column(values, field)[fitted, None], positive[fitted], sample_weight=fitted_weight)
        group, group_reward = _groups(tree, _column(values, field)), _groups(tree, _column(reward_values, field))
        odds = _log_odds(group, positive, train_weight, int(max(group.max(), group_reward.max())) + 1)
        encoders.append((tree, odds))
        odds_reward += odds[group_reward]
    held, val_weight = _likely(reward_label, odds_reward, max_reward, generator(seed, "thin reward"))
    reward = reward_values[held]
    columns: list[NDArray[np.float64]] = []
    columns_reward: list[NDArray[np.float64]] = []
    for field, (tree, odds) in enumerate(encoders):
        x, v = _column(values, field), _column(reward, field)
        columns.append(odds[_groups(tree, x)])
        columns_reward.append(odds[_groups(tree, v)])
        if tree is not None:
            columns.append(_normal_rank(x, x))
            columns_reward.append(_normal_rank(x, v))
    x_train, x_val = np.stack(columns, axis=1), np.stack(columns_reward, axis=1)
    mean = np.average(x_train, axis=0, weights=train_weight)
    spread = np.sqrt(np.average((x_train - mean) ** 2, axis=0, weights=train_weight)) + 1e-6
    told = spread > 1e-5  # a field that tells nothing of any row stays at 0 instead of being blown up
    return PopulationProblem(
        (np.clip((x_train - mean) / spread, -8, 8) * told).astype(np.float32),
        label,
        (np.clip((x_val - mean) / spread, -8, 8) * told).astype(np.float32),
        reward_label[held].astype(np.int64),
        train_weight,
        val_weight,
        num_classes,
    )


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
    label: NDArray[np.integer[Any]], odds: NDArray[np.float64], limit: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows kept and how many each stands for: the other classes as in :func:`_thinned`, of the first class half evenly, half by ``odds`` (n,)."""
    rows, weight = _thinned(label, limit, rng)
    common = np.flatnonzero(label == 0)
    others = label[rows] > 0
    room = limit - int(others.sum())
    if len(common) <= room:
        return rows, weight
    likely = np.exp(0.5 * np.clip(odds[common] - odds[common].max(), -40.0, 0.0)) + 1e-9
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


def _normal_rank(train: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mid-rank of ``x`` among ``train``, as a logistic approximation of the normal score."""
    knots = np.quantile(train, np.linspace(0, 1, _RANK_KNOTS))
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
