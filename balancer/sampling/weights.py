"""Sampling weights (class shares, hardness exponent, floor of uniform draws) and their change by an action.

The environments (many students at once), the trainer and the sampler's core use the same functions: each
accepts any leading shape.

An action is a *residual* in ``[-1, 1] ** (K + 2)``: a scaled change of the log share of each class, of the
hardness and of the floor. A residual of zero keeps the weights. A softmax turns log shares into shares. Class
0 is the negative class, and all other classes together are the *minority*. The minority's total share stays
between its prior and :func:`share_limit`: beyond that limit, a model only memorises the few minority rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError

Floats = NDArray[np.float64]

MAX_HARDNESS = 3.0
ERROR_OFFSET = 1e-3
"""Added to a row's error before it is raised to the hardness, so that every row can be drawn."""

MAX_MINORITY_SHARE = 0.5
MAX_REPEATS = 8.0
"""How often residuals may let the average minority row be drawn in a whole run, at most.

Measured with the sequence classifier: 3 to 7 repeats are best whatever the budget, and from 10 on the few
rows are memorised (docs/experiments.md)."""
START_FLOOR = 0.05
SHARE_STEP = 0.75
"""Largest change of a log share in an epoch; of two classes, the log-odds change by at most twice that."""
HARDNESS_STEP = 1.0
FLOOR_STEP = 0.1
_TINY = 1e-12


@dataclass(frozen=True)
class SamplingWeights:
    """How the rows of the next epoch are drawn.

    A class is drawn by ``share``. Then a row of that class is drawn: with probability ``floor`` uniformly,
    otherwise with weight ``(error + 1e-3) ** hardness``.

    Samplers and estimators show ``share`` in the order of their ``classes_``.
    """

    share: Floats
    """(K,) probability of each class; sums to 1."""
    hardness: float = 0.0
    """Exponent in [0, 3]; 0 draws uniformly within a class."""
    floor: float = START_FLOOR
    """Fraction of the draws within a class that ignore hardness, in [0, 1]."""

    def __post_init__(self) -> None:
        share = np.asarray(self.share, dtype=np.float64)
        if share.ndim != 1 or len(share) < 2 or not np.isfinite(share).all() or share.min() < 0 or abs(share.sum() - 1) > 1e-6:
            raise InputError(f"class shares must be two or more non-negative numbers that sum to 1, not {share.tolist()}")
        if not 0 <= self.hardness <= MAX_HARDNESS:
            raise InputError(f"hardness must lie in [0, {MAX_HARDNESS:g}], not {self.hardness}")
        if not 0 <= self.floor <= 1:
            raise InputError(f"floor must lie in [0, 1], not {self.floor}")
        object.__setattr__(self, "share", share)

    def moved(self, action: NDArray[Any], prior: Floats, limit: float = MAX_MINORITY_SHARE) -> SamplingWeights:
        """The weights after one residual ``action`` (K + 2,); ``prior`` and ``limit`` as in :func:`move`."""
        moved = move(self.share, np.float64(self.hardness), np.float64(self.floor), np.asarray(action, np.float64), prior, limit)
        share, hardness, floor = moved
        return SamplingWeights(share, float(hardness), float(floor))

    def reordered(self, order: NDArray[np.integer[Any]]) -> SamplingWeights:
        """The same weights in another class order: class ``i`` of the result is class ``order[i]`` here."""
        return SamplingWeights(self.share[order], self.hardness, self.floor)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold; :meth:`from_dict` restores the weights exactly."""
        return {"share": self.share.tolist(), "hardness": self.hardness, "floor": self.floor}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SamplingWeights:
        """Restore weights from the values of :meth:`to_dict`."""
        return cls(np.array(state["share"], dtype=np.float64), float(state["hardness"]), float(state["floor"]))


def stacked(weights: Sequence[SamplingWeights]) -> tuple[Floats, Floats, Floats]:
    """Shares (M, K), hardness (M,) and floor (M,) of the weights of M students."""
    return (
        np.stack([each.share for each in weights]),
        np.array([each.hardness for each in weights]),
        np.array([each.floor for each in weights]),
    )


def class_prior(counts: NDArray[Any]) -> Floats:
    """Share of each class among ``counts`` (K,)."""
    counts = np.asarray(counts, dtype=np.float64)
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def start_share(prior: Floats) -> Floats:
    """Class shares that every policy starts from: ``prior ** 0.5``, normalised (.0085 becomes .084)."""
    root = np.sqrt(prior)
    return np.asarray(root / root.sum(), dtype=np.float64)


def share_limit(train_counts: NDArray[Any], batch_budget: int) -> float:
    """Largest total share of the minority that residuals may reach.

    It is one half, and at most :data:`MAX_REPEATS` draws of the average minority row over the run.

    Args:
        train_counts: (K,) training rows of each class.
        batch_budget: Rows drawn in the whole run.
    """
    rows = float(np.asarray(train_counts, dtype=np.float64)[1:].sum())
    return min(MAX_MINORITY_SHARE, MAX_REPEATS * rows / max(batch_budget, 1))


def start_weights(prior: Floats, limit: float = MAX_MINORITY_SHARE) -> SamplingWeights:
    """Weights that every policy starts from: :func:`start_share` within ``limit``, no hardness."""
    low, start = 1.0 - float(prior[0]), 1.0 - float(start_share(prior)[0])
    return SamplingWeights(minority_share(prior, max(low, min(start, limit))) if start > limit else start_share(prior))


def minority_share(prior: Floats, total: float) -> Floats:
    """(K,) class shares: ``total`` goes to the minority, divided by the root of each class's prior."""
    root = np.sqrt(prior[1:])
    return np.concatenate([[1.0 - total], total * root / max(root.sum(), _TINY)])


