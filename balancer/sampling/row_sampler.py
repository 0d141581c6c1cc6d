"""Class first, then row: the sampler that turns :class:`SamplingWeights` into rows.

A class is drawn by its share, then one of its rows: uniformly, or with weight ``(error + 1e-3) ** hardness`` where ``error`` is the last
known ``1 - p(true class)``. Hardness acts on the first class, the negative one, alone: there the error is the fraud score, and hard
negatives are the false alarms to come, whereas the hard rows of a rare class are mostly its mislabelled and unlearnable ones.

Scores arrive piecemeal from sub-sampled pools. Were a row that was never scored to carry the mean weight of those that were, nearly all draws of a large
table would ignore hardness for most of the training. So the scored rows get the part ``q = max(scored / rows, min(1, scored / draws))`` of the hard draws: as
many as there are scored rows to choose from, and at the least what the mean weight would give them.

No row is expected more than :data:`MAX_HARD_DRAWS` times in one call of ``draw`` (an epoch): weights are cut to that, for the few hardest rows of a small table
would otherwise be drawn hundreds of times and memorised, and with them the look-alikes among the frauds.

Made for a hundred million rows: four bytes a row for its place in its class and four for the error of a row of the first class. A uniform draw costs O(1), a
hard one a binary search among the scored rows. These lie in the order of their errors, sorted once per refresh; weights are summed up once per hardness. So
other shares, another floor or another number of draws cost nothing per row: where weights are cut is found by binary search in what is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.labels import CHUNK, code_type, count_codes
from balancer.sampling.weights import ERROR_OFFSET, Floats, SamplingWeights, class_prior

HARD_CLASS = 0
"""The class within which hardness acts."""
MAX_HARD_DRAWS = 2.0
"""Most times that a row of it is expected to be drawn in an epoch for being hard, or that many times the average of a small table's rows."""
NEWTON_STEPS = 8
"""Cutting weights lowers their sum and so the limit itself; Newton's method finds the limit from above, nearly always in fewer steps."""


def scored_part(scored: int, rows: int, draws: int | NDArray[np.integer[Any]]) -> Any:
    """Part of the hard draws that goes to the scored rows; see the module's docstring."""
    return np.maximum(scored / max(rows, 1), np.minimum(1.0, scored / np.maximum(draws, 1)))


def largest_probability(scored: int, draws: Any) -> Any:
    """Probability that no scored row may exceed, so that none is expected more than :data:`MAX_HARD_DRAWS` times among ``draws``, or that many times as
    often as the average row where there are more draws than rows.
    """
    return MAX_HARD_DRAWS * np.maximum(1.0 / np.maximum(draws, 1.0), 1.0 / max(scored, 1))


def kept_share(share: Floats, draws: int) -> Floats:
    """(K,) expected share of each class among ``draws`` that are kept from holding the first class alone (``keep_minority`` of :meth:`RowSampler.draw`)."""
    minority = 1.0 - share[0]
    if minority <= 0:
        return share
    moved = share[0] ** draws / draws
    return np.concatenate([[share[0] - moved], share[1:] * (1.0 + moved / minority)])


