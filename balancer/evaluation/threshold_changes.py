"""What another threshold changes: two thresholds on the same rows, with intervals of 95 %.

What is special: the differences are resampled, not the two values apart, because both thresholds decide about
the same rows. All rows of an entity, or of a day where there are no entities, are resampled together, because
they resemble each other. A resample gives every group a weight that is Poisson distributed. Groups without a
fraud and without an alarm count nothing under any weight and are left out, so that a resample costs little.
Where a count is 0 or complete there is nothing to resample, and the interval is that of Wilson.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.data.spec import DAY
from balancer.errors import InputError
from balancer.evaluation.intervals import Interval, wilson
from balancer.evaluation.metrics import Floats, observed_days
from balancer.sampling.seeding import generator

RESAMPLES = 1_000
MOST_GROUPS = 4_000
"""Most groups that are resampled one by one. The sums of more are normally distributed."""
_CAUGHT, _FALSE, _AMOUNT, _FRAUDS, _TOTAL = range(5)
"""Columns of the sums by group; the first three are there for each of the two thresholds."""


@dataclass(frozen=True, eq=False)
class EvaluatedRows:
    """Labelled rows on which thresholds are compared."""

    fraud: NDArray[np.bool_]
    """(n,)"""
    score: Floats
    """(n,) calibrated score."""
    group: NDArray[np.int64]
    """(n,) number of the entity, of the day, or of the row."""
    amount: Floats | None
    """(n,) amounts; refunds count as 0. None without amounts."""
    days: float | None
    """Length of the observed time; None without times."""

    @classmethod
    def of(
        cls,
        label: ArrayLike,
        score: ArrayLike,
        *,
        time: ArrayLike | None = None,
        entity: ArrayLike | None = None,
        amount: ArrayLike | None = None,
    ) -> EvaluatedRows:
        """Select the labelled rows.

        Args:
            label: (n,) class index; -1 is unlabelled.
            score: (n,) calibrated score.
            time: (n,) seconds, or None.
            entity: (n,) number of the entity, or None.
            amount: (n,) amounts, or None.

        Raises:
            InputError: No row is labelled.
        """
        labels = np.asarray(label)
        known = labels >= 0
        if not known.any():
            raise InputError("no row has a label, so thresholds can't be compared: give rows with known labels")
        times = None if time is None else np.asarray(time, dtype=np.float64)[known]
        if entity is not None:
            group = np.asarray(entity, dtype=np.int64)[known]
        elif times is not None:
            group = np.floor_divide(times, DAY).astype(np.int64)
        else:
            group = np.arange(int(known.sum()))
        money = None if amount is None else np.maximum(np.asarray(amount, dtype=np.float64)[known], 0.0)
        scores = np.asarray(score, dtype=np.float64)[known]
        return cls(labels[known] > 0, scores, group, money, None if times is None else observed_days(times))


class Change(NamedTuple):
    """A quantity at the current and at the proposed threshold."""

    current: Interval
    proposed: Interval
    difference: Interval
    """Proposed minus current."""
    better: Literal["more", "less"]
    """Which direction is better."""

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference leaves 0 out."""
        found = self.difference.interval
        return bool(self.difference.value) and found is not None and (found[0] > 0 or found[1] < 0)

    @property
    def improves(self) -> bool:
        """Whether the difference is in the better direction."""
        value = self.difference.value
        return value is not None and (value > 0) == (self.better == "more") and value != 0


