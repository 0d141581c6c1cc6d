"""From scores to the files of a run: calibration, threshold, figures beside the baselines, predictions, history, report.

Every model is treated alike: its scores on the threshold half fit its calibration and its threshold, its scores on the test rows are judged once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.evaluation.drift import Reference
from balancer.evaluation.report_json import build_report, write_report
from balancer.files import atomic_path, read_arrays, write_arrays, write_json
from balancer.inference.decision import Decision, decision_table, evaluate_rows, fraud_score
from balancer.options.fit import Budget
from balancer.options.flags import to_dict
from balancer.options.train import NOT_PART_OF_THE_RESULT, TrainConfig
from balancer.runs.run_folder import EPOCHS_FILE, RunFolder

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
    held, test = dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)
    decisions = {name: Decision.fit(own.threshold, dataset.store.label[held]) for name, own in scores.items()}
    figures = {name: evaluate_rows(dataset, test, own.test, decisions[name]) for name, own in scores.items()}
    decisions["run"].save(folder.path)
    write_json(folder.path / SCHEMA_FILE, dataset.schema.to_dict())
    calibrated = decisions["run"].calibration.transform(fraud_score(scores["run"].threshold))
    fields, train = (dataset.schema.numeric_fields, dataset.schema.categorical_fields), dataset.store.values[dataset.split == Split.TRAIN]
    write_json(folder.path / REFERENCE_FILE, Reference.of(*fields, train, calibrated).to_dict())
    with atomic_path(folder.path / EPOCHS_FILE) as temporary:
        _epochs(scores, dataset.schema.classes).write_parquet(temporary)
    with atomic_path(folder.path / "predictions.parquet") as temporary:
        predictions = decision_table(dataset, test, scores["run"].test, decisions["run"]).with_columns(**explanation)
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


def _epochs(scores: dict[str, Scores], classes: tuple[str, ...]) -> pl.DataFrame:
    """A row per model and epoch; the share of each class in a column of its own."""
    rows = []
    for own in scores.values():
        for line in own.figures:
            shares = {f"share_{name}": value for name, value in zip(classes, line["share"], strict=True)}
            rows.append({key: value for key, value in line.items() if key != "share"} | shares)
    return pl.DataFrame(rows)
