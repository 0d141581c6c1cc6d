"""From scores to the files of a run: calibration, threshold, figures beside the baselines, predictions, history, report.

Every model is treated alike: its scores on the threshold half fit its calibration and its threshold, its scores on the test rows are judged once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from balancer.configuration import to_dict
from balancer.data.dataset import Dataset
from balancer.data.split import PART_TEST, PART_THRESHOLD, PART_TRAIN
from balancer.errors import InputError
from balancer.evaluation.calibration import Calibration, fit_calibration, pooled_score
from balancer.evaluation.drift import Reference
from balancer.evaluation.metrics import evaluate_scores
from balancer.evaluation.operating import NO_ALARM
from balancer.evaluation.report import build_report, write_report
from balancer.evaluation.threshold import tune_threshold
from balancer.files import atomic_path, read_arrays, read_json, write_arrays, write_json
from balancer.training.config import NOT_PART_OF_THE_RESULT, Budget, TrainConfig
from balancer.training.run_folder import RunFolder

DECISION_FILE = "decision.json"
SCHEMA_FILE = "schema.json"
REFERENCE_FILE = "reference.json"


@dataclass(frozen=True)
class Scores:
    """Raw scores of one model: (n, K) class probabilities of a classifier, (n,) fraud probability of boosted trees."""

    threshold: np.ndarray
    test: np.ndarray
    figures: list[dict[str, Any]]
    """A dict per epoch."""

    def save(self, path: Path) -> None:
        """Write to one file, atomically."""
        write_arrays(path, {"threshold": self.threshold, "test": self.test}, {"figures": self.figures})

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Inverse of :meth:`save`."""
        arrays, meta = read_arrays(path, what="it holds the scores of a finished model")
        return cls(arrays["threshold"], arrays["test"], meta["figures"])


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
            raise InputError(f"{folder / DECISION_FILE} lacks threshold or calibration: it is damaged or not written by balancer")
        tuned, chosen = content.get("tuned"), content.get("chosen")
        if not isinstance(tuned, float | int | None) or not isinstance(chosen, str | None):
            raise InputError(f"{folder / DECISION_FILE} has a tuned threshold that is no number: it is damaged or not written by balancer")
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


def write_results(
    folder: RunFolder,
    dataset: Dataset,
    scores: dict[str, Scores],
    *,
    policy: dict[str, Any],
    schedule: Budget,
    config: TrainConfig,
    seconds: dict[str, float],
    explanation: dict[str, pl.Series],
    tasks: dict[str, Any],
) -> dict[str, Any]:
    """Write everything of a run that comes after training; return the report. ``explanation`` are further columns for the test rows,
    ``tasks`` the figures of further tasks.
    """
    held, test = dataset.rows(PART_THRESHOLD), dataset.rows(PART_TEST)
    decisions = {name: Decision.fit(own.threshold, dataset.store.label[held]) for name, own in scores.items()}
    figures = {name: judge(dataset, test, own.test, decisions[name]) for name, own in scores.items()}
    decisions["run"].save(folder.path)
    write_json(folder.path / SCHEMA_FILE, dataset.schema.to_dict())
    calibrated = decisions["run"].calibration.transform(fraud_score(scores["run"].threshold))
    fields, train = (dataset.schema.numeric_fields, dataset.schema.categorical_fields), dataset.store.values[dataset.part == PART_TRAIN]
    write_json(folder.path / REFERENCE_FILE, Reference.of(*fields, train, calibrated).to_dict())
    with atomic_path(folder.path / "history.parquet") as temporary:
        _history(scores, dataset.schema.classes).write_parquet(temporary)
    with atomic_path(folder.path / "predictions.parquet") as temporary:
        predictions = decided(dataset, test, scores["run"].test, decisions["run"]).with_columns(**explanation)
        predictions.write_parquet(temporary)
    saved = {name: value for name, value in to_dict(config).items() if name not in NOT_PART_OF_THE_RESULT}
    report = build_report(
        figures.pop("run"),
        figures,
        run={
            "configuration": saved,
            "data": folder.content["data"]
            | {"fingerprint": folder.content["fingerprint"], "split": dataset.schema.spec.to_dict()["split"]},
            "schedule": {"epochs": schedule.epochs, "steps_per_epoch": schedule.steps_per_epoch, "batch_size": config.batch_size},
            "policy": policy,
            "versions": folder.content["versions"],
            **({"tasks": tasks} if tasks else {}),
            "device": folder.content["device"],
            "threads": folder.content["threads"],
            "timing": {"seconds": {name: round(value, 1) for name, value in seconds.items()}},
        },
    )
    raw_scores = {name: fraud_score(own.test) for name, own in scores.items()}
    write_report(report, folder.path, label=dataset.store.label[test], scores=raw_scores)
    return report


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


def _history(scores: dict[str, Scores], classes: tuple[str, ...]) -> pl.DataFrame:
    """A row per model and epoch; the share of each class in a column of its own."""
    rows = []
    for own in scores.values():
        for line in own.figures:
            shares = {f"share_{name}": value for name, value in zip(classes, line["share"], strict=True)}
            rows.append({key: value for key, value in line.items() if key != "share"} | shares)
    return pl.DataFrame(rows)
