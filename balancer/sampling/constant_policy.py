"""The constant as a policy: the same sampling weights in every epoch.

The class shares of a constant can be given in four ways: as the total share of the minority (all classes but
class 0), as the prior, class by class, or as a power of the prior (:class:`PriorPower`). The last way suits
any table, so learned policies fall back on such a constant: :data:`FALLBACK`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from balancer.errors import InputError
from balancer.sampling.observation import Observation
from balancer.sampling.weights import (
    MAX_HARDNESS,
    MAX_MINORITY_SHARE,
    START_FLOOR,
    Floats,
    SamplingWeights,
    bounded_share,
    minority_share,
)

DEFAULT_SHARE = 0.2
"""Total share of the minority in the best constant of the published grid over share and hardness."""


def _check_range(name: str, value: float, high: float) -> None:
    if not 0 <= value <= high:
        raise InputError(f"{name} of a constant policy must lie in [0, {high:g}], not {value}")


@dataclass(frozen=True)
class PriorPower:
    """Class shares in proportion to ``prior ** power``, within the run's limit on the minority's share."""

    power: float = 0.5
    """1 keeps the prior, 0 makes all classes equal, below 0 rare classes are drawn more often than others."""

    def __post_init__(self) -> None:
        if not -1 <= self.power <= 1:
            raise InputError(f"share_power of a constant policy must lie in [-1, 1], not {self.power}")

    def share(self, prior: Floats, limit: float | None = MAX_MINORITY_SHARE) -> Floats:
        """(K,) shares for ``prior`` (K,); the minority's total lies between its prior and ``limit``.

        With None every class has its power of the prior, without bounds.

        >>> PriorPower(0.5).share(np.array([0.99, 0.01])).round(3).tolist()
        [0.909, 0.091]
        >>> PriorPower(0.5).share(np.array([0.99, 0.01]), 0.05).round(3).tolist()
        [0.95, 0.05]
        """
        prior = np.asarray(prior, dtype=np.float64)
        share = np.where(prior > 0, prior, 1.0) ** self.power * (prior > 0)
        share /= share.sum()
        return share if limit is None else bounded_share(share, prior, limit)


@dataclass(frozen=True)
class ConstantPolicy:
    """The same weights in every epoch; the default is the best constant of the published grid.

    >>> ConstantPolicy((0.5, 0.3, 0.2), hardness=0.0).fixed_weights().share.tolist()
    [0.5, 0.3, 0.2]
    """

    share: float | tuple[float, ...] | PriorPower | None = DEFAULT_SHARE
    """Class shares.

    A number is the total share of the minority, divided among its classes by the root of their prior. None
    keeps every class at its prior. A tuple holds the share of each class. A :class:`PriorPower` depends on
    the prior and on the run's share limit."""
    hardness: float = 1.0
    floor: float = START_FLOOR
    name: str = "constant"
    class_importance: float = 0.0
    hardness_importance: float = 0.0
    half_life: float = math.inf
    bounded: bool = True
    """Whether the run's limit on the minority's share bounds a :class:`PriorPower`."""

    def __post_init__(self) -> None:
        _check_range("hardness", self.hardness, MAX_HARDNESS)
        for name in ("floor", "class_importance", "hardness_importance"):
            _check_range(name, getattr(self, name), 1.0)

    @classmethod
    def of(cls, weights: SamplingWeights, name: str = "constant") -> ConstantPolicy:
        """The constant with given weights."""
        return cls(
            tuple(weights.share.tolist()),
            weights.hardness,
            weights.floor,
            name,
            weights.class_importance,
            weights.hardness_importance,
            weights.half_life,
        )

    def act(self, observation: Observation) -> SamplingWeights | ConstantPolicy:
        """The constant weights.

        A total share below the minority's prior is raised to that prior: a balanced table is not thinned.

        Returns:
            The weights; or this policy where the shares depend on the run's prior and limit, which an
            observation does not hold. :func:`balancer.sampling.policies.answered` turns it into weights.
        """
        if isinstance(self.share, PriorPower):
            return self
        return self.weights(observation.prior)

    def weights(self, prior: Floats, limit: float = MAX_MINORITY_SHARE) -> SamplingWeights:
        """The weights for training rows with ``prior`` (K,); ``limit`` bounds a :class:`PriorPower` only."""
        if isinstance(self.share, PriorPower):
            share = self.share.share(prior, limit if self.bounded else None)
        elif isinstance(self.share, tuple):
            share = np.array(self.share)
        elif self.share is None:
            share = prior
        else:
            share = total_share(prior, self.share)
        return SamplingWeights(share, self.hardness, self.floor, self.class_importance, self.hardness_importance, self.half_life)

    def fixed_weights(self) -> SamplingWeights | None:
        """The weights where they depend on nothing (shares given class by class, no hardness), else None.

        A training under such weights needs no scores of its training rows.
        """
        if isinstance(self.share, tuple) and self.hardness == 0:
            return self.weights(np.array(self.share))
        return None


