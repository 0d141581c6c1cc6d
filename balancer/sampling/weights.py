"""What a policy steers: the share of each class, the hardness exponent, the floor of uniform draws; and how an action moves them.

The same few lines serve the environments (many students at once), the trainer and the embedded sampler: every function takes any leading
shape.

An action is a *residual* in ``[-1, 1] ** (K + 2)``: a scaled change of the log share of each class, of the hardness and of the floor;
zero keeps the weights. One softmax turns log shares into shares. The total share of the classes other than the first (the *minority*)
stays between its prior and :func:`share_limit`: beyond that the few minority rows are only memorised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError

Floats = NDArray[np.float64]

MAX_HARDNESS = 3.0
ERROR_OFFSET = 1e-3
"""Added to a row's error before it is raised to the hardness, so that a perfectly learned row keeps a small chance."""

MAX_MINORITY_SHARE = 0.5
MAX_REPEATS = 8.0
"""Most times that a residual may let the average minority row be drawn in a whole run. Measured with the sequence classifier: 3 to 7 repeats are best
whatever the budget, and from 10 on the few rows are memorised (docs/experiments.md)."""
START_FLOOR = 0.05
SHARE_STEP = 0.75
"""Largest change of one log share in one epoch; in the two-class case the log-odds move by at most twice that."""
HARDNESS_STEP = 1.0
FLOOR_STEP = 0.1
_TINY = 1e-12


@dataclass(frozen=True)
class SamplingWeights:
    """How the rows of the next epoch are drawn.

    A class is drawn by ``share``; then a row of it, with probability ``floor`` uniformly, else with weight ``(error + 1e-3) ** hardness``.
    """

    share: Floats
    """(K,) probability of each class; sums to 1."""
    hardness: float = 0.0
    """Exponent in [0, 3]; 0 draws uniformly within a class."""
    floor: float = START_FLOOR
    """Part of the draws within a class that ignore hardness, in [0, 1]."""

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
        """The weights after one residual ``action`` (K + 2,); ``limit`` as in :func:`move`."""
        moved = move(self.share, np.float64(self.hardness), np.float64(self.floor), np.asarray(action, np.float64), prior, limit)
        share, hardness, floor = moved
        return SamplingWeights(share, float(hardness), float(floor))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; :meth:`from_dict` restores it exactly."""
        return {"share": self.share.tolist(), "hardness": self.hardness, "floor": self.floor}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SamplingWeights:
        """Inverse of :meth:`to_dict`."""
        return cls(np.array(state["share"], dtype=np.float64), float(state["hardness"]), float(state["floor"]))


def class_prior(counts: NDArray[Any]) -> Floats:
    """Share of each class among ``counts`` (K,)."""
    counts = np.asarray(counts, dtype=np.float64)
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def start_share(prior: Floats) -> Floats:
    """Where every policy starts: ``prior ** 0.5``, normalised (.0085 becomes .084)."""
    root = np.sqrt(prior)
    return np.asarray(root / root.sum(), dtype=np.float64)


def share_limit(train_counts: NDArray[Any], batch_budget: int) -> float:
    """Largest total share of the classes other than the first that residuals may reach: one half, and no more than :data:`MAX_REPEATS` draws of
    their average row over a run of ``batch_budget`` draws. A run so short that the limit binds nowhere keeps one half.
    """
    rows = float(np.asarray(train_counts, dtype=np.float64)[1:].sum())
    return min(MAX_MINORITY_SHARE, MAX_REPEATS * rows / max(batch_budget, 1))


def start_weights(prior: Floats, limit: float = MAX_MINORITY_SHARE) -> SamplingWeights:
    """Starting share, or less where ``limit`` is lower; no hardness, a small floor."""
    low, start = 1.0 - float(prior[0]), 1.0 - float(start_share(prior)[0])
    return SamplingWeights(minority_share(prior, max(low, min(start, limit))) if start > limit else start_share(prior))


def minority_share(prior: Floats, total: float) -> Floats:
    """(K,) shares with ``total`` given to the classes other than the first, divided among them by the root of their prior."""
    root = np.sqrt(prior[1:])
    return np.concatenate([[1.0 - total], total * root / max(root.sum(), _TINY)])


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
        limit: largest total share of the classes other than the first (:func:`share_limit`); their prior where that is larger.

    Returns:
        The new share (..., K), hardness (...), floor (...). A class without training rows keeps share 0.
    """
    action = np.clip(action, -1.0, 1.0)
    num_classes = share.shape[-1]
    logit = np.log(np.maximum(share, _TINY)) + SHARE_STEP * action[..., :num_classes]
    logit -= logit.max(axis=-1, keepdims=True)
    raw = np.exp(logit) * (prior > 0)
    raw /= raw.sum(axis=-1, keepdims=True)
    total = 1.0 - raw[..., :1]
    low = 1.0 - prior[0]
    high = max(limit, low)
    bounded = np.clip(total, low, high)
    minority = raw[..., 1:] * (bounded / np.maximum(total, _TINY))
    new_share = np.concatenate([1.0 - minority.sum(axis=-1, keepdims=True), minority], axis=-1)
    return (
        new_share,
        np.clip(hardness + HARDNESS_STEP * action[..., num_classes], 0.0, MAX_HARDNESS),
        np.clip(floor + FLOOR_STEP * action[..., num_classes + 1], 0.0, 1.0),
    )
