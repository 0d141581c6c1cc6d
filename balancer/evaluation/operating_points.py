"""Every alarm threshold at once: what each would catch, what it would cost, and which one meets a wish.

Special: one sort answers all wishes. A threshold lies in the middle between two scores, as the tuned one does, so it hangs on no row's last bit; and what
is told of it here is to the last digit what :func:`balancer.evaluation.metrics.evaluate_scores` tells of it.

Whoever chooses a threshold on the rows it is then judged on flatters it: on other rows expect a little less.
"""

from __future__ import annotations

import math
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
    """The thresholds that differ on some rows, by falling score; place 0 is no alarm at all, place i alarms the i highest distinct scores."""

    score: Floats
    """(d,) distinct scores, highest first."""
    threshold: Floats
    """(d + 1,)"""
    caught: NDArray[np.int64]
    false_alarms: NDArray[np.int64]
    stake: Floats | None
    """(frauds,) money of each fraud, by falling score, refunds as 0; None without amounts."""
    days: float

    @classmethod
    def of(cls, label: ArrayLike, score: ArrayLike, *, time: ArrayLike, amount: ArrayLike | None = None) -> OperatingPoints:
        """From ``label`` (n,) class index (-1 unlabelled, left out), ``score`` (n,) in 0 to 1, ``time`` (n,) seconds and ``amount`` (n,) or None.

        Raises InputError where no row is labelled or a score is outside 0 to 1.
        """
        labels = np.asarray(label)
        known = labels >= 0
        fraud, scores = labels[known] > 0, np.asarray(score, dtype=np.float64)[known]
        if not len(scores):
            raise InputError("none of the rows has a label: a threshold can't be judged")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise InputError("a score is outside 0 to 1: give calibrated probabilities")
        ranking = Ranking.of(fraud, scores)
        below = np.append(ranking.score[1:], 0.0)
        middle = (ranking.score + below) / 2
        threshold = np.where(middle > below, middle, ranking.score)
        threshold[-1] = 0.0
        stake = None
        if amount is not None:
            stake = np.maximum(np.asarray(amount, dtype=np.float64)[known][fraud][np.argsort(-scores[fraud], kind="stable")], 0.0)
        hits, alarms = np.append(0, ranking.hits), np.append(0, ranking.alarms)
        return cls(ranking.score, np.append(NO_ALARM, threshold), hits, alarms, stake, observed_days(np.asarray(time)[known]))

    @property
    def frauds(self) -> int:
        """Frauds in all."""
        return int(self.caught[-1])

    @property
    def legitimate(self) -> int:
        """Legitimate rows in all."""
        return int(self.false_alarms[-1])

    def figures(self, threshold: float) -> dict[str, Any]:
        """Of alarms at ``score >= threshold``: the keys of ``alarm_counts``, and ``threshold, precision, recall, fpr, f1`` as in the report."""
        place = int(np.searchsorted(-self.score, -threshold, side="right"))
        return self._figures(place) | {"threshold": threshold}

    def cost(self, per_alarm: float, loss_share: float = 1.0) -> Floats:
        """(d + 1,) money at each place: ``per_alarm`` for every alarm looked at, and ``loss_share`` of the amount of each fraud missed.

        Raises InputError where there are no amounts.
        """
        if self.stake is None:
            raise InputError("the table has no amounts, so a miss has no price: name the column by --amount when training")
        saved = np.append(0.0, np.cumsum(self.stake))[self.caught]
        return np.asarray(per_alarm * (self.caught + self.false_alarms) + loss_share * (saved[-1] - saved))

    def for_alarms(self, per_day: float) -> float:
        """The lowest threshold with at most ``per_day`` alarms a day."""
        return self._threshold(np.searchsorted(self.caught + self.false_alarms, per_day * self.days * (1 + 1e-12), side="right") - 1)

    def for_fpr(self, rate: float) -> float:
        """The lowest threshold with a false-positive rate of at most ``rate``."""
        return self._threshold(np.searchsorted(self.false_alarms, rate * self.legitimate * (1 + 1e-12), side="right") - 1)

    def for_recall(self, recall: float) -> float:
        """The highest threshold that reaches ``recall``."""
        return self._threshold(np.searchsorted(self.caught, recall * self.frauds * (1 - 1e-12)))

    def for_cost(self, per_alarm: float, loss_share: float = 1.0) -> float:
        """The highest of the cheapest thresholds by :meth:`cost`."""
        return self._threshold(np.argmin(self.cost(per_alarm, loss_share)))

    def table(self, *, max_points: int = 400, cost: Floats | None = None) -> pl.DataFrame:
        """A thinned frame for charts: columns ``threshold, recall, precision, fpr, f1, alarms_per_day`` and, if given, ``cost``.

        Half of the points are spread evenly over recall, half over the logarithm of the alarms.
        """
        total = self.caught + self.false_alarms
        half = max_points // 2
        by_recall = np.searchsorted(self.caught, np.linspace(1, max(self.frauds, 1), half))
        by_alarms = np.searchsorted(total, np.geomspace(1, max(int(total[-1]), 1), max_points - half))
        keep = np.unique(np.concatenate([by_recall, by_alarms]).clip(1, len(total) - 1))
        caught, raised = self.caught[keep], total[keep]
        columns = {
            "threshold": self.threshold[keep],
            "recall": caught / self.frauds if self.frauds else np.full(len(keep), np.nan),
            "precision": caught / raised,
            "fpr": self.false_alarms[keep] / self.legitimate if self.legitimate else np.full(len(keep), np.nan),
            "f1": 2 * caught / (self.frauds + raised),
            "alarms_per_day": raised / self.days,
        }
        return pl.DataFrame(columns if cost is None else columns | {"cost": cost[keep]})

    def _figures(self, place: int) -> dict[str, Any]:
        caught, false = int(self.caught[place]), int(self.false_alarms[place])
        raised = caught + false
        return {
            "caught": caught,
            "missed": self.frauds - caught,
            "false_alarms": false,
            "days": self.days,
            "alarms_per_day": raised / self.days,
            "false_alarms_per_day": false / self.days,
            "amount_caught": None if self.stake is None else math.fsum(self.stake[:caught]),
            "amount_missed": None if self.stake is None else math.fsum(self.stake[caught:]),
            "precision": caught / raised if raised else 0.0,
            "recall": caught / self.frauds if self.frauds else None,
            "fpr": false / self.legitimate if self.legitimate else None,
            "f1": 2 * caught / (self.frauds + raised) if self.frauds else None,
        }

    def _threshold(self, place: np.integer[Any]) -> float:
        return float(self.threshold[int(np.clip(place, 0, len(self.threshold) - 1))])
