"""Metrics of fraud scores that a fraud team decides by.

What is special: rows with equal scores are one step, because no threshold separates them. So no metric
depends on the order of the rows, and a constant score gains nothing by chance. One sorted pass (`Ranking`)
gives average precision, equal to scikit-learn's, and metrics that scikit-learn does not have: false alarms at
a recall, recall at a false-positive rate, and calibration error in bins of equal mass.

Average precision and false alarms at equal recall are more informative than F1 at .5: sampling shifts all
scores at once, which changes F1 at .5 strongly and the ranking hardly. Only a better ranking is a better
model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from balancer.data.spec import DAY
from balancer.errors import InputError

RECALLS = (0.60, 0.65, 0.70, 0.80)
"""Recalls at which false alarms are reported."""
FALSE_POSITIVE_RATES = (0.001, 0.01)
"""False-positive rates at which recall is reported."""
CARDS_PER_DAY = 100
"""Entities that investigators can check per day."""
CALIBRATION_BINS = 15
"""Number of bins of the expected calibration error; each has the same number of rows."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """Frauds and false alarms at every threshold, one entry per distinct score."""

    score: Floats
    """(d,) distinct scores, highest first."""
    hits: NDArray[np.int64]
    """(d,) frauds with at least that score."""
    alarms: NDArray[np.int64]
    """(d,) legitimate rows with at least that score."""

    @classmethod
    def of(cls, fraud: ArrayLike, score: ArrayLike) -> Ranking:
        """Rank rows by `score` (n,), given whether each is a `fraud` (n,)."""
        scores, frauds = np.asarray(score, dtype=np.float64), np.asarray(fraud, dtype=bool)
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.zeros(0, dtype=np.int64)
        hits = np.cumsum(frauds[order], dtype=np.int64)[last]
        return cls(ordered[last], hits, last + 1 - hits)

    @property
    def frauds(self) -> int:
        """Total number of frauds."""
        return int(self.hits[-1]) if len(self.hits) else 0

    @property
    def legitimate(self) -> int:
        """Total number of legitimate rows."""
        return int(self.alarms[-1]) if len(self.alarms) else 0

    def average_precision(self) -> float | None:
        """Sum precision times gain in recall over the steps, without interpolation; None without frauds."""
        if not self.frauds:
            return None
        gained = np.diff(self.hits, prepend=0)
        return float(np.sum(self.hits / (self.hits + self.alarms) * gained) / self.frauds)

    def calibration_error(self, bins: int) -> float:
        """Average the difference between probability and fraud rate over bins of equal numbers of rows."""
        hits = np.diff(self.hits, prepend=0)
        counts = hits + np.diff(self.alarms, prepend=0)
        # Every row has the fraud rate of its step, so that the order of rows does not matter where a step
        # crosses a bin edge.
        gap = np.repeat(self.score - hits / counts, counts)
        edges = np.linspace(0, len(gap), bins + 1).round().astype(np.int64)
        total = np.concatenate([[0.0], np.cumsum(gap)])[edges]
        return float(np.abs(np.diff(total)).sum() / max(len(gap), 1))

    def false_alarms_at_recall(self, recall: float) -> float | None:
        """Count false alarms per 10,000 legitimate rows at the highest threshold that reaches `recall`.

        None without frauds or without legitimate rows.
        """
        if not self.frauds or not self.legitimate:
            return None
        # Slightly lower: .6 * 5 frauds can be 3.0000000000000004 in floating point, and three of five frauds
        # do reach .6.
        first = int(np.searchsorted(self.hits, recall * self.frauds * (1 - 1e-12)))
        return float(self.alarms[first] / self.legitimate * 10_000)

    def recall_at_fpr(self, rate: float) -> float | None:
        """Return the largest recall with a false-positive rate of at most `rate`.

        None without frauds or without legitimate rows.
        """
        if not self.frauds or not self.legitimate:
            return None
        allowed = int(np.searchsorted(self.alarms, rate * self.legitimate * (1 + 1e-12), side="right"))
        return float(self.hits[allowed - 1] / self.frauds) if allowed else 0.0


def evaluate_scores(
    label: ArrayLike,
    score: ArrayLike,
    *,
    threshold: float,
    raw_score: ArrayLike,
    classes: Sequence[str],
    time: ArrayLike | None,
    class_scores: ArrayLike | None = None,
    entity: ArrayLike | None = None,
    amount: ArrayLike | None = None,
) -> dict[str, Any]:
    """Compute all metrics of the report for one model on one set of rows.

    Args:
        label: (n,) class index; 0 is legitimate, -1 is unlabelled (these rows are left out).
        score: (n,) calibrated probability of fraud of any kind; an alarm is `score >= threshold`.
        threshold: Tuned on validation, on the scale of `score`.
        raw_score: (n,) uncalibrated fraud score of the model; its default threshold is .5.
        classes: K names, the legitimate class first.
        time: (n,) seconds, for the days of card precision and of the alarms; None without times.
        class_scores: (n, K) calibrated class probabilities, or None for a model that does not tell fraud
            classes apart.
        entity: (n,) integer code of card or account, or None.
        amount: (n,) amount of each row, or None.

    Returns:
        A JSON-serializable dict with `average_precision, f1, precision, recall, fpr` (at `threshold`),
        `f1_at_half` and `at_half` (precision, recall, fpr of the raw score at .5), `alarms` (`alarm_counts`
        at `threshold`), `false_alarms_per_10k_at_recall`, `recall_at_fpr`, `card_precision_at_100`, `brier`,
        `ece`, `log_loss`, `threshold`, `rows`, `positives`, and `per_class`: the same for each fraud class,
        on its rows and the legitimate rows. In `per_class`, `average_precision_one_vs_rest`, `brier`, `ece`
        and `log_loss` are of the probability of that class, on all rows; they are null without
        `class_scores`. An undefined metric (recall without frauds) is null.

    Raises:
        InputError: If no row is labelled, lengths differ, or a score is not finite.
    """
    labels, scores, raw = np.asarray(label), np.asarray(score, dtype=np.float64), np.asarray(raw_score, dtype=np.float64)
    times = np.zeros(len(labels)) if time is None else np.asarray(time, dtype=np.float64)
    entities = None if entity is None or time is None else np.asarray(entity)
    by_class = None if class_scores is None else np.asarray(class_scores, dtype=np.float64)
    amounts = None if amount is None else np.asarray(amount, dtype=np.float64)
    columns = {"score": scores, "raw_score": raw, "time": times, "entity": entities, "class_scores": by_class, "amount": amounts}
    for name, column in columns.items():
        if column is not None and len(column) != len(labels):
            raise InputError(f"{name} has {len(column)} rows and label {len(labels)}: give one {name} per label")
    if by_class is not None and by_class.shape != (len(labels), len(classes)):
        raise InputError(f"class_scores has shape {by_class.shape}: give one column for each of the {len(classes)} classes")
    for name, column in (("score", scores), ("raw_score", raw)):
        if not np.isfinite(column).all():
            bad = int((~np.isfinite(column)).sum())
            raise InputError(f"{name} is not a finite number in {bad} rows: lower the learning rate of the model")
    # Sorted once, so that the rows of each class are already in order for the rankings below.
    order = np.argsort(-scores, kind="stable")
    order = order[labels[order] >= 0]
    if not len(order):
        raise InputError("no row to evaluate has a label: give rows with known labels")
    rows = _Rows(labels[order], scores[order], raw[order], times[order], None if entities is None else entities[order])
    counts = alarm_counts(
        rows.label > 0,
        rows.score >= threshold,
        time=None if time is None else rows.time,
        amount=None if amounts is None else amounts[order],
    )
    result = (
        _ranking_metrics(rows, threshold)
        | {"alarms": counts}
        | _probability_metrics(rows.label > 0, rows.score, Ranking.of(rows.label > 0, rows.score))
    )
    per_class: dict[str, Any] = {}
    for index, name in enumerate(classes[1:], start=1):
        probabilities: dict[str, Any] = {"average_precision_one_vs_rest": None, "brier": None, "ece": None, "log_loss": None}
        if by_class is not None:
            target, probability = rows.label == index, by_class[order, index]
            ranking = Ranking.of(target, probability)
            probabilities = {"average_precision_one_vs_rest": ranking.average_precision()} | _probability_metrics(
                target, probability, ranking
            )
        count = int((rows.label == index).sum())
        per_class[name] = (
            _ranking_metrics(rows.where((rows.label == index) | (rows.label == 0)), threshold) | probabilities | {"rows": count}
        )
    return result | {"threshold": float(threshold), "per_class": per_class}


@dataclass(frozen=True)
class _Rows:
    """Labelled rows, each array (n,)."""

    label: NDArray[Any]
    score: Floats
    raw: Floats
    time: Floats
    entity: NDArray[Any] | None

    def where(self, keep: NDArray[np.bool_]) -> _Rows:
        """Select rows by a mask (n,)."""
        if keep.all():
            return self
        entity = None if self.entity is None else self.entity[keep]
        return _Rows(self.label[keep], self.score[keep], self.raw[keep], self.time[keep], entity)


def _ranking_metrics(rows: _Rows, threshold: float) -> dict[str, Any]:
    """Compute the metrics that depend on the ranking and on a threshold."""
    fraud = rows.label > 0
    ranking = Ranking.of(fraud, rows.score)
    half = alarm_metrics(fraud, rows.raw >= 0.5)
    return {
        "average_precision": ranking.average_precision(),
        **alarm_metrics(fraud, rows.score >= threshold),
        "f1_at_half": half.pop("f1"),
        "at_half": half,
        "false_alarms_per_10k_at_recall": {f"{recall:.2f}": ranking.false_alarms_at_recall(recall) for recall in RECALLS},
        "recall_at_fpr": {f"{rate:g}": ranking.recall_at_fpr(rate) for rate in FALSE_POSITIVE_RATES},
        "card_precision_at_100": None if rows.entity is None else card_precision(fraud, rows.score, rows.time, rows.entity),
        "rows": len(fraud),
        "positives": int(fraud.sum()),
    }


def _probability_metrics(fraud: NDArray[np.bool_], probability: Floats, ranking: Ranking) -> dict[str, Any]:
    """Compute the metrics of the scores as probabilities."""
    likelihood = np.where(fraud, probability, 1 - probability)
    return {
        "brier": float(np.mean((probability - fraud) ** 2)),
        "ece": ranking.calibration_error(CALIBRATION_BINS),
        "log_loss": float(-np.mean(np.log(np.maximum(likelihood, 1e-15)))),
    }


def alarm_metrics(fraud: ArrayLike, alarm: ArrayLike) -> dict[str, float | None]:
    """Compute `f1, precision, recall, fpr`.

    Args:
        fraud: (n,) whether a row is a fraud.
        alarm: (n,) whether a row raises an alarm.

    Returns:
        Precision and F1 are 0 without an alarm. A metric is None where its denominator has no rows.
    """
    frauds, alarms = np.asarray(fraud, dtype=bool), np.asarray(alarm, dtype=bool)
    positives, raised, hits = int(frauds.sum()), int(alarms.sum()), int((frauds & alarms).sum())
    negatives = len(frauds) - positives
    return {
        "f1": 2 * hits / (positives + raised) if positives else None,
        "precision": hits / raised if raised else 0.0,
        "recall": hits / positives if positives else None,
        "fpr": (raised - hits) / negatives if negatives else None,
    }


def observed_days(time: ArrayLike) -> float:
    """Return the days between the first and the last `time` (n,) in seconds, at least 1."""
    times = np.asarray(time, dtype=np.float64)
    return max(1.0, float(times.max() - times.min()) / DAY) if len(times) else 1.0


def alarm_counts(
    fraud: ArrayLike, alarm: ArrayLike, *, time: ArrayLike | None, amount: ArrayLike | None = None
) -> dict[str, float | int | None]:
    """Count alarms, missed frauds and their amounts.

    Args:
        fraud: (n,) whether a row is a fraud.
        alarm: (n,) whether a row raises an alarm.
        time: (n,) seconds; None without times.
        amount: (n,) amounts, or None. A refund (a negative amount) counts as 0.

    Returns:
        `caught, missed, false_alarms` (rows), `days`, `alarms_per_day, false_alarms_per_day` (None without
        times), and `amount_caught, amount_missed` (None without amounts).
    """
    frauds, alarms = np.asarray(fraud, dtype=bool), np.asarray(alarm, dtype=bool)
    money = None if amount is None else np.where(frauds, np.maximum(np.asarray(amount, dtype=np.float64), 0.0), 0.0)
    days = None if time is None else observed_days(time)
    false = int((alarms & ~frauds).sum())
    return {
        "caught": int((frauds & alarms).sum()),
        "missed": int((frauds & ~alarms).sum()),
        "false_alarms": false,
        "days": days,
        "alarms_per_day": None if days is None else int(alarms.sum()) / days,
        "false_alarms_per_day": None if days is None else false / days,
        "amount_caught": None if money is None else math.fsum(money[alarms]),
        "amount_missed": None if money is None else math.fsum(money[~alarms]),
    }


def card_precision(fraud: ArrayLike, score: ArrayLike, time: ArrayLike, entity: ArrayLike, *, cards: int = CARDS_PER_DAY) -> float | None:
    """Compute card precision@k: the share with fraud among the k entities with the highest scores of a day.

    After the Fraud Detection Handbook (Le Borgne et al., chapter 4), but cards that were found on earlier
    days are not removed. Entities with equal scores share the remaining places, so the order of the rows does
    not matter.

    Args:
        fraud: (n,) whether a row is a fraud.
        score: (n,) probability of fraud.
        time: (n,) seconds; days are UTC.
        entity: (n,) integer code of card or account.
        cards: Entities that are checked per day. On a day with fewer entities all are checked, which limits
            the best possible result.

    Returns:
        The mean over the days that have rows; None without rows.
    """
    frame = pl.DataFrame(
        {
            "day": np.floor(np.asarray(time, dtype=np.float64) / DAY).astype(np.int64),
            "entity": np.asarray(entity),
            "score": np.asarray(score, dtype=np.float64),
            "fraud": np.asarray(fraud, dtype=bool),
        }
    )
    daily = frame.group_by("day", "entity").agg(pl.col("score").max(), pl.col("fraud").any())
    levels = daily.group_by("day", "score").agg(pl.len().cast(pl.Float64).alias("size"), pl.col("fraud").sum().alias("frauds"))
    levels = levels.sort("day", "score", descending=[False, True]).with_columns(
        before=pl.col("size").cum_sum().over("day") - pl.col("size")
    )
    taken = (pl.lit(float(cards)) - pl.col("before")).clip(0.0, pl.col("size"))
    days = levels.with_columns(taken=taken).group_by("day", maintain_order=True)
    share = days.agg(((pl.col("taken") / pl.col("size") * pl.col("frauds")).sum() / pl.col("taken").sum()).alias("share"))["share"]
    return float(np.mean(share.to_numpy())) if len(share) else None


def expected_calibration_error(fraud: ArrayLike, probability: ArrayLike, *, bins: int = CALIBRATION_BINS) -> float:
    """Average the difference between probability and fraud rate over bins of equal numbers of rows.

    With bins of equal width, nearly all rows would be in the first of fifteen bins at 1 % fraud (Nixon et al.
    2019).
    """
    return Ranking.of(fraud, probability).calibration_error(bins)


def curve_points(label: ArrayLike, score: ArrayLike, *, max_points: int = 500) -> dict[str, list[float]]:
    """Compute points of the precision-recall curve and the ROC curve.

    Half of the points are evenly spaced in recall, half in the logarithm of the false alarms, so that both
    curves keep their shape where there are few alarms.

    Args:
        label: (n,) class index; -1 is unlabelled (these rows are left out).
        score: (n,) probability of fraud.
        max_points: Most points.

    Returns:
        Lists `threshold, recall, precision, fpr`, thresholds decreasing; empty without frauds or legitimate
        rows.
    """
    labels = np.asarray(label)
    ranking = Ranking.of(labels[labels >= 0] > 0, np.asarray(score)[labels >= 0])
    if not ranking.frauds or not ranking.legitimate:
        return {"threshold": [], "recall": [], "precision": [], "fpr": []}
    half = max_points // 2
    by_recall = np.searchsorted(ranking.hits, np.linspace(1, ranking.frauds, half))
    by_alarms = np.searchsorted(ranking.alarms, np.geomspace(1, ranking.legitimate + 1, max_points - half) - 1)
    keep = np.unique(np.concatenate([by_recall, by_alarms]).clip(0, len(ranking.score) - 1))
    hits, alarms = ranking.hits[keep], ranking.alarms[keep]
    return {
        "threshold": ranking.score[keep].tolist(),
        "recall": (hits / ranking.frauds).tolist(),
        "precision": (hits / (hits + alarms)).tolist(),
        "fpr": (alarms / ranking.legitimate).tolist(),
    }