@dataclass(frozen=True, eq=False)
class Changes:
    """Sums at two thresholds: on all rows, and in each resample."""

    sums: Floats
    """(2, 5) caught frauds, false alarms, amount caught, and all frauds and their amount, at the current and
    the proposed threshold."""
    drawn: Floats
    """(R, 2, 5) the same in each resample."""
    legitimate: int
    """Number of legitimate rows."""
    days: float | None
    amounts: bool

    @classmethod
    def of(cls, rows: EvaluatedRows, current: float, proposed: float, *, seed: int = 0) -> Changes:
        """Resample the sums at two thresholds.

        Args:
            rows: The rows.
            current: Threshold in use.
            proposed: Another threshold.
            seed: Random seed.
        """
        counted = np.flatnonzero(rows.fraud | (rows.score >= min(current, proposed)))
        fraud, score = rows.fraud[counted], rows.score[counted]
        money = np.zeros(len(counted)) if rows.amount is None else np.where(fraud, rows.amount[counted], 0.0)
        _, group = np.unique(rows.group[counted], return_inverse=True)
        size = int(group.max()) + 1 if len(group) else 0

        def by_group(weight: Floats) -> Floats:
            return np.bincount(group, weights=weight, minlength=size).astype(np.float64)

        columns = []
        for threshold in (current, proposed):
            alarm = score >= threshold
            columns += [by_group(each.astype(np.float64)) for each in (fraud & alarm, ~fraud & alarm)]
            columns += [by_group(np.where(alarm, money, 0.0)), by_group(fraud.astype(np.float64)), by_group(money)]
        table = np.stack(columns, axis=1)
        random = generator(seed, "threshold changes", size)
        if size > MOST_GROUPS:
            drawn = random.multivariate_normal(table.sum(axis=0), table.T @ table, RESAMPLES, method="eigh")
        else:
            drawn = random.poisson(1.0, (RESAMPLES, size)) @ table
        legitimate = len(rows.fraud) - int(rows.fraud.sum())
        return cls(table.sum(axis=0).reshape(2, 5), drawn.reshape(-1, 2, 5), legitimate, rows.days, rows.amount is not None)

    @property
    def frauds(self) -> int:
        """Number of frauds."""
        return int(self.sums[0, _FRAUDS])

    def caught(self) -> Change:
        """Frauds that raise an alarm."""
        return self._change(self._of(_CAUGHT), "more")

    def missed(self) -> Change:
        """Frauds that raise no alarm."""
        return self._change((self.sums[:, _FRAUDS] - self.sums[:, _CAUGHT], self.drawn[..., _FRAUDS] - self.drawn[..., _CAUGHT]), "less")

    def alarms_per_day(self) -> Change:
        """Alarms per day; alarms altogether without times."""
        days = self.days or 1.0
        return self._change(tuple((each[..., _CAUGHT] + each[..., _FALSE]) / days for each in (self.sums, self.drawn)), "less")

    def false_alarms_per_day(self) -> Change:
        """False alarms per day; false alarms altogether without times."""
        days = self.days or 1.0
        return self._change(tuple(each[..., _FALSE] / days for each in (self.sums, self.drawn)), "less")

    def amount_caught(self) -> Change:
        """Amount of the frauds that raise an alarm."""
        return self._change(self._of(_AMOUNT), "more")

    def amount_missed(self) -> Change:
        """Amount of the frauds that raise no alarm."""
        return self._change((self.sums[:, _TOTAL] - self.sums[:, _AMOUNT], self.drawn[..., _TOTAL] - self.drawn[..., _AMOUNT]), "less")

    def cost(self, per_alarm: float, loss_share: float) -> Change:
        """Total cost.

        Args:
            per_alarm: Cost of one alarm.
            loss_share: Share of the amount of a missed fraud that is lost.

        Raises:
            InputError: There are no amounts.
        """
        if not self.amounts:
            raise InputError("the table has no amounts, so the cost of a missed fraud is unknown: name the column with --amount")

        def total(each: Floats) -> Floats:
            alarms: Floats = each[..., _CAUGHT] + each[..., _FALSE]
            return per_alarm * alarms + loss_share * (each[..., _TOTAL] - each[..., _AMOUNT])

        return self._change((total(self.sums), total(self.drawn)), "less")

    def recall(self) -> Change:
        """Share of the frauds that raise an alarm."""
        return self._share(_CAUGHT, lambda each: each[..., _FRAUDS], "more")

    def precision(self) -> Change:
        """Share of the alarms that are fraud; unknown without alarms."""
        return self._share(_CAUGHT, lambda each: each[..., _CAUGHT] + each[..., _FALSE], "more")

    def false_positive_rate(self) -> Change:
        """Share of the legitimate rows that raise an alarm."""
        return self._share(_FALSE, lambda each: np.full(each.shape[:-1], float(self.legitimate)), "less")

    def _of(self, column: int) -> tuple[Floats, Floats]:
        return self.sums[:, column], self.drawn[..., column]

    def _share(self, hits: int, all_of: Any, better: Literal["more", "less"]) -> Change:
        values, drawn = _ratio(self.sums[:, hits], all_of(self.sums)), _ratio(self.drawn[..., hits], all_of(self.drawn))
        found = self._change((values, drawn), better)
        exact = []
        for place, each in enumerate((found.current, found.proposed)):
            count, whole = round(self.sums[place, hits]), round(all_of(self.sums)[place])
            exact.append(wilson(count, whole) if whole and count in (0, whole) else each)
        return found._replace(current=exact[0], proposed=exact[1])

    def _change(self, found: tuple[Floats, ...], better: Literal["more", "less"]) -> Change:
        values, drawn = found
        difference = _interval(values[1] - values[0], drawn[:, 1] - drawn[:, 0])
        return Change(_interval(values[0], drawn[:, 0]), _interval(values[1], drawn[:, 1]), difference, better)


def _ratio(hits: Floats, whole: Floats) -> Floats:
    shares: Floats = np.divide(hits, whole, out=np.full(np.shape(hits), np.nan), where=whole > 0)
    return shares


def _interval(value: float, drawn: Floats) -> Interval:
    if np.isnan(value):
        return Interval(None, None)
    known = drawn[~np.isnan(drawn)]
    if len(known) < RESAMPLES // 2:
        return Interval(float(value), None)
    low, high = np.quantile(known, (0.025, 0.975))
    return Interval(float(value), (float(low), float(high)))
