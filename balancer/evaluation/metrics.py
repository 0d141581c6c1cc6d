"""How good a fraud score is, in the figures a fraud team decides by.

Special: rows with equal scores are one step. A threshold can't tell them apart, so no figure here depends on the order of the rows, and a
score that is the same for all rows earns nothing by luck. One sorted pass (:class:`Ranking`) gives average precision, equal to
scikit-learn's, and what scikit-learn has not: false alarms at a recall, recall at a false-positive rate, calibration error in bins of
equal mass.

Average precision and false alarms at matched recall come before F1 at .5: sampling shifts all scores at once, which moves F1 at .5 a lot
and the ranking hardly. Only a better ranking is a better model.
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
"""Recalls at which false alarms are counted."""
FALSE_POSITIVE_RATES = (0.001, 0.01)
"""False-positive rates at which recall is read."""
CARDS_PER_DAY = 100
"""Entities that investigators look at in a day."""
CALIBRATION_BINS = 15
"""Bins, of equal numbers of rows, of the expected calibration error."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """Rows by falling score, one entry per distinct score: what an alarm threshold at that score would catch.

    ``score`` (d,) distinct scores, highest first; ``hits`` and ``alarms`` (d,) frauds and legitimate rows scored at least that high.
    """

    score: Floats
    hits: NDArray[np.int64]
    alarms: NDArray[np.int64]

    @classmethod
    def of(cls, fraud: ArrayLike, score: ArrayLike) -> Ranking:
        """Rank ``score`` (n,) against ``fraud`` (n,) bool."""
        scores, frauds = np.asarray(score, dtype=np.float64), np.asarray(fraud, dtype=bool)
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.zeros(0, dtype=np.int64)
        hits = np.cumsum(frauds[order], dtype=np.int64)[last]
        return cls(ordered[last], hits, last + 1 - hits)

    @property
    def frauds(self) -> int:
        """Frauds in all."""
        return int(self.hits[-1]) if len(self.hits) else 0

    @property
    def legitimate(self) -> int:
        """Legitimate rows in all."""
        return int(self.alarms[-1]) if len(self.alarms) else 0

    def average_precision(self) -> float | None:
        """Sum over the steps of precision times gain in recall (no interpolation); None without frauds."""
        if not self.frauds:
            return None
        gained = np.diff(self.hits, prepend=0)
        return float(np.sum(self.hits / (self.hits + self.alarms) * gained) / self.frauds)

    def calibration_error(self, bins: int) -> float:
        """Mean gap between probability and fraud rate over ``bins`` bins of equal numbers of rows."""
        hits = np.diff(self.hits, prepend=0)
        counts = hits + np.diff(self.alarms, prepend=0)
        # A row counts with the fraud rate of its step, so that a step across the edge of two bins is no matter of row order.
        gap = np.repeat(self.score - hits / counts, counts)
        edges = np.linspace(0, len(gap), bins + 1).round().astype(np.int64)
        total = np.concatenate([[0.0], np.cumsum(gap)])[edges]
        return float(np.abs(np.diff(total)).sum() / max(len(gap), 1))

    def false_alarms_at_recall(self, recall: float) -> float | None:
        """False alarms per 10,000 legitimate rows at the highest threshold that reaches ``recall``; None where rows of one kind are
        missing.
        """
        if not self.frauds or not self.legitimate:
            return None
        # A hair below: .6 * 5 frauds is 3.0000000000000004 in binary in some orders of the sum, and three of five do reach .6.
        first = int(np.searchsorted(self.hits, recall * self.frauds * (1 - 1e-12)))
        return float(self.alarms[first] / self.legitimate * 10_000)

    def recall_at_fpr(self, rate: float) -> float | None:
        """Largest recall with a false-positive rate of at most ``rate``; None without frauds or legitimate rows."""
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
    time: ArrayLike,
    class_scores: ArrayLike | None = None,
    entity: ArrayLike | None = None,
    amount: ArrayLike | None = None,
) -> dict[str, Any]:
    """Every figure of the report for one model on one part of the data.

    Parameters
    ----------
    label
        (n,) class index, 0 legitimate, -1 unlabelled (such rows are left out).
    score
        (n,) calibrated probability of fraud of any kind; an alarm is ``score >= threshold``.
    threshold
        Tuned on validation, on the scale of ``score``.
    raw_score
        (n,) what the model itself said; its default threshold is .5.
    classes
        K names, the legitimate class first.
    time
        (n,) seconds, for the days of card precision.
    class_scores
        (n, K) calibrated class probabilities, or None for a model that only knows fraud from legitimate.
    entity
        (n,) integer code of card or account, or None.
    amount
        (n,) money of each row, or None.

    Returns
    -------
    dict
        JSON-able. ``average_precision, f1, precision, recall, fpr`` (at ``threshold``), ``f1_at_half`` and ``at_half`` (precision,
        recall, fpr of the raw score at .5),
        ``alarms`` (:func:`alarm_counts` at ``threshold``), ``false_alarms_per_10k_at_recall``, ``recall_at_fpr``, ``card_precision_at_100``, ``brier``,
        ``ece``, ``log_loss``, ``threshold``, ``rows``, ``positives``, and under ``per_class`` the same for each fraud class on its rows
        and the legitimate ones; there ``average_precision_one_vs_rest``, ``brier``, ``ece`` and ``log_loss`` judge the class's own
        probability on all rows and are null without ``class_scores``. A figure that does not exist (recall without a fraud) is null.

    Raises
    ------
    InputError
        When no row is labelled, lengths differ or a score is no finite number.
    """
    labels, scores, raw = np.asarray(label), np.asarray(score, dtype=np.float64), np.asarray(raw_score, dtype=np.float64)
    times = np.asarray(time, dtype=np.float64)
    entities = None if entity is None else np.asarray(entity)
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
    # Sorted once, so that the ranking of each class's rows below finds them in order already.
    order = np.argsort(-scores, kind="stable")
    order = order[labels[order] >= 0]
    if not len(order):
        raise InputError("none of the rows to evaluate has a label: give rows with known labels")
    rows = _Rows(labels[order], scores[order], raw[order], times[order], None if entities is None else entities[order])
    counts = alarm_counts(rows.label > 0, rows.score >= threshold, time=rows.time, amount=None if amounts is None else amounts[order])
    result = (
        _figures(rows, threshold)
        | {"alarms": counts}
        | _probability_figures(rows.label > 0, rows.score, Ranking.of(rows.label > 0, rows.score))
    )
    per_class: dict[str, Any] = {}
    for index, name in enumerate(classes[1:], start=1):
        own: dict[str, Any] = {"average_precision_one_vs_rest": None, "brier": None, "ece": None, "log_loss": None}
        if by_class is not None:
            target, probability = rows.label == index, by_class[order, index]
            ranking = Ranking.of(target, probability)
            own = {"average_precision_one_vs_rest": ranking.average_precision()} | _probability_figures(target, probability, ranking)
        count = int((rows.label == index).sum())
        per_class[name] = _figures(rows.where((rows.label == index) | (rows.label == 0)), threshold) | own | {"rows": count}
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
        """The rows of a mask (n,); these very rows where it keeps all."""
        if keep.all():
            return self
        entity = None if self.entity is None else self.entity[keep]
        return _Rows(self.label[keep], self.score[keep], self.raw[keep], self.time[keep], entity)


def _figures(rows: _Rows, threshold: float) -> dict[str, Any]:
    """What depends on the order of the scores and on a threshold."""
    fraud = rows.label > 0
    ranking = Ranking.of(fraud, rows.score)
    half = alarm_figures(fraud, rows.raw >= 0.5)
    return {
        "average_precision": ranking.average_precision(),
        **alarm_figures(fraud, rows.score >= threshold),
        "f1_at_half": half.pop("f1"),
        "at_half": half,
        "false_alarms_per_10k_at_recall": {f"{recall:.2f}": ranking.false_alarms_at_recall(recall) for recall in RECALLS},
        "recall_at_fpr": {f"{rate:g}": ranking.recall_at_fpr(rate) for rate in FALSE_POSITIVE_RATES},
        "card_precision_at_100": None if rows.entity is None else card_precision(fraud, rows.score, rows.time, rows.entity),
        "rows": len(fraud),
        "positives": int(fraud.sum()),
    }


def _probability_figures(fraud: NDArray[np.bool_], probability: Floats, ranking: Ranking) -> dict[str, Any]:
    """What depends on the scores as probabilities."""
    right = np.where(fraud, probability, 1 - probability)
    return {
        "brier": float(np.mean((probability - fraud) ** 2)),
        "ece": ranking.calibration_error(CALIBRATION_BINS),
        "log_loss": float(-np.mean(np.log(np.maximum(right, 1e-15)))),
    }


def alarm_figures(fraud: ArrayLike, alarm: ArrayLike) -> dict[str, float | None]:
    """``f1, precision, recall, fpr`` of alarms (n,) bool; precision without an alarm is 0, as is F1; recall and fpr without rows to count
    are null.
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
    """Days from the first to the last of ``time`` (n,) seconds, at least one: what counts by the day are divided by."""
    times = np.asarray(time, dtype=np.float64)
    return max(1.0, float(times.max() - times.min()) / DAY) if len(times) else 1.0


