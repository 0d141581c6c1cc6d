"""Class first, then row: the sampler that turns :class:`SamplingWeights` into rows.

A class is drawn by its share, then one of its rows: uniformly, or with weight ``(error + 1e-3) ** hardness`` where ``error`` is the last
known ``1 - p(true class)``. Hardness acts on the first class, the negative one, alone: for it the error is the fraud score, and hard
negatives are the false alarms to come, whereas the hard rows of a rare class are mostly its mislabelled and unlearnable ones. Scores
arrive piecemeal from sub-sampled pools; a row that was never scored carries the mean weight of those that were. Cumulative sums are
rebuilt once when weights or scores change, after that a draw costs a binary search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.weights import ERROR_OFFSET, SamplingWeights, class_prior

HARD_CLASS = 0
"""The class within which hardness acts."""


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
        self._cumulative: NDArray[np.float64] | None = None
        self._hardness = 0.0
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
        self._cumulative = None

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
                hard = np.flatnonzero(mixed[chosen] >= weights.floor)
                cumulative = self._table(weights.hardness)
                found = np.searchsorted(cumulative, within[chosen[hard]] * cumulative[-1], side="right")
                place[hard] = np.minimum(found, len(own) - 1)
            rows[chosen] = own[place]
            self.draws[c] += len(chosen)
        return rows

    def _table(self, hardness: float) -> NDArray[np.float64]:
        """Cumulative weights of the first class's rows."""
        if self._cumulative is None or self._hardness != hardness:
            unscored = np.isnan(self._error)
            weight = np.power(self._error + np.float32(ERROR_OFFSET), np.float32(hardness))
            mean = float(weight[~unscored].mean(dtype=np.float64)) if not unscored.all() else 1.0
            weight[unscored] = max(mean, 1e-30)
            self._cumulative, self._hardness = np.cumsum(weight, dtype=np.float64), hardness
        return self._cumulative

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays that :meth:`load_state` needs: ``error`` (rows of the first class,) float32 with NaN for never scored, ``draws`` (K,)."""
        return {"error": self._error.copy(), "draws": self.draws.copy()}

    def load_state(self, state: dict[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`state`; InputError where it was saved for other rows."""
        if state["error"].shape != self._error.shape or state["draws"].shape != self.draws.shape:
            raise InputError("saved sampler state is for other training rows; continue with the table the run was started on")
        self._error, self.draws = state["error"].astype(np.float32).copy(), state["draws"].astype(np.int64).copy()
        self._cumulative = None
