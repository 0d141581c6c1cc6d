"""From raw scores to a decision: calibration, threshold, class, and the metrics of the decisions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from balancer.data.dataset import Dataset
from balancer.errors import CorruptFileError, InputError
from balancer.evaluation.calibration import Calibration, fit_calibration, pooled_score
from balancer.evaluation.metrics import evaluate_scores
from balancer.evaluation.operating_points import NO_ALARM
from balancer.evaluation.thresholds import tune_threshold
from balancer.files import read_json, write_json

DECISION_FILE = "decision.json"


@dataclass(frozen=True)
class Decision:
    """How raw scores become alarms: a monotone calibration and a threshold on its scale."""

    calibration: Calibration
    threshold: float
    tuned: float | None = None
    """The threshold that training found, where a person has chosen another since."""
    chosen: str | None = None
    """How it was chosen then, in words."""

    @classmethod
    def fit(cls, scores: np.ndarray, label: np.ndarray) -> Decision:
        """Fit on the threshold half: ``scores`` (n, K) or (n,), ``label`` (n,)."""
        raw = fraud_score(scores)
        calibration = fit_calibration(raw, label)
        return cls(calibration, tune_threshold(calibration.transform(raw), label))

    def save(self, folder: Path) -> None:
        """Write ``decision.json``."""
        content: dict[str, Any] = {"threshold": self.threshold, "calibration": self.calibration.to_dict()}
        write_json(folder / DECISION_FILE, content if self.tuned is None else content | {"tuned": self.tuned, "chosen": self.chosen})

    def with_threshold(self, threshold: float, how: str) -> Decision:
        """The same calibration with a threshold that a person chose; the tuned one goes back to being plain."""
        if not 0 <= threshold <= NO_ALARM:
            raise InputError(f"the threshold {threshold} is no calibrated score: give a number from 0 to 1")
        tuned = self.threshold if self.tuned is None else self.tuned
        return Decision(self.calibration, tuned) if threshold == tuned else Decision(self.calibration, threshold, tuned, how)

    @classmethod
    def load(cls, folder: Path) -> Decision:
        """Read ``decision.json``; InputError where it is missing or damaged."""
        content = read_json(folder / DECISION_FILE, what="it holds threshold and calibration")
        threshold, calibration = content.get("threshold"), content.get("calibration")
        if not isinstance(threshold, float | int) or not isinstance(calibration, dict):
            raise CorruptFileError(f"{folder / DECISION_FILE} lacks threshold or calibration: it is damaged or not written by balancer")
        tuned, chosen = content.get("tuned"), content.get("chosen")
        if not isinstance(tuned, float | int | None) or not isinstance(chosen, str | None):
            raise CorruptFileError(f"{folder / DECISION_FILE} has a tuned threshold that is no number: it is damaged or not written by balancer")
        return cls(Calibration.from_dict(calibration), float(threshold), None if tuned is None else float(tuned), chosen)


def fraud_score(scores: np.ndarray) -> np.ndarray:
    """(n,) fraud probability from class probabilities (n, K), or as it is from (n,)."""
    return np.asarray(pooled_score(scores) if scores.ndim == 2 else scores, dtype=np.float64)


def judge(dataset: Dataset, rows: np.ndarray, scores: np.ndarray, decision: Decision) -> dict[str, Any]:
    """Figures of one model on store ``rows`` (n,) with raw ``scores`` (n, K) or (n,)."""
    store = dataset.store
    raw = fraud_score(scores)
    return evaluate_scores(
        store.label[rows],
        decision.calibration.transform(raw),
        threshold=decision.threshold,
        raw_score=raw,
        classes=dataset.schema.classes,
        time=store.time[rows],
        class_scores=decision.calibration.apply(scores) if scores.ndim == 2 else None,
        entity=store.entity[rows] if dataset.schema.spec.entity is not None else None,
        amount=store.amount[rows] if dataset.schema.spec.amount is not None else None,
    )


def decided(dataset: Dataset, rows: np.ndarray, scores: np.ndarray, decision: Decision) -> pl.DataFrame:
    """Scores and decisions of store ``rows`` (n,) as a table: id, time, entity, amount, label, score, decision, class."""
    store, classes = dataset.store, dataset.schema.classes
    columns: dict[str, Any] = {"id": dataset.ids[rows], "time": pl.Series(store.time[rows] * 1e6).cast(pl.Int64).cast(pl.Datetime("us"))}
    if dataset.schema.spec.entity is not None:
        columns["entity"] = pl.Series(dataset.entities, dtype=pl.String).gather(store.entity[rows])
    names = pl.Series(classes, dtype=pl.String)
    label = store.label[rows].astype(np.int64)
    columns |= {"amount": store.amount[rows], "label": names.gather(np.maximum(label, 0)).set(pl.Series(label < 0), None)}
    return pl.DataFrame(columns | decision_columns(scores, decision, classes))


def decision_columns(scores: np.ndarray, decision: Decision, classes: tuple[str, ...]) -> dict[str, pl.Series]:
    """``score`` (calibrated), ``decision`` (score at least the threshold) and ``class``, the likeliest fraud class of an alarm, of raw ``scores`` (n, K)."""
    score, alarm, winner = decide(scores, decision)
    return {
        "score": pl.Series(score),
        "decision": pl.Series(alarm),
        "class": pl.Series(classes, dtype=pl.String).gather(winner),
    }


def decide(scores: np.ndarray, decision: Decision) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibrated score, alarm and index of the class, each (n,), of raw ``scores`` (n, K)."""
    calibrated = decision.calibration.apply(scores)
    score = decision.calibration.transform(fraud_score(scores))
    alarm = score >= decision.threshold
    return score, alarm, np.where(alarm, 1 + calibrated[:, 1:].argmax(axis=1), 0)
