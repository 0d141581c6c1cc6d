"""Class first, then row: the sampler that turns :class:`SamplingWeights` into rows.

A class is drawn by its share, then one of its rows: uniformly, or with weight ``(error + 1e-3) ** hardness`` where ``error`` is the last
known ``1 - p(true class)``. Hardness acts on the first class, the negative one, alone: there the error is the fraud score, and hard
negatives are the false alarms to come, whereas the hard rows of a rare class are mostly its mislabelled and unlearnable ones.

Scores arrive piecemeal from sub-sampled pools. Were a row that was never scored to carry the mean weight of those that were, nearly all draws of a large
table would ignore hardness for most of the training. So the scored rows get the part ``q = max(scored / rows, min(1, scored / draws))`` of the hard draws: as
many as there are scored rows to choose from, and at the least what the mean weight would give them.

No row is expected more than :data:`MAX_HARD_DRAWS` times in one call of ``draw`` (an epoch): weights are cut to that, for the few hardest rows of a small table
would otherwise be drawn hundreds of times and memorised, and with them the look-alikes among the frauds.

Cumulative sums are built once an epoch; after that a draw costs a binary search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.weights import ERROR_OFFSET, SamplingWeights, class_prior

HARD_CLASS = 0
"""The class within which hardness acts."""
MAX_HARD_DRAWS = 2.0
"""Most times that a row of it is expected to be drawn in an epoch for being hard, or that many times the average of a small table's rows."""
NEWTON_STEPS = 8
"""Cutting weights lowers their sum and so the limit itself; Newton's method finds the limit from above, nearly always in fewer steps."""


class _HardTable:
    """Cumulative weights of the scored rows of the first class, at one hardness and number of draws."""

    def __init__(self, error: NDArray[np.float32], hardness: float, draws: int) -> None:
        unscored = np.isnan(error)
        self._scored, self._unscored = np.flatnonzero(~unscored), np.flatnonzero(unscored)
        self._part = scored_part(len(self._scored), len(error), draws)
        weight = np.power(error[self._scored] + np.float32(ERROR_OFFSET), np.float32(hardness)).astype(np.float64)
        most = largest_probability(len(self._scored), self._part * draws)
        limit = most * weight.sum()
        for _ in range(NEWTON_STEPS):
            over = weight > limit
            limit = most * weight[~over].sum() / (1.0 - most * over.sum())
        self._cumulative = np.cumsum(np.minimum(weight, limit))

    def places(self, within: NDArray[np.float64], stage: NDArray[np.float64]) -> NDArray[np.int64]:
        """Places for uniform numbers: ``stage`` decides between scored and unscored rows, ``within`` which of them."""
        scored, unscored = len(self._scored), len(self._unscored)
        result = np.empty(len(within), dtype=np.int64)
        hard = stage < self._part
        if scored:
            found = np.searchsorted(self._cumulative, within[hard] * self._cumulative[-1], side="right")
            result[hard] = self._scored[np.minimum(found, scored - 1)]
        if unscored:
            result[~hard] = self._unscored[np.minimum((within[~hard] * unscored).astype(np.int64), unscored - 1)]
        return result


def scored_part(scored: int, rows: int, draws: int | NDArray[np.integer[Any]]) -> Any:
    """Part of the hard draws that goes to the scored rows; see the module's docstring."""
    return np.maximum(scored / max(rows, 1), np.minimum(1.0, scored / np.maximum(draws, 1)))


def largest_probability(scored: int, draws: Any) -> Any:
    """Probability that no scored row may exceed, so that none is expected more than :data:`MAX_HARD_DRAWS` times among ``draws``, or that many times as
    often as the average row where there are more draws than rows.
    """
    return MAX_HARD_DRAWS * np.maximum(1.0 / np.maximum(draws, 1.0), 1.0 / max(scored, 1))


