"""Draw a class, then a row of that class: turns :class:`SamplingWeights` into rows and their loss weights.

A class is drawn by its share, then one of its rows: with probability ``floor`` without hardness, otherwise
with weight ``(error + 1e-3) ** hardness``, where ``error`` is the last known ``1 - p(true class)``. Hardness
acts within each class that is not drawn more often than its prior, that is, where rows have to be chosen
(:func:`is_chosen`). Other classes are drawn evenly.

How rows are chosen by their errors is in :mod:`balancer.sampling.hard_table`.

With the age of each row, a row is also drawn by its age (:attr:`SamplingWeights.half_life`): by rejection, so
that no sum over the rows is needed. Where nearly all rows of a class would be rejected, because one of them
is far newer than the others, the row is drawn from the sums after all.

The sampler is made for a hundred million rows: four bytes a row for its place in its class and, once scores
are known, four for its error. An even draw costs O(1), a hard one a binary search among the scored rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.deprecation import warn_renamed
from balancer.errors import InputError
from balancer.sampling.groups import grouped, groups, index_type
from balancer.sampling.hard_table import TINY, HardTable, SortedErrors
from balancer.sampling.labels import CHUNK, code_type, count_codes
from balancer.sampling.tilt import HardnessTilt
from balancer.sampling.weights import ERROR_OFFSET, Floats, SamplingWeights, class_prior, class_weights

_LEAST_ACCEPTED = 0.02
"""A class of which rejection by age would keep a smaller part is drawn from sums over its rows."""
_ROUNDS = 1_000
"""Rounds of rejection, at most."""
_ROUNDED = 1e-5
"""How far a share may be above the prior that it is meant to be, relatively."""
_PROBED = 4_096
"""Rows of a class from which that part is estimated; a fixed choice, so that draws stay repeatable."""


def is_chosen(share: Any, prior: Any) -> Any:
    """Whether hardness chooses the rows of a class: where it is drawn less often than its prior, or as often.

    The rows of a class that is drawn more often are all drawn, and preferring the hard ones would repeat
    those that are mislabelled or can't be learned.
    """
    return share <= prior * (1.0 + _ROUNDED)  # policies see the prior in single precision


def kept_share(share: Floats, draws: int) -> Floats:
    """(K,) expected share of each class where ``draws`` may not hold class 0 alone.

    See ``keep_minority`` of :meth:`RowSampler.draw`.
    """
    minority = 1.0 - share[0]
    if minority <= 0:
        return share
    moved = share[0] ** draws / draws
    return np.concatenate([[share[0] - moved], share[1:] * (1.0 + moved / minority)])


class _Epoch:
    """What follows from the weights and the number of draws of an epoch, for each class.

    Args:
        weights: Sampling weights.
        draws: Rows drawn in the epoch.
        share: (K,) shares of the classes that have rows.
        hard: (K,) whether the rows of a class are chosen by hardness.
    """

    def __init__(self, weights: SamplingWeights, draws: int, share: Floats, hard: NDArray[np.bool_]) -> None:
        self.weights, self.all_draws, self.share, self.hard = weights, draws, share, hard
        self.draws: NDArray[np.int64] = np.maximum(np.round(draws * share), 1).astype(np.int64)
        """(K,) expected draws of each class in an epoch; they limit a row's probability."""
        self.terms: Floats = np.full((5, len(share)), np.nan)
        """(5, K) the terms of each class's hard table, and the mean of its rows' weights, once needed."""
        self.sums: dict[int, Floats] = {}
        """Cumulative probabilities of the rows of a class, once needed."""


