"""Paired differences between treatments, with intervals that separate a gain from noise.

Seeds are averaged within a fold, and folds are resampled: trainings on one fold share its data, and an
interval over seeds would only show how reproducible a training is (Agarwal et al. 2021 on intervals and the
interquartile mean; Holm 1979 on the correction for many treatments). With a single fold, seeds are resampled,
and the result says so.

False alarms are also compared as a ratio; half a false alarm is added to both sides, so that a result without
false alarms is not an infinite gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from balancer.sampling.seeding import generator
from balancer.sampling.weights import Floats

RESAMPLES = 10_000
LEVEL = 0.95
FALSE_ALARMS = "false_alarms_per_10k_at_recall"


@dataclass(frozen=True)
class Metric:
    """A figure by which treatments are compared."""

    key: str
    title: str
    higher_is_better: bool = True
    recall: str | None = None
    """For false alarms: the recall at which they are counted."""

    def of(self, result: Mapping[str, Any]) -> float | None:
        """Its value in a cell, or None."""
        value = result.get(self.key) if self.recall is None else result.get(FALSE_ALARMS, {}).get(self.recall)
        return None if value is None else float(value)


METRICS: dict[str, Metric] = {
    "average_precision": Metric("average_precision", "average precision"),
    "f1": Metric("f1", "F1, tuned threshold"),
    "f1_at_half": Metric("f1_at_half", "F1 at threshold .5"),
    "ece": Metric("ece", "calibration error (ECE)", higher_is_better=False),
    "brier": Metric("brier", "Brier score", higher_is_better=False),
    "card_precision_at_100": Metric("card_precision_at_100", "card precision at 100 a day"),
} | {
    f"{FALSE_ALARMS}_{recall}": Metric(FALSE_ALARMS, f"false alarms per 10,000 at recall {recall}", False, recall)
    for recall in ("0.60", "0.65", "0.70", "0.80")
}


def paired(results: Sequence[Mapping[str, Any]], reference: str, *, seed: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    """Differences of every treatment to a reference.

    Args:
        results: Cells, each with ``treatment``, ``fold``, ``seed`` and figures; a pair has the same fold and
            seed.
        reference: Treatment that is subtracted.
        seed: Random seed of the bootstrap.

    Returns:
        ``{treatment: {metric: {difference, low, high, interquartile_mean, folds, folds_better, over, p,
        p_holm}}}``: mean difference over the folds with its 95 % bootstrap interval (null where there is
        nothing to resample), in how many folds the treatment was better, what was resampled (``folds`` or
        ``seeds``), and two-sided bootstrap p-values, plain and corrected by Holm for the number of
        treatments. Metrics of false alarms also have ``ratio``, ``ratio_low`` and ``ratio_high``. A metric
        without a pair is left out.
    """
    treatments = [name for name in dict.fromkeys(result["treatment"] for result in results) if name != reference]
    cells = {(result["treatment"], result["fold"], result["seed"]): result for result in results}
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in treatments}
    for key, metric in METRICS.items():
        for name in treatments:
            pairs = _pairs(cells, metric, name, reference)
            if pairs:
                found[name][key] = _compared(pairs, metric, seed)
        compared = [name for name in treatments if key in found[name]]
        for name, value in zip(compared, holm([found[name][key]["p"] for name in compared]), strict=True):
            found[name][key]["p_holm"] = value
    return found


def means(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean of every metric by treatment, with equal weight for every fold; and of the trainings per cell."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(result["treatment"] for result in results):
        cells = [result for result in results if result["treatment"] == name]
        values: dict[str, float] = {}
        for key, metric in METRICS.items():
            by_fold: dict[int, list[float]] = {}
            for result in cells:
                if (value := metric.of(result)) is not None:
                    by_fold.setdefault(result["fold"], []).append(value)
            if by_fold:
                values[key] = float(np.mean([np.mean(each) for each in by_fold.values()]))
        found[name] = values | {"trainings": float(np.mean([result.get("trainings", 1) for result in cells]))}
    return found


def bootstrap(values: Floats, *, seed: int) -> tuple[float, float, float]:
    """Bootstrap of the mean of ``values`` (n,), n > 1.

    Returns:
        Low and high end of the 95 % percentile interval, and the two-sided p-value of a mean of 0.
    """
    draws = generator(seed, "bootstrap", len(values)).integers(len(values), size=(RESAMPLES, len(values)))
    resampled = values[draws].mean(axis=1)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return float(low), float(high), min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))


def interquartile_mean(values: Floats) -> float:
    """Mean of the middle half of ``values`` (n,); a value on the border counts by the part that lies inside.

    >>> interquartile_mean(np.array([0.0, 1.0, 2.0, 30.0]))
    1.5
    """
    ordered, n = np.sort(values), len(values)
    edges = np.arange(n + 1) / n
    inside = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return float((ordered * inside).sum() / inside.sum())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of p-values; None stays None and is not counted.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected


Key = tuple[str, int, int]
_Pairs = dict[int, list[tuple[float, float, float]]]
"""By fold: value, value of the reference, and half a false alarm in the unit of the metric."""


def _pairs(cells: Mapping[Key, Mapping[str, Any]], metric: Metric, name: str, reference: str) -> _Pairs:
    pairs: _Pairs = {}
    for (treatment, fold, seed), result in cells.items():
        other = cells.get((reference, fold, seed))
        if treatment != name or other is None:
            continue
        value, base = metric.of(result), metric.of(other)
        if value is not None and base is not None:
            half = 5_000.0 / max(1, result.get("rows", 0) - result.get("positives", 0)) if metric.recall is not None else 0.0
            pairs.setdefault(fold, []).append((value, base, half))
    return pairs


def _compared(pairs: _Pairs, metric: Metric, seed: int) -> dict[str, Any]:
    over = "folds" if len(pairs) > 1 else "seeds"
    groups = [np.array(each) for each in pairs.values()] if over == "folds" else [np.array([each]) for each in next(iter(pairs.values()))]
    value, base, half = np.array([group.mean(axis=0) for group in groups]).T
    difference = value - base
    result: dict[str, Any] = {"difference": float(difference.mean())} | _interval(difference, seed)
    better = difference > 0 if metric.higher_is_better else difference < 0
    result |= {
        "interquartile_mean": interquartile_mean(difference),
        over: len(difference),
        f"{over}_better": int(better.sum()),
        "over": over,
    }
    if metric.recall is not None:
        log_ratio = np.log(value + half) - np.log(base + half)
        interval = _interval(log_ratio, seed)
        result["ratio"] = float(np.exp(log_ratio.mean()))
        for end in ("low", "high"):
            border = interval[end]
            result[f"ratio_{end}"] = None if border is None else float(np.exp(border))
    return result


def _interval(values: Floats, seed: int) -> dict[str, float | None]:
    if len(values) < 2:
        return {"low": None, "high": None, "p": None}
    low, high, p = bootstrap(values, seed=seed)
    return {"low": low, "high": high, "p": p}
