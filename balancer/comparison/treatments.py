"""Treatments of a comparison by name, and the interface of a trainer that trains them with equal budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from balancer.comparison.config import PLAIN
from balancer.sampling.policies import load_policy
from balancer.sampling.weights import Floats
from balancer.training.treatment import FIXED, Treatment, fixed_treatment, policy_treatment

ScorePair = tuple[np.ndarray, np.ndarray]
"""Raw class probabilities (rows, K) of the threshold half and of the test rows."""
Tick = Callable[[str], None]
"""Called once an epoch with a short text about the progress."""


@dataclass(frozen=True)
class Trained:
    """Treatments after their last epoch; all arrays have the order of the treatments."""

    reward: Floats
    """(M,) average precision on the reward half, all positive classes together."""
    minority_share: Floats
    """(M,) total share of all classes but class 0 in the last epoch."""
    hardness: Floats
    """(M,) hardness of the last epoch."""
    notes: tuple[tuple[str, ...], ...]
    """Notes of each treatment's policy."""
    scores: Callable[[Sequence[int]], list[ScorePair]]
    """Scores of the treatments with the given numbers."""


class Trainer(Protocol):
    """Trains treatments with equal budget."""

    side_by_side: bool
    """Whether treatments cost less when they are trained together."""

    @property
    def counts(self) -> Floats:
        """(K,) training rows of each class."""
        ...

    def train(self, treatments: Sequence[Treatment], seed: int, tick: Tick) -> Trained:
        """Train treatments; everything else is equal, including the random numbers.

        Args:
            treatments: The treatments.
            seed: Random seed.
            tick: Called once an epoch.
        """
        ...


def named_treatment(name: str, counts: Floats, seed: int) -> Treatment:
    """The treatment with a name: one of the fixed treatments, or a policy.

    Policies are trained with the sampler's loss; ``plain:`` before the name trains with the cross-entropy.

    Args:
        name: A fixed treatment (:data:`~balancer.training.treatment.FIXED`), or a policy as
            :func:`~balancer.sampling.policies.load_policy` takes it, also after ``plain:``.
        counts: (K,) training rows of each class.
        seed: Random seed of the policy ``random``.

    Raises:
        InputError: There is no policy of that name.
    """
    if name in FIXED:
        return fixed_treatment(name, counts)
    policy = name.removeprefix(PLAIN)
    loaded = load_policy(f"random:seed={seed}" if policy == "random" else policy, num_classes=len(counts))
    return Treatment(name, loaded) if policy != name else policy_treatment(name, loaded)