def proportional_share(prior: Floats, total: float) -> Floats:
    """(K,) class shares: ``total`` goes to the minority, divided in proportion to each class's prior.

    >>> proportional_share(np.array([0.7, 0.2, 0.1]), 0.6).round(3).tolist()
    [0.4, 0.4, 0.2]
    """
    return np.concatenate([[1.0 - total], total * prior[1:] / prior[1:].sum()])


def bounded_share(share: Floats, prior: Floats, limit: float) -> Floats:
    """Class shares with the minority's total bounded to its prior at least and to ``limit`` at most.

    Args:
        share: (..., K) shares.
        prior: (K,) class prior of the training rows.
        limit: Largest total share of the minority; its prior counts where that is larger.

    Returns:
        (..., K); the proportions within the minority stay as they are.
    """
    total = 1.0 - share[..., :1]
    low = 1.0 - prior[0]
    bounded = np.clip(total, low, max(limit, low))
    minority = share[..., 1:] * (bounded / np.maximum(total, _TINY))
    return np.concatenate([1.0 - minority.sum(axis=-1, keepdims=True), minority], axis=-1)


def move(
    share: Floats, hardness: Any, floor: Any, action: Floats, prior: Floats, limit: float = MAX_MINORITY_SHARE
) -> tuple[Floats, Any, Any]:
    """Apply residual actions.

    Args:
        share: (..., K).
        hardness: (...).
        floor: (...).
        action: (..., K + 2), clipped to [-1, 1].
        prior: (K,).
        limit: Largest total share of the minority (:func:`share_limit`); its prior counts where that is
            larger.

    Returns:
        The new share (..., K), hardness (...) and floor (...). A class without training rows keeps share 0.
    """
    action = np.clip(action, -1.0, 1.0)
    num_classes = share.shape[-1]
    logit = np.log(np.maximum(share, _TINY)) + SHARE_STEP * action[..., :num_classes]
    logit -= logit.max(axis=-1, keepdims=True)
    raw = np.exp(logit) * (prior > 0)
    raw /= raw.sum(axis=-1, keepdims=True)
    return (
        bounded_share(raw, prior, limit),
        np.clip(hardness + HARDNESS_STEP * action[..., num_classes], 0.0, MAX_HARDNESS),
        np.clip(floor + FLOOR_STEP * action[..., num_classes + 1], 0.0, 1.0),
    )