class RowSampler:
    """Draws rows of a labelled table, with replacement.

    Args:
        labels: (N,) class index of each row, -1 for a row that is never to be drawn (unlabelled, or not a training row).
        num_classes: K; InputError where a label is out of range, or fewer than two classes have rows.
    """

    def __init__(self, labels: NDArray[np.integer[Any]], num_classes: int) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(f"labels must be one vector of class indices, not {labels.dtype} of shape {labels.shape}")
        if len(labels) and (labels.min() < -1 or labels.max() >= num_classes):
            raise InputError(f"labels must lie in -1 to {num_classes - 1}, found {labels.min()} to {labels.max()}")
        self.num_classes = num_classes
        self.counts: NDArray[np.int64] = np.bincount(labels[labels >= 0], minlength=num_classes).astype(np.int64)
        if (self.counts > 0).sum() < 2:
            raise InputError("training rows hold one class only; sampling needs at least two, check the label column and the split")
        self._rows = [np.flatnonzero(labels == c) for c in range(num_classes)]
        self._place = np.full(len(labels), -1, dtype=np.int64)
        self._place[self._rows[HARD_CLASS]] = np.arange(self.counts[HARD_CLASS])
        self._error = np.full(self.counts[HARD_CLASS], np.nan, dtype=np.float32)
        self.draws: NDArray[np.int64] = np.zeros(num_classes, dtype=np.int64)
        """(K,) rows drawn of each class so far."""

    @property
    def prior(self) -> NDArray[np.float64]:
        """(K,) share of each class among the rows that can be drawn."""
        return class_prior(self.counts)

    @property
    def repeats(self) -> NDArray[np.float64]:
        """(K,) how often a row of each class was drawn so far, on average."""
        return np.asarray(self.draws / np.maximum(self.counts, 1), dtype=np.float64)

    def refresh(self, rows: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]]) -> None:
        """Remember the scores of some rows.

        Args:
            rows: (n,) rows of the table; those of other classes than the first are ignored.
            scores: (n, K) class probabilities; InputError where one is not finite or the lengths differ, and nothing is changed.
        """
        rows, scores = np.asarray(rows), np.asarray(scores)
        if scores.shape != (len(rows), self.num_classes):
            raise InputError(
                f"scores must be ({len(rows)}, {self.num_classes}) for {len(rows)} rows and {self.num_classes} classes, not {scores.shape}"
            )
        if not np.isfinite(scores).all():
            raise InputError("a score is not finite; check the model's output for NaN before handing it over")
        place = self._place[rows]
        known = place >= 0
        self._error[place[known]] = np.clip(1.0 - scores[known, HARD_CLASS], 0.0, 1.0)

    def draw(self, n: int, weights: SamplingWeights, rng: np.random.Generator) -> NDArray[np.int64]:
        """(n,) rows, drawn by ``weights``; a function of its arguments and the scores remembered, so a resumed run draws the same."""
        if len(weights.share) != self.num_classes:
            raise InputError(f"weights are for {len(weights.share)} classes, the labels have {self.num_classes}")
        share = np.where(self.counts > 0, weights.share, 0.0)
        edges = np.cumsum(share / share.sum())
        edges[-1] = 1.0
        drawn = np.searchsorted(edges, rng.random(n), side="right")
        within, mixed = rng.random(n), rng.random(n)
        rows = np.empty(n, dtype=np.int64)
        for c, own in enumerate(self._rows):
            chosen = np.flatnonzero(drawn == c)
            if not len(chosen):
                continue
            place = np.minimum((within[chosen] * len(own)).astype(np.int64), len(own) - 1)
            if c == HARD_CLASS and weights.hardness > 0:
                table = _HardTable(self._error, weights.hardness, len(chosen))
                stage = (mixed[chosen] - weights.floor) / max(1.0 - weights.floor, 1e-12)
                hard = stage >= 0
                place[hard] = table.places(within[chosen[hard]], stage[hard])
            rows[chosen] = own[place]
            self.draws[c] += len(chosen)
        return rows

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays that :meth:`load_state` needs: ``error`` (rows of the first class,) float32 with NaN for never scored, ``draws`` (K,)."""
        return {"error": self._error.copy(), "draws": self.draws.copy()}

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`state`; InputError where it was saved for other rows."""
        if state["error"].shape != self._error.shape or state["draws"].shape != self.draws.shape:
            raise InputError("saved sampler state is for other training rows; continue with the table the run was started on")
        self._error, self.draws = state["error"].astype(np.float32).copy(), state["draws"].astype(np.int64).copy()