def alarm_counts(fraud: ArrayLike, alarm: ArrayLike, *, time: ArrayLike, amount: ArrayLike | None = None) -> dict[str, float | int | None]:
    """What alarms come to for the people who answer them and the money at stake.

    ``fraud`` and ``alarm`` (n,) bool, ``time`` (n,) seconds, ``amount`` (n,) money or None; a refund (a negative amount) is no loss and counts 0.

    Returns ``caught, missed, false_alarms`` (rows), ``days``, ``alarms_per_day, false_alarms_per_day``, ``amount_caught, amount_missed`` (null without
    amounts).
    """
    frauds, alarms = np.asarray(fraud, dtype=bool), np.asarray(alarm, dtype=bool)
    money = None if amount is None else np.where(frauds, np.maximum(np.asarray(amount, dtype=np.float64), 0.0), 0.0)
    days = observed_days(time)
    false = int((alarms & ~frauds).sum())
    return {
        "caught": int((frauds & alarms).sum()),
        "missed": int((frauds & ~alarms).sum()),
        "false_alarms": false,
        "days": days,
        "alarms_per_day": int(alarms.sum()) / days,
        "false_alarms_per_day": false / days,
        "amount_caught": None if money is None else math.fsum(money[alarms]),
        "amount_missed": None if money is None else math.fsum(money[~alarms]),
    }