COMPENSATED = ConstantPolicy(PriorPower(1.0 / 3.0), 1.0, START_FLOOR, "compensated constant", 0.5, bounded=False)
"""The constant for any table where drawn rows are counted by the sampler's loss (docs/experiments.md)."""

PLAIN = ConstantPolicy(PriorPower(0.0), 0.5, START_FLOOR, "plain constant", bounded=False)
"""The constant for two classes and a loss that counts every row alike: equal shares, as in over-sampling."""

PLAIN_MANY = ConstantPolicy(PriorPower(-0.1), 0.0, START_FLOOR, "plain constant", bounded=False)
"""The same for more classes.

Without compensation, hardness moves the borders towards the frequent classes."""


@dataclass(frozen=True)
class DefaultPolicy:
    """The constant of the package: :data:`COMPENSATED` with the sampler's loss, otherwise a plain one.

    It suits any table and any number of classes, and it needs no training.
    """

    name: str = "constant"

    def act(self, observation: Observation) -> SamplingWeights:
        """The constant weights for the prior and the loss in use."""
        if observation.compensated:
            constant = COMPENSATED
        else:
            constant = PLAIN if len(observation.per_class) == 2 else PLAIN_MANY
        return constant.weights(observation.prior)


FALLBACK = ConstantPolicy(PriorPower(0.5), hardness=1.0, floor=START_FLOOR, name="good_constant")
"""The constant that learned policies of K + 2 numbers fall back on: the best one of their training tasks."""


def total_share(prior: Floats, share: float) -> Floats:
    """(K,) class shares: ``share``, or the minority's prior where that is more, goes to the minority."""
    return minority_share(prior, max(share, 1.0 - float(prior[0])))


def fallback_to_dict(policy: ConstantPolicy) -> dict[str, float]:
    """The ``fallback`` of a ``policy.json`` for a constant whose shares are a :class:`PriorPower`."""
    assert isinstance(policy.share, PriorPower)
    return {"share_power": policy.share.power, "hardness": policy.hardness, "floor": policy.floor}


def fallback_from_dict(values: Mapping[str, Any]) -> ConstantPolicy:
    """The constant that a ``policy.json`` describes; missing values are those of :data:`FALLBACK`.

    Raises:
        InputError: A number is out of range.
        TypeError, ValueError: An unknown key, or a value that is no number.
    """
    unknown = set(values) - {"share_power", "hardness", "floor"}
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r} in fallback")
    numbers = {name: float(value) for name, value in values.items()}
    power = numbers.pop("share_power", None)
    share = FALLBACK.share if power is None else PriorPower(power)
    return ConstantPolicy(share, numbers.get("hardness", FALLBACK.hardness), numbers.get("floor", FALLBACK.floor), FALLBACK.name)
