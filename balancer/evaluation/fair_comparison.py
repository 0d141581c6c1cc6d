"""Compare the alarms of a run with those of another model on the same rows, at equal false alarms and frauds.

What is special: the two models are compared where they cost the same, not each at its own threshold. Only the
rows on which they decide differently count. The interval is that of the paired standard error over entities
(cards, accounts), because the rows of one entity resemble each other; it takes one pass over the rows, and
agrees with resampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.evaluation.intervals import NORMAL, UNKNOWN, Interval
from balancer.evaluation.metrics import Floats, Ranking

FEWEST_FRAUDS = 10
"""Fewest frauds among the rows from which an interval is computed."""
_NEAR, _NEAREST = 0.2, 5.0
"""The slope of a curve is measured over this share of the count on either side, and at least over so many."""


@dataclass(frozen=True)
class FairComparison:
    """Differences of this run from another model, this run minus the other, with intervals of 95 %.

    A value is None where the run raises no alarm, or where there is no fraud.
    """

    frauds: Interval
    """Frauds caught at the same number of false alarms."""
    money: Interval
    """Amount of the frauds caught at the same number of false alarms; None without amounts."""
    false_alarms: Interval
    """False alarms at the same number of frauds caught."""


def compare_fairly(
    fraud: ArrayLike,
    alarm: ArrayLike,
    run: ArrayLike,
    other: ArrayLike,
    *,
    group: ArrayLike | None = None,
    amount: ArrayLike | None = None,
) -> FairComparison:
    """Compare a run with another model on the same rows.

    Both are compared by their rankings: each gets the lowest threshold with at most as many false alarms as
    the run raises. Rows with equal scores, which no threshold separates, count in part.

    Args:
        fraud: (n,) whether a row is a fraud.
        alarm: (n,) whether the run raises an alarm.
        run: (n,) scores of the run.
        other: (n,) scores of the other model, on any scale.
        group: (n,) entity of each row, whole numbers; None: each row is by itself.
        amount: (n,) amounts, or None. A refund (a negative amount) counts as 0.
    """
    frauds, alarms = np.asarray(fraud, dtype=bool), np.asarray(alarm, dtype=bool)
    if not alarms.any() or not frauds.any():
        return FairComparison(UNKNOWN, UNKNOWN, UNKNOWN)
    money = None if amount is None else np.where(frauds, np.maximum(np.asarray(amount, dtype=np.float64), 0.0), 0.0)
    false = float((alarms & ~frauds).sum())
    first, second = (_Curve.of(frauds, np.asarray(score, dtype=np.float64)) for score in (run, other))
    groups = None if group is None else np.asarray(group)
    enough = frauds.sum() >= FEWEST_FRAUDS
    legitimate, counted = (~frauds).astype(np.float64), frauds.astype(np.float64)
    slope = second.frauds_per_false(false)
    changed = first.flagged_at_false(false) - second.flagged_at_false(false)
    caught = _estimate(changed, counted, counted - slope * legitimate, groups, enough=enough)
    saved = UNKNOWN
    if money is not None:
        gained = slope * _mean(money, frauds & (changed != 0))
        saved = _estimate(changed, money, money - gained * legitimate, groups, enough=enough)
    return FairComparison(caught, saved, _false_alarms(first, second, false, caught))


def _false_alarms(first: _Curve, second: _Curve, false: float, caught: Interval) -> Interval:
    """False alarms at equal frauds: those that the other model raises for as many frauds as the run catches.

    Value and interval follow from those of the frauds, so neither contradicts the other.
    """
    level, wanted = second.caught_at(false), first.caught_at(false)
    value = 0.0 if wanted == level else false - second.false_for(wanted)
    if caught.interval is None:
        return Interval(value, None)
    low, high = (false - second.false_for(level + lead) for lead in reversed(caught.interval))
    return Interval(value, (min(low, value), max(high, value)))


def _estimate(changed: Floats, worth: Floats, influence: Floats, group: NDArray[np.integer] | None, *, enough: bool) -> Interval:
    """The sum of `worth` over the rows on which the models differ, with its interval.

    Args:
        changed: (n,) 1 where only the run flags a row, -1 where only the other does, 0 where both agree.
        worth: (n,) what a flagged row counts.
        influence: (n,) by how much a flagged row changes the difference; it includes that a false alarm more
            allows the other model to catch more.
        group: (n,) entity of each row, or None.
        enough: Whether there are enough frauds for an interval.
    """
    value = float(changed @ worth)
    rows = np.flatnonzero(changed)
    if not enough:
        return Interval(value, None)
    moved: Floats = changed[rows] * influence[rows]
    if group is not None and len(rows):
        _, place = np.unique(group[rows], return_inverse=True)
        moved = np.bincount(place, weights=moved).astype(np.float64)
    # The correction for continuity: the smallest step by which a count, or an amount, can change.
    step = _mean(worth, (changed != 0) & (worth != 0))
    half = NORMAL * float(np.sqrt(moved @ moved)) + (step if len(rows) else 0.0)
    return Interval(value, (value - half, value + half))


def _mean(values: Floats, where: NDArray[np.bool_]) -> float:
    return float(values[where].mean()) if where.any() else 0.0


@dataclass(frozen=True)
class _Curve:
    """Frauds and false alarms of a model at each threshold, from none to all rows."""

    score: Floats
    """(n,) scores of the rows."""
    thresholds: Floats
    """(d,) distinct scores, highest first."""
    caught: Floats
    """(d + 1,) frauds."""
    false: Floats
    """(d + 1,) false alarms."""

    @classmethod
    def of(cls, fraud: NDArray[np.bool_], score: Floats) -> _Curve:
        ranking = Ranking.of(fraud, score)
        return cls(score, ranking.score, np.append(0.0, ranking.hits), np.append(0.0, ranking.alarms))

    def flagged_at_false(self, false: float) -> Floats:
        """How far each row (n,) is flagged at the lowest threshold with at most ``false`` false alarms."""
        step = int(np.searchsorted(self.false, false, side="right")) - 1
        rest = 0.0
        if step + 1 < len(self.false):
            rest = (false - self.false[step]) / (self.false[step + 1] - self.false[step])
        flagged = np.zeros(len(self.score))
        if step < len(self.thresholds):
            flagged[self.score == self.thresholds[step]] = rest
        if step > 0:
            flagged[self.score >= self.thresholds[step - 1]] = 1.0
        return flagged

    def frauds_per_false(self, false: float) -> float:
        """Frauds that one false alarm more catches."""
        near = max(_NEAREST, _NEAR * false)
        low, high = max(false - near, 0.0), min(false + near, float(self.false[-1]))
        return float(np.diff(np.interp([low, high], self.false, self.caught))[0] / (high - low)) if high > low else 0.0

    def caught_at(self, false: float) -> float:
        """Frauds that are caught with at most ``false`` false alarms."""
        return float(np.interp(false, self.false, self.caught))  # of equal places interp takes the last

    def false_for(self, frauds: float) -> float:
        """Fewest false alarms with which ``frauds`` frauds are caught."""
        return -float(np.interp(-frauds, -self.caught[::-1], -self.false[::-1]))