def card_precision(fraud: ArrayLike, score: ArrayLike, time: ArrayLike, entity: ArrayLike, *, cards: int = CARDS_PER_DAY) -> float | None:
    """Card precision@k: each day the ``cards`` entities with the highest score of that day are looked at; the share that has a fraud that
    day.

    After the Fraud Detection Handbook (Le Borgne et al., ch. 4), without its memory of cards found on earlier days. The mean over the days
    (UTC, by ``time`` in seconds) that have rows; a day with fewer entities counts them all, so a quiet day caps what any model can reach.
    Entities level at the cut share the places left, so the figure does not depend on the order of the rows. None without rows.
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
    """Mean gap between probability and fraud rate over ``bins`` bins of equal numbers of rows by probability.

    Equal-mass bins because at 1 % fraud nearly every row lies in the first of fifteen equal-width ones (Nixon et al., 2019).
    """
    return Ranking.of(fraud, probability).calibration_error(bins)


def curve_points(label: ArrayLike, score: ArrayLike, *, max_points: int = 500) -> dict[str, list[float]]:
    """Points of the precision-recall and ROC curves, thinned.

    Returns lists ``threshold, recall, precision, fpr`` of at most ``max_points``, thresholds falling. Half of the points are spread
    evenly over recall and half over the logarithm of false alarms, so both curves keep their shape where few alarms are raised. Empty
    where rows of one kind are missing. ``label`` (n,) class index, -1 left out; ``score`` (n,) probability of fraud.
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
