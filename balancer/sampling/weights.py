"""Sampling weights: how rows are drawn, how much a drawn row counts in the loss, and how actions change both.

How often a row is drawn and how much it counts are two numbers. Class shares, hardness, floor and half-life
decide what is *drawn*. Two importance exponents decide how much a drawn row *counts*: 0 counts every drawn
row alike, 1 restores the natural objective (importance sampling). The mass of a class, its share times the
mean weight of its drawn rows, is what the model is trained with. Its logarithm is added to the logits in
training only (logit adjustment), so the raw logits are those of a stream in which all classes are equally
frequent.

Sources: exponent of an importance correction, Schaul et al. 2016, "Prioritized experience replay"; logit
adjustment, Menon et al. 2021, "Long-tail learning via logit adjustment".

The environments (many students at once), the trainer and the sampler's core use the same functions: each
accepts any leading shape.

An action is a *residual* in ``[-1, 1] ** (K + 4)``: a scaled change of the log share of each class, of the
hardness, of the two importance exponents and of the half-life. A residual of zero keeps the weights. Actions
of ``balancer/ClassWeights-v0`` have K + 2 numbers, log shares, hardness and floor, and bound the total share
of the *minority*, all classes but class 0, which is the negative class there (:func:`share_limit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError

Floats = NDArray[np.float64]

MAX_HARDNESS = 3.0
ERROR_OFFSET = 1e-3
"""Added to a row's error before it is raised to the hardness, so that every row can be drawn."""

MAX_MINORITY_SHARE = 0.5
MAX_REPEATS = 8.0
"""How often residuals of K + 2 numbers may let the average minority row be drawn, at most.

It counts for each pass over the table, or for the whole run where that is less than one pass. Such residuals
have no compensation; without it, a model memorises the few minority rows (docs/experiments.md)."""
START_FLOOR = 0.05
SHARE_STEP = 0.75
"""Largest change of a log share in an epoch; of two classes, the log-odds change by at most twice that."""
HARDNESS_STEP = 1.0
FLOOR_STEP = 0.1
IMPORTANCE_STEP = 0.25
HALF_LIFE_STEP = 1.0
"""Largest change of the binary logarithm of the half-life in an epoch."""
HALF_LIVES = (0.0625, 16.0)
"""Range of half-lives that residuals reach; the longest is the same as none."""
MOST_SHOWN = 10
"""Classes that a ``repr`` shows at most."""
_TINY = 1e-12
_SMALLEST_MASS = 1e-9


