"""Turn raw scores into decisions: calibration, threshold, class; and evaluate the decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
NETWORK, STAGE2 = "network", "stage2"
MEMBERS = (NETWORK, STAGE2)
"""Members of a detector: the network, and the second stage of its boosted trees."""


@dataclass(frozen=True)
class Decision:
    """A monotone calibration of raw scores, and an alarm threshold on the calibrated scale."""

    calibration: Calibration
    threshold: float
    tuned: float | None = None
    """The threshold that was tuned in training, if a user has chosen another one since."""
    chosen: str | None = None
    """How the user chose the threshold, in words."""
    members: Mapping[str, float] | None = None
    """Weight of each of the detector's `MEMBERS`; None: the network alone."""

    @classmethod
    def fit(cls, scores: np.ndarray, label: np.ndarray) -> Decision:
        """Fit calibration and threshold on the threshold half of validation.

        Args:
            scores: (n, K) class probabilities, or (n,) fraud probabilities.
            label: (n,) class index, -1 unlabelled.

        Raises:
            InputError: If the labelled rows are all of one class, or a score is outside 0 to 1.
        """
        raw = fraud_score(scores)
        calibration = fit_calibration(raw, label)
        return cls(calibration, tune_threshold(calibration.transform(raw), label))

    def save(self, folder: Path) -> None:
        """Write `decision.json`."""
        content: dict[str, Any] = {"threshold": self.threshold, "calibration": self.calibration.to_dict()}
        if self.members is not None:
            content["members"] = dict(self.members)
        write_json(folder / DECISION_FILE, content if self.tuned is None else content | {"tuned": self.tuned, "chosen": self.chosen})

    def with_threshold(self, threshold: float, how: str) -> Decision:
        """Replace the threshold and remember the tuned one.

        Args:
            threshold: A calibrated score; the tuned threshold restores the original decision.
            how: How the user chose it, in words.

        Raises:
            InputError: If the threshold is not between 0 and 1.
        """
        if not 0 <= threshold <= NO_ALARM:
            raise InputError(f"the threshold is {threshold}: give a number from 0 to 1")
        tuned = self.threshold if self.tuned is None else self.tuned
        if threshold == tuned:
            return replace(self, threshold=tuned, tuned=None, chosen=None)
        return replace(self, threshold=threshold, tuned=tuned, chosen=how)

    @classmethod
    def load(cls, folder: Path) -> Decision:
        """Read `decision.json`.

        Raises:
            MissingFileError: If it is missing.
            CorruptFileError: If it is damaged.
        """
        content = read_json(folder / DECISION_FILE, what="it holds threshold and calibration")
        threshold, calibration = content.get("threshold"), content.get("calibration")
        if not isinstance(threshold, float | int) or not isinstance(calibration, dict):
            raise CorruptFileError(f"{folder / DECISION_FILE} lacks threshold or calibration: it is damaged or not written by balancer")
        tuned, chosen = content.get("tuned"), content.get("chosen")
        if not isinstance(tuned, float | int | None) or not isinstance(chosen, str | None):
            raise CorruptFileError(
                f"{folder / DECISION_FILE} has a tuned threshold that is not a number: it is damaged or not written by balancer"
            )
        for value in (threshold, tuned):
            if value is not None and not 0 <= value <= NO_ALARM:
                raise CorruptFileError(
                    f"{folder / DECISION_FILE} has the threshold {value}, which is not between 0 and 1: set it there, or restore the file"
                )
        members = content.get("members")
        if members is not None and (wrong := _wrong_members(members)):
            raise CorruptFileError(f"{folder / DECISION_FILE} has members without valid weights ({wrong}): restore the file")
        return cls(Calibration.from_dict(calibration), float(threshold), None if tuned is None else float(tuned), chosen, members)


