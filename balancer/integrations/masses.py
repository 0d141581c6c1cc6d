"""What the policy ``auto`` is for classifiers that are trained outside of a loop.

Trees that are added epoch by epoch, and linear models that are trained in steps, get a constant
(:data:`MILD`). An estimator that is fitted anew in each epoch tries a few masses of the classes, one an
epoch, and keeps the one that ranks held-out rows best (:class:`MassTrials`). Networks that are trained in
steps draw and count rows as in a loop of one's own. The figures behind this are in docs/experiments.md.
"""

from __future__ import annotations

from balancer.sampling.constant_policy import ConstantPolicy, PriorPower
from balancer.sampling.observation import Observation
from balancer.sampling.weights import START_FLOOR

NATURAL = ConstantPolicy(PriorPower(0.5), 0.0, START_FLOOR, "natural constant", class_importance=1.0, bounded=False)
"""Every row counts 1, so the estimator is trained as without a policy."""
MILD = ConstantPolicy(PriorPower(0.5), 0.0, START_FLOOR, "compensated constant", class_importance=0.5, bounded=False)
"""Class masses in proportion to ``prior ** .75``, without hardness: hard rows mislead linear models."""
POWERS = (0.5, 0.0, 0.75)
"""Exponents of the prior that are tried after the natural masses; 0 makes all classes equal."""


class MassTrials:
    """A policy that tries masses of the classes and then keeps the best.

    The first is the natural one, and it stays unless another is better. The figures must come from rows that
    were not trained on.

    Args:
        epochs: Number of epochs; with fewer than there are masses plus one, the last masses are not tried.

    >>> trials = MassTrials(4)
    >>> [trials.weights.name, *(trials.report(figure).name for figure in (0.3, 0.4, 0.2))]
    ['prior ** 1', 'prior ** 0.5', 'prior ** 0', 'prior ** 0.5']
    """

    name = "masses by trial"

    def __init__(self, epochs: int) -> None:
        tried = [ConstantPolicy(PriorPower(power), 0.0, START_FLOOR, f"prior ** {power:g}", bounded=False) for power in POWERS]
        natural = ConstantPolicy(NATURAL.share, 0.0, START_FLOOR, "prior ** 1", class_importance=1.0, bounded=False)
        self._candidates = [natural, *tried][: max(1, epochs - 1)]
        self._figures: list[float] = []

    @property
    def weights(self) -> ConstantPolicy:
        """The constant of the next epoch."""
        if len(self._figures) < len(self._candidates):
            return self._candidates[len(self._figures)]
        return self._candidates[max(range(len(self._candidates)), key=self._figures.__getitem__)]

    def report(self, figure: float) -> ConstantPolicy:
        """Tell the figure of the finished epoch, larger is better; returns the constant of the next one."""
        self._figures.append(figure)
        return self.weights

    def act(self, observation: Observation) -> ConstantPolicy:
        """The constant of the next epoch; the observation has no effect."""
        return self.weights