@dataclass(frozen=True)
class SamplingWeights:
    """How the rows of the next epoch are drawn, and how much each counts.

    A class is drawn by ``share``. Then a row of that class is drawn: with probability ``floor`` without
    hardness, otherwise with weight ``(error + 1e-3) ** hardness``. Samplers and estimators show ``share`` in
    the order of their ``classes_``.

    >>> weights = SamplingWeights(np.array([0.5, 0.5]), class_importance=0.5)
    >>> weights.class_weight(np.array([0.99, 0.01])).round(3).tolist()
    [1.817, 0.183]
    >>> np.exp(weights.logit_offset(np.array([0.99, 0.01]))).round(3).tolist()
    [0.909, 0.091]
    """

    share: Floats
    """(K,) probability of each class; sums to 1."""
    hardness: float = 0.0
    """Exponent in [0, 3]; 0 draws without regard to the error of a row."""
    floor: float = START_FLOOR
    """Fraction of the draws within a class that ignore hardness, in [0, 1]."""
    class_importance: float = 0.0
    """Exponent in [0, 1] of the loss weight ``(prior / share) ** class_importance`` of a class."""
    hardness_importance: float = 0.0
    """Exponent in [0, 1] of the loss weight of a row within its class.

    The weight is its probability without hardness, divided by its probability, to this power."""
    half_life: float = math.inf
    """Age at which a row is drawn half as often, above 0, as a fraction of the training rows' time span.

    Infinite: the age has no effect. It needs the times of the rows."""

    def __post_init__(self) -> None:
        share = np.asarray(self.share, dtype=np.float64)
        if share.ndim != 1 or len(share) < 2 or not np.isfinite(share).all() or share.min() < 0 or abs(share.sum() - 1) > 1e-6:
            raise InputError(f"class shares must be two or more non-negative numbers that sum to 1, not {share.tolist()}")
        if not 0 <= self.hardness <= MAX_HARDNESS:
            raise InputError(f"hardness must lie in [0, {MAX_HARDNESS:g}], not {self.hardness}")
        for name in ("floor", "class_importance", "hardness_importance"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie in [0, 1], not {getattr(self, name)}")
        if not self.half_life > 0:
            raise InputError(f"half_life must be above 0, not {self.half_life}")
        object.__setattr__(self, "share", share)

    @property
    def compensated(self) -> bool:
        """Whether drawn rows count differently in the loss."""
        return self.class_importance > 0 or self.hardness_importance > 0

    def class_weight(self, prior: Floats) -> Floats:
        """(K,) loss weight of each class, with mean 1 over the drawn rows; 0 for a class without a share.

        Args:
            prior: (K,) class prior of the training rows, in the order of ``share``.
        """
        return class_weights(self.share, self.class_importance, np.asarray(prior, dtype=np.float64))

    def logit_offset(self, prior: Floats) -> Floats:
        """(K,) what is added to the logits in training: the logarithm of each class's mass."""
        return np.asarray(np.log(np.maximum(self.share * self.class_weight(prior), _SMALLEST_MASS)))

    def moved(self, action: NDArray[Any], prior: Floats, limit: float = MAX_MINORITY_SHARE) -> SamplingWeights:
        """The weights after one residual ``action`` (K + 4,) or (K + 2,); the rest as in :func:`move`."""
        return move(stacked([self]), np.asarray(action, np.float64)[None], prior, limit).student(0)

    def described(self, names: Sequence[Any]) -> str:
        """The weights as text for a ``repr``; ``names`` (K,) are those of the classes."""
        shares = [f"{name!r}: {share:.3g}" for name, share in zip(names, self.share, strict=True)]
        if len(shares) > MOST_SHOWN:
            shares = [*shares[:MOST_SHOWN], f"... {len(shares)} classes"]
        used = {name: getattr(self, name) for name in ("class_importance", "hardness_importance") if getattr(self, name) > 0}
        if math.isfinite(self.half_life):
            used["half_life"] = self.half_life
        return f"share={{{', '.join(shares)}}}" + "".join(
            f", {name}={value:.3g}" for name, value in ({"hardness": self.hardness, "floor": self.floor} | used).items()
        )

    def reordered(self, order: NDArray[np.integer[Any]]) -> SamplingWeights:
        """The same weights in another class order: class ``i`` of the result is class ``order[i]`` here."""
        return SamplingWeights(self.share[order], *self._numbers())

    def _numbers(self) -> tuple[float, float, float, float, float]:
        """All fields but the shares."""
        return self.hardness, self.floor, self.class_importance, self.hardness_importance, self.half_life

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold; :meth:`from_dict` restores the weights exactly.

        What has no effect is left out: exponents of 0 and an infinite half-life.
        """
        values: dict[str, Any] = {"share": self.share.tolist(), "hardness": self.hardness, "floor": self.floor}
        values |= {name: getattr(self, name) for name in ("class_importance", "hardness_importance") if getattr(self, name) > 0}
        return values | ({"half_life": self.half_life} if math.isfinite(self.half_life) else {})

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SamplingWeights:
        """Restore weights from the values of :meth:`to_dict`."""
        optional = {name: float(state[name]) for name in ("class_importance", "hardness_importance", "half_life") if name in state}
        return cls(np.array(state["share"], dtype=np.float64), float(state["hardness"]), float(state["floor"]), **optional)


class WeightArrays(NamedTuple):
    """Weights of M students."""

    share: Floats
    """(M, K)."""
    hardness: Floats
    """(M,)."""
    floor: Floats
    """(M,)."""
    class_importance: Floats
    """(M,)."""
    hardness_importance: Floats
    """(M,)."""
    half_life: Floats
    """(M,)."""

    def student(self, number: int) -> SamplingWeights:
        """The weights of one student."""
        return SamplingWeights(self.share[number], *(float(values[number]) for values in self[1:]))

    def class_weight(self, prior: Floats) -> Floats:
        """(M, K) loss weights of the classes."""
        return class_weights(self.share, self.class_importance[:, None], prior)

    def logit_offset(self, prior: Floats) -> Floats:
        """(M, K) what is added to the logits in training."""
        return np.asarray(np.log(np.maximum(self.share * self.class_weight(prior), _SMALLEST_MASS)))


def stacked(weights: Sequence[SamplingWeights]) -> WeightArrays:
    """The weights of M students as arrays."""
    numbers = np.array([each._numbers() for each in weights], dtype=np.float64).T
    return WeightArrays(np.stack([each.share for each in weights]), *numbers)


def class_weights(share: Floats, importance: Any, prior: Floats) -> Floats:
    """Loss weights of classes, with mean 1 over the drawn rows.

    Args:
        share: (..., K) class shares.
        importance: Exponent, a number or (..., 1).
        prior: (K,) class prior of the training rows.

    Returns:
        (..., K); 0 for a class without a share or without rows.
    """
    drawn = (share > 0) & (prior > 0)
    ratio = np.where(drawn, prior, 1.0) / np.where(drawn, share, 1.0)
    weight = np.where(drawn, ratio**importance, 0.0)
    return np.asarray(weight / np.maximum((share * weight).sum(axis=-1, keepdims=True), _TINY), dtype=np.float64)


def output_bias(share: Floats) -> Floats:
    """(..., K) biases of an output layer that predicts the class shares; 0 for equal shares.

    >>> output_bias(np.array([0.9, 0.1])).round(3).tolist()
    [0.588, -1.609]
    """
    logarithm = np.log(np.maximum(share, _SMALLEST_MASS))
    return np.asarray(logarithm + np.log(share.shape[-1]), dtype=np.float64)


def class_prior(counts: NDArray[Any]) -> Floats:
    """Share of each class among ``counts`` (K,)."""
    counts = np.asarray(counts, dtype=np.float64)
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def start_share(prior: Floats) -> Floats:
    """Class shares that every policy starts from: ``prior ** 0.5``, normalised (.0085 becomes .084)."""
    root = np.sqrt(prior)
    return np.asarray(root / root.sum(), dtype=np.float64)


def share_limit(train_counts: NDArray[Any], batch_budget: int) -> float:
    """Largest total share of the minority that residuals of K + 2 numbers may reach.

    It is one half, and at most :data:`MAX_REPEATS` draws of the average minority row in each pass over the
    table (in the whole run where that is less than one pass).

    Args:
        train_counts: (K,) training rows of each class.
        batch_budget: Rows drawn in the whole run.
    """
    counts = np.asarray(train_counts, dtype=np.float64)
    passes = max(1.0, batch_budget / max(float(counts.sum()), 1.0))
    return min(MAX_MINORITY_SHARE, MAX_REPEATS * passes * float(counts[1:].sum()) / max(batch_budget, 1))


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


def move(weights: WeightArrays, action: Floats, prior: Floats, limit: float = MAX_MINORITY_SHARE) -> WeightArrays:
    """Apply residual actions to the weights of M students.

    Args:
        weights: Present weights.
        action: (M, K + 4), or (M, K + 2) as in ``balancer/ClassWeights-v0``; clipped to [-1, 1].
        prior: (K,).
        limit: For K + 2 numbers, the largest total share of the minority (:func:`share_limit`); its prior
            counts where that is larger. K + 4 numbers are not limited, because compensation bounds what a row
            that is drawn often counts.

    Returns:
        The new weights. A class without training rows keeps share 0.
    """
    action, num_classes = np.clip(action, -1.0, 1.0), weights.share.shape[-1]
    logit = np.log(np.maximum(weights.share, _TINY)) + SHARE_STEP * action[..., :num_classes]
    logit -= logit.max(axis=-1, keepdims=True)
    raw = np.exp(logit) * (prior > 0)
    raw /= raw.sum(axis=-1, keepdims=True)
    hardness = np.clip(weights.hardness + HARDNESS_STEP * action[..., num_classes], 0.0, MAX_HARDNESS)
    rest = action[..., num_classes + 1 :]
    if rest.shape[-1] == 1:
        floor = np.clip(weights.floor + FLOOR_STEP * rest[..., 0], 0.0, 1.0)
        return weights._replace(share=bounded_share(raw, prior, limit), hardness=hardness, floor=floor)
    class_importance, hardness_importance = (
        np.clip(exponent + IMPORTANCE_STEP * rest[..., column], 0.0, 1.0)
        for column, exponent in enumerate((weights.class_importance, weights.hardness_importance))
    )
    shortest, longest = HALF_LIVES
    half_life = np.clip(np.minimum(weights.half_life, longest) * 2.0 ** (HALF_LIFE_STEP * rest[..., 2]), shortest, longest)
    half_life = np.where(half_life >= longest, np.inf, half_life)
    return WeightArrays(raw, hardness, weights.floor, class_importance, hardness_importance, half_life)
