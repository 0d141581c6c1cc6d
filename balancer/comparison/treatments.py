"""Arms of a comparison: a policy, the loss it trains with and the rows it draws from; and what a student gives back for them.

A *student* (:class:`Student`) trains arms side by side and hands out scores on demand; whoever compares needs to know no more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from balancer.sampling.observation import Observation
from balancer.sampling.policies import Policy, load_policy
from balancer.sampling.weights import START_FLOOR, Floats, SamplingWeights
from balancer.training.fitting import baseline_scheme

Rows = Literal["all", "under", "smote"]
Loss = Literal["plain", "class_weight", "focal", "logit_adjustment"]
ScorePair = tuple[np.ndarray, np.ndarray]
"""Raw class probabilities (rows, K) on the threshold half and on the test rows."""
Tick = Callable[[str], None]
"""Told in a few words what is going on, once an epoch."""


@dataclass(frozen=True)
class FixedShares:
    """The same class shares in every epoch and no hardness, said class by class (:class:`~balancer.sampling.policies.ConstantPolicy` says the total)."""

    share: tuple[float, ...]
    name: str

    def act(self, observation: Observation) -> SamplingWeights:
        """The shares."""
        return SamplingWeights(np.array(self.share), 0.0, START_FLOOR)


@dataclass(frozen=True)
class Arm:
    """One way of training."""

    name: str
    policy: Policy
    rows: Rows = "all"
    """``under``: the first class thinned once to the number of the others. ``smote``: the others multiplied to the number of the first."""
    loss: Loss = "plain"


@dataclass(frozen=True)
class Trained:
    """Arms after their last epoch; all arrays in the order of the arms."""

    reward: Floats
    """(M,) average precision of fraud of any kind on the reward half."""
    minority_share: Floats
    """(M,) total share of the classes but the first in the last epoch."""
    hardness: Floats
    """(M,)."""
    notes: tuple[tuple[str, ...], ...]
    """What a policy has to say of itself."""
    scores: Callable[[Sequence[int]], list[ScorePair]]
    """Scores of some of the arms."""


class Student(Protocol):
    """Trains arms at equal budget."""

    side_by_side: bool
    """Whether arms cost less when they are trained together."""

    @property
    def counts(self) -> Floats:
        """(K,) training rows of each class."""
        ...

    def train(self, arms: Sequence[Arm], seed: int, tick: Tick) -> Trained:
        """Train ``arms`` with everything else equal, random numbers included."""
        ...


def fixed_arm(name: str, counts: Floats, seed: int) -> Arm:
    """Arm of a policy that nothing is chosen for, on training rows of ``counts`` (K,); InputError where there is no policy of that name."""
    prior = baseline_scheme("none", counts).share
    assert prior is not None
    if name in ("none", "one_to_one"):
        share = baseline_scheme(name, counts).share
        assert share is not None
        return Arm(name, FixedShares(tuple(share.tolist()), name))
    if name in ("class_weight", "focal", "logit_adjustment"):
        return Arm(name, FixedShares(tuple(prior.tolist()), name), loss=name)  # type: ignore[arg-type]  # narrowed by the line above
    if name in ("under", "smote"):
        balanced = baseline_scheme("one_to_one", counts).share
        assert balanced is not None
        return Arm(name, FixedShares(tuple(balanced.tolist()), name), rows=name)  # type: ignore[arg-type]
    return Arm(name, load_policy(f"random:seed={seed}" if name == "random" else name, num_classes=len(counts)))