def _wrong_members(members: Any) -> str:
    """Say why ``members`` are not weights of members with the sum 1; empty if they are."""
    if not isinstance(members, dict) or not members:
        return "it names none"
    unknown = [str(name) for name in members if name not in MEMBERS]
    if unknown:
        return f"{unknown[0]!r} is none of {', '.join(MEMBERS)}"
    weights = list(members.values())
    if any(isinstance(weight, bool) or not isinstance(weight, float | int) or not 0 <= weight <= 1 for weight in weights):
        return "a weight is not a number from 0 to 1"
    return "" if abs(sum(weights) - 1) < 1e-6 else f"their sum is {sum(weights):g}, not 1"


def fraud_score(scores: np.ndarray) -> np.ndarray:
    """Reduce class probabilities (n, K) to fraud probabilities (n,); those are returned as given."""
    return np.asarray(pooled_score(scores) if scores.ndim == 2 else scores, dtype=np.float64)


def evaluate_rows(dataset: Dataset, rows: np.ndarray, scores: np.ndarray, decision: Decision) -> dict[str, Any]:
    """Compute the metrics of one model.

    Args:
        dataset: The transactions.
        rows: (n,) store rows.
        scores: (n, K) raw class probabilities, or (n,) raw fraud probabilities.
        decision: Calibration and threshold.

    Returns:
        The metrics of `evaluate_scores`.
    """
    store = dataset.store
    raw = fraud_score(scores)
    return evaluate_scores(
        store.label[rows],
        decision.calibration.transform(raw),
        threshold=decision.threshold,
        raw_score=raw,
        classes=dataset.schema.classes,
        time=store.time[rows] if dataset.schema.spec.time is not None else None,
        class_scores=decision.calibration.apply(scores) if scores.ndim == 2 else None,
        entity=store.entity[rows] if dataset.schema.spec.entity is not None else None,
        amount=store.amount[rows] if dataset.schema.spec.amount is not None else None,
    )


def decision_table(dataset: Dataset, rows: np.ndarray, scores: np.ndarray, decision: Decision) -> pl.DataFrame:
    """Tabulate scores and decisions.

    Args:
        dataset: The transactions.
        rows: (n,) store rows.
        scores: (n, K) raw class probabilities.
        decision: Calibration and threshold.

    Returns:
        Columns `id, time` (null in a table without a time), `entity` (where there is one), `amount, label,
        score, decision, class`.
    """
    store, classes = dataset.store, dataset.schema.classes
    micro = pl.Series(store.time[rows] * 1e6).cast(pl.Int64)
    if dataset.schema.spec.time is None:
        micro = pl.repeat(None, len(rows), dtype=pl.Int64, eager=True)
    columns: dict[str, Any] = {"id": dataset.ids[rows], "time": micro.cast(pl.Datetime("us"))}
    if dataset.schema.spec.entity is not None:
        columns["entity"] = pl.Series(dataset.entities, dtype=pl.String).gather(store.entity[rows])
    names = pl.Series(classes, dtype=pl.String)
    label = store.label[rows].astype(np.int64)
    columns |= {"amount": store.amount[rows], "label": names.gather(np.maximum(label, 0)).set(pl.Series(label < 0), None)}
    return pl.DataFrame(columns | decision_columns(scores, decision, classes))


def decision_columns(scores: np.ndarray, decision: Decision, classes: tuple[str, ...]) -> dict[str, pl.Series]:
    """Compute the columns of a decision from raw `scores` (n, K).

    Returns:
        `score` (calibrated), `decision` (whether the score reaches the threshold), and `class`, the most
        likely fraud class of an alarm and else the legitimate class.
    """
    score, alarm, winner = decide(scores, decision)
    return {
        "score": pl.Series(score),
        "decision": pl.Series(alarm),
        "class": pl.Series(classes, dtype=pl.String).gather(winner),
    }


def decide(scores: np.ndarray, decision: Decision) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the calibrated score, the alarm and the class index, each (n,), from raw `scores` (n, K)."""
    score = decision.calibration.transform(fraud_score(scores))
    alarm = score >= decision.threshold
    if scores.shape[1] == 2:  # the only fraud class needs no comparison
        return score, alarm, alarm.astype(np.int64)
    calibrated = decision.calibration.apply(scores)
    return score, alarm, np.where(alarm, 1 + calibrated[:, 1:].argmax(axis=1), 0)