class _ScoredRows:
    """The scored rows of the first class, in the order of their errors: all that depends on the scores alone."""

    def __init__(self, error: NDArray[np.float32]) -> None:
        scored = np.flatnonzero(~np.isnan(error))
        index = _index_type(len(error))
        order = np.argsort(error[scored], kind="stable")  # stable: equal errors keep one order on every machine
        self.place = scored[order].astype(index)
        """(s,) places among the rows of the class, the easiest first."""
        self.error = error[scored][order]
        self._gap = (scored - np.arange(len(scored))).astype(index)
        self.rows = len(error)

    @property
    def unscored(self) -> int:
        """How many rows have no score."""
        return self.rows - len(self.place)

    def unscored_places(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of the unscored rows ``number`` (n,), counted from 0; found among the gaps between scored ones, they need no list of their own."""
        return number + np.searchsorted(self._gap, number.astype(self._gap.dtype), side="right")


class _HardTable:
    """Summed weights of the scored rows at one hardness."""

    def __init__(self, scored: _ScoredRows, hardness: float) -> None:
        self._scored, self.hardness = scored, hardness
        self._weight = np.power(scored.error + np.float32(ERROR_OFFSET), np.float32(hardness))
        self._cumulative = np.cumsum(self._weight, dtype=np.float64)

    def _cut(self, draws: int) -> tuple[float, int, float]:
        """(part of the hard draws for scored rows, how many rows keep their weight, the weight of the others) at ``draws`` draws of the class."""
        count = len(self._weight)
        part = float(scored_part(count, self._scored.rows, draws))
        if not count:
            return part, 0, 0.0
        most = float(largest_probability(count, part * draws))
        limit, under = most * self._cumulative[-1], count
        for _ in range(NEWTON_STEPS):
            under = int(np.searchsorted(self._weight, np.float32(limit), side="right"))
            limit = most * (self._cumulative[under - 1] if under else 0.0) / (1.0 - most * (count - under))
        return part, int(np.searchsorted(self._weight, np.float32(limit), side="right")), float(limit)

    def places(self, within: Floats, stage: Floats, draws: int) -> NDArray[np.int64]:
        """Places for uniform numbers: ``stage`` decides between scored and unscored rows, ``within`` which of them."""
        part, under, limit = self._cut(draws)
        result = np.empty(len(within), dtype=np.int64)
        hard = stage < part
        count = len(self._weight)
        if hard.any():
            kept = self._cumulative[under - 1] if under else 0.0
            target = within[hard] * (kept + limit * (count - under))
            found = np.searchsorted(self._cumulative[:under], target, side="right")
            beyond = found >= under
            if under < count:
                found[beyond] += ((target[beyond] - kept) / limit).astype(np.int64)
            result[hard] = self._scored.place[np.minimum(found, count - 1)]
        if not hard.all():
            unscored = max(self._scored.unscored, 1)
            number = np.minimum((within[~hard] * unscored).astype(np.int64), unscored - 1)
            result[~hard] = self._scored.unscored_places(number)
        return result

    def probabilities(self, draws: int) -> Floats:
        """(rows of the class,) probability of each in a draw by hardness."""
        part, under, limit = self._cut(draws)
        result = np.full(self._scored.rows, (1.0 - part) / max(self._scored.unscored, 1))
        if len(self._weight):
            weight = self._weight.astype(np.float64)
            weight[under:] = limit
            result[self._scored.place] = part * weight / weight.sum()
        return result


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
        self.num_classes, self.num_rows = num_classes, len(labels)
        codes = labels.astype(code_type(num_classes), copy=False)
        self.counts: NDArray[np.int64] = count_codes(codes, num_classes)
        if (self.counts > 0).sum() < 2:
            raise InputError("training rows hold one class only; sampling needs at least two, check the label column and the split")
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._rows = _grouped(codes, self._starts)
        self._error = np.full(self.counts[HARD_CLASS], np.nan, dtype=np.float32)
        self._scored: _ScoredRows | None = None
        self._table: _HardTable | None = None

    @property
    def prior(self) -> Floats:
        """(K,) share of each class among the rows that can be drawn."""
        return class_prior(self.counts)

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
        if not len(rows):
            return
        if rows.min() < 0 or rows.max() >= self.num_rows:
            raise InputError(f"rows must lie in 0 to {self.num_rows - 1}, found {rows.min()} to {rows.max()}")
        own = self._own(HARD_CLASS)
        if not len(own):
            return
        place = np.minimum(np.searchsorted(own, rows.astype(own.dtype)), len(own) - 1)
        known = own[place] == rows
        self._error[place[known]] = np.clip(1.0 - scores[known, HARD_CLASS], 0.0, 1.0)
        self._scored = self._table = None

    def draw(self, n: int, weights: SamplingWeights, rng: np.random.Generator, *, keep_minority: bool = False) -> NDArray[np.int64]:
        """(n,) rows, drawn by ``weights``; a function of its arguments and the scores remembered, so a resumed run draws the same.

        With ``keep_minority``, draws that would all be of the first class although others have a share get one of those others at a place of its own,
        drawn by their shares. :func:`kept_share` says what that does to the expectation.
        """
        share = self._share(weights)
        edges = np.cumsum(share)
        edges[np.flatnonzero(share)[-1] :] = 1.0  # a rounded sum must not leave a crack for a class without share
        result = np.empty(n, dtype=np.int64)
        alone = True
        for start in range(0, n, CHUNK):
            place = slice(start, min(start + CHUNK, n))
            drawn = np.searchsorted(edges, rng.random(place.stop - start), side="right")
            result[place] = self.fill(drawn, weights, rng, epoch_draws=n)
            alone = alone and not drawn.any()
        if keep_minority and n and alone and share[HARD_CLASS] < 1:
            other = 1 + np.searchsorted(np.cumsum(share[1:]), rng.random(1) * share[1:].sum(), side="right")
            result[rng.integers(n)] = self.fill(other, weights, rng, epoch_draws=n)[0]
        return result

    def fill(
        self, classes: NDArray[np.integer[Any]], weights: SamplingWeights, rng: np.random.Generator, *, epoch_draws: int
    ) -> NDArray[np.int64]:
        """(n,) rows of ``classes`` (n,), each drawn within its class, as a part of an epoch of ``epoch_draws`` rows; each class must have rows."""
        within, mixed = rng.random(len(classes)), rng.random(len(classes))
        rows = np.empty(len(classes), dtype=np.int64)
        for c in np.flatnonzero(np.bincount(classes, minlength=self.num_classes)).tolist():
            chosen, own = np.flatnonzero(classes == c), self._own(c)
            place = np.minimum((within[chosen] * len(own)).astype(np.int64), len(own) - 1)
            if c == HARD_CLASS and weights.hardness > 0:
                stage = (mixed[chosen] - weights.floor) / max(1.0 - weights.floor, 1e-12)
                hard = stage >= 0
                draws = self._hard_draws(weights, epoch_draws)
                place[hard] = self._hard_table(weights.hardness).places(within[chosen[hard]], stage[hard], draws)
            rows[chosen] = own[place]
        return rows

    def probabilities(self, weights: SamplingWeights, draws: int, *, keep_minority: bool = False) -> Floats:
        """(N,) probability of each row in one of the ``draws`` draws of an epoch by ``weights``; sums to 1, 0 for rows that are never drawn."""
        share = self._share(weights)
        if keep_minority:
            share = kept_share(share, draws)
        result = np.zeros(self.num_rows)
        for c in np.flatnonzero(share).tolist():
            own = self._own(c)
            if c == HARD_CLASS and weights.hardness > 0:
                hard = self._hard_table(weights.hardness).probabilities(self._hard_draws(weights, draws))
                result[own] = share[c] * (weights.floor / len(own) + (1.0 - weights.floor) * hard)
            else:
                result[own] = share[c] / len(own)
        return result

    def _own(self, c: int) -> NDArray[Any]:
        """Rows of class ``c``, ascending."""
        return self._rows[self._starts[c] : self._starts[c + 1]]

    def _share(self, weights: SamplingWeights) -> Floats:
        """(K,) shares of the classes that have rows."""
        if len(weights.share) != self.num_classes:
            raise InputError(f"weights are for {len(weights.share)} classes, the labels have {self.num_classes}")
        share = np.where(self.counts > 0, weights.share, 0.0)
        if not share.sum() > 0:
            raise InputError("weights sum to zero over the classes that have rows; give a share to one of them")
        return np.asarray(share / share.sum(), dtype=np.float64)

    def _hard_draws(self, weights: SamplingWeights, draws: int) -> int:
        """Expected draws of the first class in an epoch: what limits a row's probability, the same for every part of the epoch."""
        return max(1, round(draws * float(self._share(weights)[HARD_CLASS])))

    def _hard_table(self, hardness: float) -> _HardTable:
        if self._scored is None:
            self._scored = _ScoredRows(self._error)
        if self._table is None or self._table.hardness != hardness:
            self._table = _HardTable(self._scored, hardness)
        return self._table

    def state(self) -> dict[str, NDArray[Any]]:
        """Arrays that :meth:`load_state` needs: ``counts`` (K,), and of the s rows of the first class that were scored ``scored`` (their places in the
        class) and ``error`` (s,) float32.
        """
        scored = np.flatnonzero(~np.isnan(self._error))
        return {
            "counts": self.counts.copy(),
            "scored": scored.astype(_index_type(len(self._error))),
            "error": self._error[scored],
        }

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`state`; InputError where it was saved for other rows or is incomplete, and nothing is changed."""
        missing = [name for name in ("counts", "scored", "error") if name not in state]
        if missing:
            raise InputError(f"saved sampler state has no {missing[0]!r}; it is of another version, start the run anew")
        counts, scored = (np.asarray(state[name]).astype(np.int64) for name in ("counts", "scored"))
        error = np.asarray(state["error"], dtype=np.float32)
        if not np.array_equal(counts, self.counts):
            raise InputError("saved sampler state is for other training rows; continue with the table the run was started on")
        if scored.ndim != 1 or scored.shape != error.shape or (len(scored) and not 0 <= scored.min() <= scored.max() < len(self._error)):
            raise InputError("saved sampler state is torn; start the run anew")
        self._error = np.full(len(self._error), np.nan, dtype=np.float32)
        self._error[scored] = error
        self._scored = self._table = None


def _index_type(rows: int) -> type[np.integer[Any]]:
    return np.uint32 if rows <= np.iinfo(np.uint32).max else np.int64


def _grouped(codes: NDArray[np.signedinteger[Any]], starts: NDArray[np.int64]) -> NDArray[Any]:
    """Rows by class, ascending within each; class c begins at ``starts[c]``. A counting sort in pieces: no index of eight bytes for every row."""
    result = np.empty(int(starts[-1]), dtype=_index_type(len(codes)))
    free = starts[:-1].copy()
    for first in range(0, len(codes), CHUNK):
        piece = codes[first : first + CHUNK]
        rows = np.argsort(piece, kind="stable")
        ordered = piece[rows]
        rows, ordered = rows[ordered >= 0], ordered[ordered >= 0]
        here = np.bincount(ordered, minlength=len(free))
        before = np.cumsum(here) - here
        result[np.arange(len(rows)) + (free - before)[ordered]] = rows + first
        free += here
    return result