class RowSampler:
    """Draws rows of a labelled table, with replacement.

    Args:
        labels: (N,) class index of each row; -1 for a row that is never drawn (unlabelled, or not a training
            row).
        num_classes: K.
        age: (N,) age of each row as a fraction of the time span of the training rows, 0 for the newest; None:
            not known, and the half-life has no effect.
        prior: (K,) class prior of the table that the rows represent, where classes were thinned; None: their
            share among the rows.
        is_part: Whether the rows are a part of a table, which may lack classes.

    Raises:
        InputError: A label or an age is out of range, or fewer than two classes have rows.
    """

    keeps_minority = True
    """Whether an epoch always has a row besides the commonest class; see :meth:`draw`."""

    def __init__(
        self,
        labels: NDArray[np.integer[Any]],
        num_classes: int,
        *,
        age: NDArray[np.floating[Any]] | None = None,
        prior: Floats | None = None,
        is_part: bool = False,
    ) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(f"labels must be one vector of class indices, not {labels.dtype} of shape {labels.shape}")
        if len(labels) and (labels.min() < -1 or labels.max() >= num_classes):
            raise InputError(f"labels must lie in -1 to {num_classes - 1}, found {labels.min()} to {labels.max()}")
        self.num_classes, self.num_rows = num_classes, len(labels)
        self._codes = labels.astype(code_type(num_classes), copy=False)
        self.counts: NDArray[np.int64] = count_codes(self._codes, num_classes)
        if not is_part and (self.counts > 0).sum() < 2:
            raise InputError("training rows hold one class only; sampling needs at least two, check the label column and the split")
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._rows = grouped(self._codes, self._starts)
        self._age = None if age is None else _checked_age(age, self.num_rows, self._codes)
        self._prior = class_prior(self.counts if prior is None else prior)
        self._newest: NDArray[np.float32] | None = None  # (K,) age of the newest row of each class, once needed
        self._error: NDArray[np.float32] | None = None  # of the rows in the order of self._rows, once known
        self._forget()

    def __repr__(self) -> str:
        """Number of rows and classes, of rows with a score, and whether ages are known."""
        scored = 0 if self._error is None else int((~np.isnan(self._error)).sum())
        age = ", age=True" if self.has_age else ""
        return f"RowSampler(rows={self.num_rows}, num_classes={self.num_classes}, scored={scored}{age})"

    def _forget(self) -> None:
        """Drop what was derived from scores that have changed."""
        self._scored: dict[int, SortedErrors] = {}
        self._tables: dict[int, HardTable] = {}
        self._last: _Epoch | None = None

    def _epoch(self, weights: SamplingWeights, draws: int) -> _Epoch:
        """What follows from these weights and draws; that of the last call is kept."""
        last = self._last
        if last is None or last.weights is not weights or last.all_draws != draws:
            share = self.class_share(weights)
            chosen = weights.hardness > 0 and self._error is not None
            hard = self._chosen_classes(weights, share) if chosen else np.zeros(self.num_classes, dtype=bool)
            self._last = last = _Epoch(weights, draws, share, hard)
        return last

    def _chosen_classes(self, weights: SamplingWeights, share: Floats) -> NDArray[np.bool_]:
        """(K,) whether hardness chooses the rows of a class that is drawn by ``share`` (K,)."""
        return np.asarray(is_chosen(share, self.prior))

    def _class_weight(self, weights: SamplingWeights, share: Floats) -> Floats:
        """(K,) loss weight of the rows of each class that is drawn by ``share`` (K,)."""
        return class_weights(share, weights.class_importance, self.prior)

    @property
    def prior(self) -> Floats:
        """(K,) share of each class among the rows that can be drawn, or in the table that they represent."""
        return self._prior

    @property
    def has_age(self) -> bool:
        """Whether the ages of the rows are known."""
        return self._age is not None

    def refresh(self, rows: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]]) -> None:
        """Store the scores of some rows.

        Args:
            rows: (n,) rows of the table; rows that are never drawn are ignored.
            scores: (n, K) class probabilities.

        Raises:
            InputError: A score is not finite, or the lengths differ. Nothing has changed then.
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
        if self._error is None:
            self._error = np.full(len(self._rows), np.nan, dtype=np.float32)
        codes = self._codes[rows]
        for c, chosen in groups(codes, self.num_classes):
            self._error[self._starts[c] + self._places(c, rows[chosen])] = np.clip(1.0 - scores[chosen, c], 0.0, 1.0)
        self._forget()

    def draw(self, n: int, weights: SamplingWeights, rng: np.random.Generator, *, keep_minority: bool = False) -> NDArray[np.int64]:
        """Draw the rows of an epoch.

        The result depends on the arguments and the stored scores alone, so a resumed run draws the same rows.

        Args:
            n: Number of rows.
            weights: Sampling weights.
            rng: Source of randomness.
            keep_minority: Where all draws would be of class 0 although other classes have a share, draw one
                row of those classes, by their shares, at a random position. :func:`kept_share` gives the
                expected shares.

        Returns:
            (n,) int64 rows of the table.
        """
        result = np.empty(n, dtype=np.int64)
        alone = True
        for start in range(0, n, CHUNK):
            place = slice(start, min(start + CHUNK, n))
            drawn = self.draw_classes(place.stop - start, weights, rng)
            result[place] = self.fill(drawn, weights, rng, epoch_draws=n)
            alone = alone and not drawn.any()
        if keep_minority and n and alone and self.class_share(weights)[0] < 1:
            result[rng.integers(n)] = self.minority_row(weights, rng, epoch_draws=n)
        return result

    def draw_classes(self, n: int, weights: SamplingWeights, rng: np.random.Generator) -> NDArray[np.int64]:
        """(n,) classes, drawn by their shares."""
        share = self.class_share(weights)
        edges = np.cumsum(share)
        edges[np.flatnonzero(share)[-1] :] = 1.0  # rounding must not give a class without share a draw
        return np.asarray(np.searchsorted(edges, rng.random(n), side="right"))

    def minority_row(self, weights: SamplingWeights, rng: np.random.Generator, *, epoch_draws: int) -> int:
        """One row of the classes but class 0, by their shares."""
        share = self.class_share(weights)
        other = 1 + np.searchsorted(np.cumsum(share[1:]), rng.random(1) * share[1:].sum(), side="right")
        return int(self.fill(other, weights, rng, epoch_draws=epoch_draws)[0])

    def fill(
        self,
        classes: NDArray[np.integer[Any]],
        weights: SamplingWeights,
        rng: np.random.Generator,
        *,
        epoch_draws: int,
        part: slice | NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Draw a row for each given class.

        Args:
            classes: (n,) class of each row to draw; each must have rows.
            weights: Sampling weights; their shares serve to limit the draws of hard rows.
            rng: Source of randomness.
            epoch_draws: Rows drawn in the whole epoch, of which these are a part.
            part: Which of the rows are needed, by their places; they are the same as among all. None: all.

        Returns:
            (n,) int64 rows of the table, or those of ``part``.
        """
        within, mixed = rng.random(len(classes)), rng.random(len(classes))
        by_age = self._age is not None and math.isfinite(weights.half_life)
        if part is not None and not by_age:
            return self._filled(classes[part], weights, within[part], mixed[part], epoch_draws)
        rows = self._filled(classes, weights, within, mixed, epoch_draws)
        if by_age:  # what replaces an old row depends on the rows before it
            self._replace_old(rows, classes, weights, rng, epoch_draws)
        return rows if part is None else rows[part]

    def _filled(
        self, classes: NDArray[np.integer[Any]], weights: SamplingWeights, within: Floats, mixed: Floats, epoch_draws: int
    ) -> NDArray[np.int64]:
        """A row (n,) of each class, without regard to its age, from uniform random numbers (n,)."""
        count = self.counts[classes]
        place = np.minimum((within * count).astype(np.int64), count - 1)
        epoch = self._epoch(weights, epoch_draws)
        if epoch.hard.any():
            rescaled = (mixed - weights.floor) / max(1.0 - weights.floor, 1e-12)
            for c, chosen in groups(np.where((rescaled >= 0) & epoch.hard[classes], classes, -1), self.num_classes):
                table = self._hard_table(c, weights.hardness)
                place[chosen] = table.places(within[chosen], rescaled[chosen], int(epoch.draws[c]))
        place += self._starts[classes]
        return np.asarray(self._rows[place].astype(np.int64))

    def _replace_old(
        self,
        rows: NDArray[np.int64],
        classes: NDArray[np.integer[Any]],
        weights: SamplingWeights,
        rng: np.random.Generator,
        epoch_draws: int,
    ) -> None:
        """Draw ``rows`` (n,) of ``classes`` (n,) again, in place, until the half-life has its effect.

        A row is kept with a probability that halves with its age, relative to the newest row of its class.
        """
        assert self._age is not None
        newest, exact = self._newest_of_classes(), np.zeros(self.num_classes, dtype=bool)
        for c, _ in groups(classes, self.num_classes):
            probed = self._class_rows(c)[:: max(1, int(self.counts[c]) // _PROBED)]
            exact[c] = self._recency(probed, c, weights).mean() < _LEAST_ACCEPTED
        waiting = np.flatnonzero(~exact[classes])
        for _ in range(_ROUNDS):
            if not len(waiting):
                break
            age = self._age[rows[waiting]] - newest[classes[waiting]]
            waiting = waiting[rng.random(len(waiting)) >= np.exp2(-age / weights.half_life)]
            rows[waiting] = self._filled(classes[waiting], weights, rng.random(len(waiting)), rng.random(len(waiting)), epoch_draws)
        left = np.concatenate([np.flatnonzero(exact[classes]), waiting])
        for c, chosen in groups(classes[left], self.num_classes):
            sums = self._summed(c, weights, epoch_draws)
            place = np.searchsorted(sums, rng.random(len(chosen)) * sums[-1], side="right")
            rows[left[chosen]] = self._class_rows(c)[np.minimum(place, len(sums) - 1)]

    def _summed(self, c: int, weights: SamplingWeights, draws: int) -> Floats:
        """(rows of the class,) cumulative probabilities of the rows of class ``c``."""
        sums = self._epoch(weights, draws).sums
        if c not in sums:
            sums[c] = np.cumsum(self._within(c, weights, draws))
        return sums[c]

    def probabilities(self, weights: SamplingWeights, draws: int, *, keep_minority: bool = False) -> Floats:
        """(N,) probability of each row in one draw of an epoch of ``draws`` rows.

        The probabilities sum to 1; they are 0 for rows that are never drawn.
        """
        share = self.class_share(weights)
        if keep_minority:
            share = kept_share(share, draws)
        result = np.zeros(self.num_rows)
        for c in np.flatnonzero(share).tolist():
            result[self._class_rows(c)] = share[c] * self._within(c, weights, draws)
        return result

    def loss_weights(self, rows: NDArray[np.integer[Any]], weights: SamplingWeights, draws: int, *, keep_minority: bool = False) -> Floats:
        """(n,) loss weight of drawn ``rows`` (n,), with mean 1 over the draws of an epoch.

        It is the weight of the row's class times that of the row within its class
        (:attr:`SamplingWeights.hardness_importance`), which has mean 1 over the draws of the class. Rows that
        are never drawn get 0.

        Args:
            rows: Rows of the table.
            weights: The weights that they were drawn with.
            draws: Rows drawn in the epoch.
            keep_minority: As they were drawn; see :meth:`draw`.
        """
        rows = np.asarray(rows)
        codes = self._codes[rows]
        epoch = self._epoch(weights, draws)
        share = kept_share(epoch.share, draws) if keep_minority else epoch.share
        result = np.where(codes >= 0, self._class_weight(weights, share)[codes], 0.0)
        hard = epoch.hard[codes] & (codes >= 0)
        if weights.hardness_importance == 0 or self._error is None or not hard.any():
            return result
        codes = np.where(hard, codes, -1)
        error = np.full(len(rows), np.nan, dtype=np.float32)
        for c, chosen in groups(codes, self.num_classes):
            error[chosen] = self._error[self._starts[c] + self._places(c, rows[chosen])]
            self._find_terms(c, epoch)
        factor, low, high, unscored, mean = epoch.terms[:, codes]
        weight = np.power(error + np.float32(ERROR_OFFSET), np.float32(weights.hardness)).astype(np.float64)
        probability = np.where(np.isnan(error), unscored, factor * np.clip(weight, low, high))
        corrected = _corrected(probability * self.counts[codes], weights) / mean
        return np.where(hard, result * corrected, result)

    def _find_terms(self, c: int, epoch: _Epoch) -> None:
        if np.isnan(epoch.terms[0, c]):
            table = self._hard_table(c, epoch.weights.hardness)
            epoch.terms[:, c] = *table.terms(int(epoch.draws[c])), self._mean_corrected(c, epoch)

    def tilt(self, weights: SamplingWeights, draws: int, *, counted: bool) -> HardnessTilt | None:
        """What hardness does to a model that is trained on an epoch; None where it does not act.

        Args:
            weights: The weights that rows are drawn with.
            draws: Rows drawn in the epoch.
            counted: Whether the loss counts rows by :meth:`loss_weights`, not by their class alone.
        """
        epoch = self._epoch(weights, draws)
        if not epoch.hard.any():
            return None
        terms = np.full((6, self.num_classes), np.nan)
        for c in np.flatnonzero(epoch.hard & (self.counts > 0)).tolist():
            self._find_terms(c, epoch)
            factor, low, high, unscored, mean = epoch.terms[:, c]
            count = float(self.counts[c])
            part = len(self._hard_table(c, weights.hardness).place) / count
            terms[:, c] = factor * count, low, high, unscored * count, part, mean if counted else 1.0
        importance = weights.hardness_importance if counted else 0.0
        return HardnessTilt(weights.hardness, weights.floor, importance, terms)

    def _mean_corrected(self, c: int, epoch: _Epoch) -> float:
        """Mean of :func:`_corrected` over the draws of class ``c``."""
        weights, count = epoch.weights, int(self.counts[c])
        table = self._hard_table(c, weights.hardness)
        scored, unscored = table.probabilities(int(epoch.draws[c]))
        if self._age is not None and math.isfinite(weights.half_life):
            hard = np.full(count, unscored)
            hard[table.place] = scored
            return float(_corrected(hard * count, weights) @ self._within(c, weights, epoch.all_draws))
        hard, rows = np.append(scored, unscored), np.append(np.ones(len(scored)), count - len(scored))
        drawn = rows * (weights.floor / count + (1.0 - weights.floor) * hard)
        return float(_corrected(hard * count, weights) @ drawn)

    def _within(self, c: int, weights: SamplingWeights, draws: int) -> Floats:
        """(rows of the class,) probability of each row of class ``c`` in a draw of that class."""
        aged = self._by_age(c, weights)
        epoch = self._epoch(weights, draws)
        if not epoch.hard[c]:
            return aged
        count = int(self.counts[c])
        table = self._hard_table(c, weights.hardness)
        scored, unscored = table.probabilities(int(epoch.draws[c]))
        mixed = np.full(count, weights.floor / count + (1.0 - weights.floor) * unscored)
        mixed[table.place] = weights.floor / count + (1.0 - weights.floor) * scored
        if self._age is not None and math.isfinite(weights.half_life):
            mixed *= aged
            mixed /= mixed.sum()
        return mixed

    def _by_age(self, c: int, weights: SamplingWeights) -> Floats:
        """(rows of the class,) probability of each row of class ``c`` without hardness."""
        count = int(self.counts[c])
        if self._age is None or not math.isfinite(weights.half_life):
            return np.full(count, 1.0 / max(count, 1))
        recent = self._recency(self._class_rows(c), c, weights)
        return np.asarray(recent / recent.sum())

    def _recency(self, rows: NDArray[Any], c: int, weights: SamplingWeights) -> Floats:
        """(n,) how often ``rows`` (n,) of class ``c`` are drawn, relative to the newest row of the class."""
        assert self._age is not None
        recent = np.exp2(-(self._age[rows] - self._newest_of_classes()[c]) / weights.half_life)
        return np.asarray(recent, dtype=np.float64)

    def _newest_of_classes(self) -> NDArray[np.float32]:
        """(K,) age of the newest row of each class."""
        assert self._age is not None
        if self._newest is None:
            ages = (self._age[self._class_rows(c)] for c in range(self.num_classes))
            self._newest = np.array([age.min() if len(age) else 0.0 for age in ages], dtype=np.float32)
        return self._newest

    def _places(self, c: int, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """(n,) positions of ``rows`` (n,) of class ``c`` among the rows of the class."""
        return np.asarray(np.searchsorted(self._class_rows(c), rows.astype(self._rows.dtype)))

    def _class_rows(self, c: int) -> NDArray[Any]:
        """Rows of class ``c``, ascending."""
        return self._rows[self._starts[c] : self._starts[c + 1]]

    def class_share(self, weights: SamplingWeights) -> Floats:
        """(K,) shares of the classes that have rows, normalised."""
        if len(weights.share) != self.num_classes:
            raise InputError(f"weights are for {len(weights.share)} classes, the labels have {self.num_classes}")
        share = np.where(self.counts > 0, weights.share, 0.0)
        if not share.sum() > 0:
            raise InputError("weights sum to zero over the classes that have rows; give a share to one of them")
        return np.asarray(share / share.sum(), dtype=np.float64)

    def _hard_table(self, c: int, hardness: float) -> HardTable:
        assert self._error is not None
        if c not in self._scored:
            self._scored[c] = SortedErrors(self._error[self._starts[c] : self._starts[c + 1]])
        if c not in self._tables or self._tables[c].hardness != hardness:
            self._tables[c] = HardTable(self._scored[c], hardness)
        return self._tables[c]

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Stored scores as arrays, for :meth:`load_state_dict`.

        Returns:
            ``counts`` (K,) rows of each class; ``scored`` (s,) positions of the scored rows when all rows are
            ordered by class; ``error`` (s,) their errors, float32.
        """
        error = np.full(0, np.nan, dtype=np.float32) if self._error is None else self._error
        scored = np.flatnonzero(~np.isnan(error))
        scores = {"scored": scored.astype(index_type(len(self._rows))), "error": error[scored]}
        return {"counts": self.counts.copy(), **scores}

    def state(self) -> dict[str, NDArray[Any]]:
        """The name of :meth:`state_dict` in version 0.1."""
        warn_renamed("RowSampler.state", "state_dict")
        return self.state_dict()

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The name of :meth:`load_state_dict` in version 0.1."""
        warn_renamed("RowSampler.load_state", "load_state_dict")
        self.load_state_dict(state)

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the scores of :meth:`state_dict`.

        States of version 0.1 hold the scores of class 0 alone, whose rows come first.

        Raises:
            InputError: The state is incomplete or was saved for other rows. Nothing has changed then.
        """
        missing = [name for name in ("counts", "scored", "error") if name not in state]
        if missing:
            raise InputError(f"saved sampler state has no {missing[0]!r}; it is of another version: start a new run")
        counts, scored = (np.asarray(state[name]).astype(np.int64) for name in ("counts", "scored"))
        error = np.asarray(state["error"], dtype=np.float32)
        if not np.array_equal(counts, self.counts):
            raise InputError("saved sampler state is for other training rows; continue with the table the run was started on")
        if scored.ndim != 1 or scored.shape != error.shape or (len(scored) and not 0 <= scored.min() <= scored.max() < len(self._rows)):
            raise InputError("saved sampler state is corrupt: start a new run")
        self._error = None
        if len(scored):
            self._error = np.full(len(self._rows), np.nan, dtype=np.float32)
            self._error[scored] = error
        self._forget()


def _checked_age(age: Any, num_rows: int, codes: NDArray[np.signedinteger[Any]]) -> NDArray[np.float32]:
    ages = np.asarray(age, dtype=np.float32)
    if ages.shape != (num_rows,) or not (np.isfinite(ages) | (codes < 0)).all() or (len(ages) and np.nanmin(ages) < 0):
        raise InputError(f"age must be one finite number of 0 or more for each of the {num_rows} rows")
    return ages


def _corrected(relative: Floats, weights: SamplingWeights) -> Floats:
    """Weights, up to a factor, of rows from their probabilities in a hard draw, relative to an even draw.

    The age cancels: it is in both probabilities, with hardness and without.
    """
    return np.asarray(np.maximum(weights.floor + (1.0 - weights.floor) * relative, TINY) ** -weights.hardness_importance)
