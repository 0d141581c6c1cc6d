"""Bootstrap over entities: intervals of differences between two models on the same test rows.

The rows of one card are not independent, so whole entities are drawn with replacement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

RECALLS = (0.6, 0.7, 0.8)
RESAMPLES = 500


@dataclass(frozen=True)
class _Ranked:
    """One model's test rows by falling score."""

    order: np.ndarray
    """(n,) rows."""
    ends: np.ndarray
    """(n,) whether a row is the last of its score: rows of one score raise an alarm together."""

    @classmethod
    def of(cls, score: np.ndarray) -> _Ranked:
        order = np.argsort(-score, kind="stable")
        ordered = score[order]
        return cls(order, np.append(ordered[1:] != ordered[:-1], True))

    def figures(self, fraud: np.ndarray, weight: np.ndarray) -> tuple[float, np.ndarray]:
        """Average precision, and false alarms per legitimate row at `RECALLS`, of rows with these weights."""
        positive = np.cumsum((weight * fraud)[self.order])[self.ends]
        alarms = np.cumsum(weight[self.order])[self.ends]
        recall = positive / positive[-1]
        precision = positive / np.maximum(alarms, 1e-12)
        average = float((np.diff(recall, prepend=0.0) * precision).sum())
        at = np.searchsorted(recall, np.array(RECALLS) - 1e-12)
        return average, (alarms - positive)[at] / (alarms[-1] - positive[-1])


def compared(scores: pl.DataFrame, one: str, other: str, negative: str, *, seed: int = 0) -> dict[str, Any]:
    """Compare two models.

    Args:
        scores: Test rows with ``label``, a column per model, and ``entity`` where there is one.
        one: Column of the first model.
        other: Column of the second one.
        negative: Name of the legitimate class.
        seed: Seed of the resampling.

    Returns:
        ``average_precision``: difference, low, high; ``false_alarms``: by recall the ratio of the first to
        the second, with its 95 % interval; None where the second raises none.
    """
    labelled = scores.filter(pl.col("label").is_not_null())
    fraud = (labelled["label"] != negative).to_numpy().astype(np.float64)
    code = labelled["entity"].rank("dense").to_numpy().astype(np.int64) - 1 if "entity" in labelled.columns else np.arange(len(fraud))
    ranked = [_Ranked.of(labelled[name].to_numpy().astype(np.float64)) for name in (one, other)]
    rng = np.random.default_rng(seed)
    found = [[each.figures(fraud, np.ones(len(fraud))) for each in ranked]]
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(code.max() + 1, size=code.max() + 1), minlength=code.max() + 1)[code].astype(np.float64)
        found.append([each.figures(fraud, times) for each in ranked])
    difference = np.array([first[0] - second[0] for first, second in found])
    low, high = np.quantile(difference[1:], (0.025, 0.975))
    alarms: dict[str, Any] = {}
    for place, recall in enumerate(RECALLS):
        pairs = np.array([(first[1][place], second[1][place]) for first, second in found])
        ratio = np.divide(pairs[:, 0], pairs[:, 1], out=np.full(len(pairs), np.nan), where=pairs[:, 1] > 0)
        known = ratio[1:][~np.isnan(ratio[1:])]
        ends = np.quantile(known, (0.025, 0.975)).tolist() if len(known) else [None, None]
        alarms[f"{recall:.2f}"] = {
            "one": float(1e4 * pairs[0, 0]),
            "other": float(1e4 * pairs[0, 1]),
            "ratio": None if np.isnan(ratio[0]) else float(ratio[0]),
            "low": ends[0],
            "high": ends[1],
        }
    return {"average_precision": {"difference": float(difference[0]), "low": float(low), "high": float(high)}, "false_alarms": alarms}
