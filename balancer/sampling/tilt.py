"""What hardness does to the probabilities of a model, and how it is taken out of them.

Within a class, rows with a large error are drawn more often, so a model learns the density of the class
times a *tilt* ``m(error)``: how often a row with this error is drawn, relative to an even draw, and times the
weight that it counts by. Let ``z`` (n, K) be the raw logits of a model that was trained with the offset of
the class shares, and let errors be those of their softmax. Then the tilt of a row is a function of z alone.
The logarithm of the density of class ``c`` is ``z_c - log m_c(error_c)``, and the natural posterior is

    p = softmax(z + log prior - log m(error(z)))

Where hardness does not act, m is 1.

Loops give the sampler either these probabilities or the softmax of the raw logits. The scored training rows,
whose classes are known, show which (:func:`are_natural`); natural probabilities are converted back
(:meth:`HardnessTilt.raw_scores`). So the errors never depend on the correction, which would make it swing
from epoch to epoch.

It is exact for a model that fits, and as far as the scores of the last update are those of the present model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.sampling.weights import ERROR_OFFSET, Floats

_TINY = 1e-300
_GRID = np.linspace(-40.0, 40.0, 8001)
"""Differences of two raw logits at which the correction is tabulated; beyond them it is constant."""
_PRECISION = 1e-6
"""Largest change of a logit in the last iteration."""
_ITERATIONS = 200
_CELLS = 100_000
"""Scores that are looked at by :func:`are_natural`, at most; more are thinned evenly."""
_STEPS = 40


@dataclass(frozen=True)
class HardnessTilt:
    """The tilt of each class in an epoch.

    Classes have the order of the shares.
    """

    hardness: float
    floor: float
    importance: float
    """Exponent of the rows' weights; 0 where the loss counts by class alone."""
    terms: Floats
    """(6, K) of each class; NaN where hardness does not act.

    Factor, lowest and highest weight of a scored row, and probability of an unscored one, all relative to an
    even draw; part of the rows that are scored; mean of the rows' weights over the draws."""

    def log_mass(self, scores: Floats) -> Floats:
        """(n, K) logarithm of the tilt of rows with the softmax ``scores`` (n, K); 0 without hardness."""
        result = np.zeros_like(scores)
        for c in np.flatnonzero(~np.isnan(self.terms[0])).tolist():
            factor, low, high, unscored, part, mean = self.terms[:, c]
            weight = np.clip((1.0 - scores[:, c] + ERROR_OFFSET) ** self.hardness, low, high)
            mass = part * self._counted(factor * weight) + (1.0 - part) * self._counted(unscored)
            result[:, c] = np.log(np.maximum(mass / mean, _TINY))
        return result

    def _counted(self, relative: Any) -> Any:
        """Frequency times weight of a row, from its probability in a hard draw relative to an even one."""
        return np.maximum(self.floor + (1.0 - self.floor) * relative, _TINY) ** (1.0 - self.importance)

    def correction(self, logits: Floats) -> Floats:
        """(n, K) what to add to the raw logits (n, K) of a model."""
        return -self.log_mass(_softmax(logits))

    def raw_scores(self, p: Floats, prior: Floats) -> Floats:
        """(n, K) softmax of the raw logits that natural probabilities ``p`` (n, K) came from.

        Args:
            p: As ``softmax(logits + correction(logits) + log(prior))``.
            prior: (K,).
        """
        target = np.log(np.maximum(p, 1e-12)) - np.log(np.maximum(prior, 1e-12))
        if p.shape[1] == 2:
            change = self.correction(np.stack([np.zeros_like(_GRID), _GRID], axis=1))
            corrected = _GRID + change[:, 1] - change[:, 0]  # increases faster than the grid
            wide = np.interp(target[:, 1] - target[:, 0], corrected, _GRID)
            return _softmax(np.stack([np.zeros_like(wide), wide], axis=1))
        logits, active = target.copy(), np.arange(len(target))
        for _ in range(_ITERATIONS):
            if not len(active):
                break
            # The correction changes by at most -hardness times a change of the logits: the steps converge.
            step = (target[active] - self.correction(logits[active]) - logits[active]) / (1.0 + self.hardness)
            logits[active] += step
            active = active[np.abs(step).max(axis=1) > _PRECISION]
        return _softmax(logits)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold; :meth:`from_dict` restores the tilt."""
        terms = [[None if np.isnan(value) else value for value in row] for row in self.terms.tolist()]
        numbers = {"hardness": self.hardness, "floor": self.floor, "importance": self.importance}
        return numbers | {"terms": terms}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], num_classes: int) -> HardnessTilt:
        """Restore a tilt from the values of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: The values are incomplete or for another number of classes.
        """
        terms = np.array(state["terms"], dtype=np.float64)
        if terms.shape != (6, num_classes):
            raise ValueError(f"tilt of shape {terms.shape} for {num_classes} classes")
        return cls(float(state["hardness"]), float(state["floor"]), float(state["importance"]), terms)


def are_natural(
    codes: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]], prior: Floats, weight: NDArray[np.floating[Any]] | None = None
) -> bool:
    """Whether scores are probabilities of the natural stream, not of one with equally frequent classes.

    Natural probabilities have the class frequencies as their mean. So the shift of the scores' logarithms
    that gives them the frequencies of rows with known classes is that of the prior, or none. Classes may be
    thinned among the rows.

    Args:
        codes: (n,) class of each row.
        scores: (n, K).
        prior: (K,) class prior of the natural stream.
        weight: (n,) how many rows each represents; None: 1.
    """
    num_classes = len(prior)
    every = max(1, len(codes) * num_classes // _CELLS)
    codes, log_score = codes[::every], np.log(np.maximum(scores[::every], 1e-12))
    weight = None if weight is None else weight[::every]
    counts = np.bincount(codes, weight, minlength=num_classes) + 0.5
    shift = np.zeros(num_classes)
    for _ in range(_STEPS):  # iterative proportional fitting
        scored = _softmax(log_score + shift)
        step = np.log(counts / ((scored.sum(axis=0) if weight is None else weight @ scored) + 0.5))
        shift += step
        if np.abs(step).max() < 1e-3:
            break
    log_prior = np.log(np.maximum(prior, 1e-12))
    missing = shift + log_prior - np.log(counts / counts.sum())  # what natural probabilities have more than the scores
    centred = log_prior - log_prior.mean()
    return bool((missing - missing.mean()) @ centred <= 0.5 * (centred @ centred))


def _softmax(logits: Floats) -> Floats:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))
