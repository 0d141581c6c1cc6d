"""All alarm thresholds at once: what each finds and costs, and which one meets a given limit.

What is special: one sort serves all limits. A threshold is the midpoint between two scores, as the tuned
threshold is, so it does not depend on the last bit of a score. The metrics of a threshold are equal to the
last digit to those of `balancer.evaluation.metrics.evaluate_scores`.

A threshold that is chosen and evaluated on the same rows looks too good: expect slightly worse results on
other rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError
from balancer.evaluation.metrics import Floats, Ranking, observed_days

NO_ALARM = float(np.nextafter(1.0, 2.0))
"""A threshold above every score."""


@dataclass(frozen=True)
class OperatingPoints:
    """Every threshold that gives a different set of alarms, by decreasing score.

    Index 0 raises no alarm; index i raises an alarm on the i highest distinct scores.
    """

    score: Floats
    """(d,) distinct scores, highest first."""
    threshold: Floats
    """(d + 1,) thresholds, highest first."""
    caught: NDArray[np.int64]
    """(d + 1,) frauds at or above each threshold."""
    false_alarms: NDArray[np.int64]
    """(d + 1,) legitimate rows at or above each threshold."""
    fraud_amount: Floats | None
    """(frauds,) amount of each fraud, by decreasing score; refunds count as 0. None without amounts."""
    days: float
    """Length of the observed time."""

    @classmethod
    def of(cls, label: ArrayLike, score: ArrayLike, *, time: ArrayLike, amount: ArrayLike | None = None) -> OperatingPoints:
        """Compute the operating points of scored rows.

        Args:
            label: (n,) class index; -1 is unlabelled (these rows are left out).
            score: (n,) calibrated probability of fraud.
            time: (n,) seconds.
            amount: (n,) amounts, or None.

        Raises:
            InputError: If no row is labelled, or a score is outside 0 to 1.
        """
        labels = np.asarray(label)
        known = labels >= 0
        fraud, scores = labels[known] > 0, np.asarray(score, dtype=np.float64)[known]
        if not len(scores):
            raise InputError("no row has a label, so thresholds can't be evaluated: give rows with known labels")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise InputError("a score is outside 0 to 1: give calibrated probabilities")
        ranking = Ranking.of(fraud, scores)
        below = np.append(ranking.score[1:], 0.0)
        middle = (ranking.score + below) / 2
        threshold = np.where(middle > below, middle, ranking.score)
        threshold[-1] = 0.0
        fraud_amount = None
        if amount is not None:
            fraud_amount = np.maximum(np.asarray(amount, dtype=np.float64)[known][fraud][np.argsort(-scores[fraud], kind="stable")], 0.0)
        hits, alarms = np.append(0, ranking.hits), np.append(0, ranking.alarms)
        return cls(ranking.score, np.append(NO_ALARM, threshold), hits, alarms, fraud_amount, observed_days(np.asarray(time)[known]))

    @property
    def frauds(self) -> int:
        """Total number of frauds."""
        return int(self.caught[-1])

    @property
    def legitimate(self) -> int:
        """Total number of legitimate rows."""
        return int(self.false_alarms[-1])

    def metrics(self, threshold: float) -> dict[str, Any]:
        """Return the metrics of a threshold.

        The keys of `alarm_counts`, and `threshold, precision, recall, fpr, f1`.
        """
        return self._metrics(self._index(threshold)) | {"threshold": threshold}

    def cost(self, per_alarm: float, loss_share: float = 1.0) -> Floats:
        """Compute the cost (d + 1,) of every threshold.

        Args:
            per_alarm: Cost of investigating one alarm.
            loss_share: Share of the amount that is lost with every missed fraud.

        Raises:
            InputError: If there are no amounts.
        """
        if self.fraud_amount is None:
            raise InputError(
                "the table has no amounts, so the cost of a missed fraud is unknown: name the column with --amount when training"
            )
        saved = np.append(0.0, np.cumsum(self.fraud_amount))[self.caught]
        return np.asarray(per_alarm * (self.caught + self.false_alarms) + loss_share * (saved[-1] - saved))

    def for_alarms(self, per_day: float) -> float:
        """Return the lowest threshold with at most `per_day` alarms per day."""
        return self._threshold(np.searchsorted(self.caught + self.false_alarms, per_day * self.days * (1 + 1e-12), side="right") - 1)

    def for_alarm_share(self, share: float) -> float:
        """Return the lowest threshold with alarms on at most this share of the rows."""
        total = self.caught + self.false_alarms
        return self._threshold(np.searchsorted(total, share * int(total[-1]) * (1 + 1e-12), side="right") - 1)

    def for_fpr(self, rate: float) -> float:
        """Return the lowest threshold with a false-positive rate of at most `rate`."""
        return self._threshold(np.searchsorted(self.false_alarms, rate * self.legitimate * (1 + 1e-12), side="right") - 1)

    def for_recall(self, recall: float) -> float:
        """Return the highest threshold that reaches `recall`."""
        return self._threshold(np.searchsorted(self.caught, recall * self.frauds * (1 - 1e-12)))

    def for_cost(self, per_alarm: float, loss_share: float = 1.0) -> float:
        """Return the threshold with the lowest `cost`; of equal ones the highest."""
        return self._threshold(np.argmin(self.cost(per_alarm, loss_share)))

    def cost_at(self, threshold: float, per_alarm: float, loss_share: float = 1.0) -> float:
        """Return the `cost` of one threshold."""
        return float(self.cost(per_alarm, loss_share)[self._index(threshold)])

    def table(self, *, max_points: int = 400, cost: Floats | None = None, also: Sequence[float] = ()) -> pl.DataFrame:
        """Tabulate a subset of the thresholds for charts.

        Half of the points are evenly spaced in recall, half in the logarithm of the number of alarms.

        Args:
            max_points: Most rows of the table.
            cost: (d + 1,) the result of `cost`, if it is to be a column.
            also: Thresholds that are in the table in any case.

        Returns:
            Columns `threshold, recall, precision, fpr, f1, alarms_per_day, caught, alarms` and, if given,
            `cost`.
        """
        total = self.caught + self.false_alarms
        half = max_points // 2
        by_recall = np.searchsorted(self.caught, np.linspace(1, max(self.frauds, 1), half))
        by_alarms = np.searchsorted(total, np.geomspace(1, max(int(total[-1]), 1), max_points - half))
        named = np.array([self._index(threshold) for threshold in also], dtype=np.int64)
        keep = np.unique(np.concatenate([by_recall, by_alarms, named]).clip(1, len(total) - 1))
        caught, raised = self.caught[keep], total[keep]
        columns = {
            "threshold": self.threshold[keep],
            "recall": caught / self.frauds if self.frauds else np.full(len(keep), np.nan),
            "precision": caught / raised,
            "fpr": self.false_alarms[keep] / self.legitimate if self.legitimate else np.full(len(keep), np.nan),
            "f1": 2 * caught / (self.frauds + raised),
            "alarms_per_day": raised / self.days,
            "caught": caught,
            "alarms": raised,
        }
        return pl.DataFrame(columns if cost is None else columns | {"cost": cost[keep]})

    def _metrics(self, index: int) -> dict[str, Any]:
        caught, false = int(self.caught[index]), int(self.false_alarms[index])
        raised = caught + false
        return {
            "caught": caught,
            "missed": self.frauds - caught,
            "false_alarms": false,
            "days": self.days,
            "alarms_per_day": raised / self.days,
            "false_alarms_per_day": false / self.days,
            "amount_caught": None if self.fraud_amount is None else math.fsum(self.fraud_amount[:caught]),
            "amount_missed": None if self.fraud_amount is None else math.fsum(self.fraud_amount[caught:]),
            "precision": caught / raised if raised else 0.0,
            "recall": caught / self.frauds if self.frauds else None,
            "fpr": false / self.legitimate if self.legitimate else None,
            "f1": 2 * caught / (self.frauds + raised) if self.frauds else None,
        }

    def _index(self, threshold: float) -> int:
        """Return the number of distinct scores that reach the threshold."""
        return int(np.searchsorted(-self.score, -threshold, side="right"))

    def _threshold(self, index: np.integer[Any]) -> float:
        return float(self.threshold[int(np.clip(index, 0, len(self.threshold) - 1))])
