"""Write the files of a run from the scores of its models: decision, predictions, metrics by epoch, report.

All models are treated alike: calibration and threshold are fitted on the threshold rows, and the test rows
are used once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from balancer.runs.progress import StageClock
from balancer.runs.run_folder import EPOCHS_FILE, RunFolder

SCHEMA_FILE = "schema.json"
REFERENCE_FILE = "reference.json"
FEWEST_LATE = 200
"""Fewest test rows that are a measure for the fields of the past."""
FULL = "full"
"""Name of the scores of the run before the layers of its network were rounded."""
TEST_SCORES_FILE = "test_scores.parquet"
"""Raw fraud scores of the test rows by every model of the report, to compare models row by row."""
THRESHOLD_SCORES_FILE = "threshold_scores.parquet"
"""Calibrated scores of the rows that tuned the threshold, to choose another one on them."""


@dataclass(frozen=True)
class Scores:
    """Raw scores of one model: class probabilities (n, K), or fraud probabilities (n,) of boosted trees."""

    threshold: np.ndarray
    """Scores of the threshold rows."""
    test: np.ndarray
    """Scores of the test rows."""
    figures: list[dict[str, Any]]
    """Metrics of each epoch."""
    reward: np.ndarray | None = None
    """Scores of the reward rows, by which members are weighted; None where they are not needed."""

    def save(self, path: Path) -> None:
        """Write to one file, atomically."""
        arrays = {"threshold": self.threshold, "test": self.test}
        write_arrays(path, arrays if self.reward is None else arrays | {"reward": self.reward}, {"figures": self.figures})

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Inverse of :meth:`save`."""
        arrays, meta = read_arrays(path, what="it holds the scores of a finished model")
        return cls(arrays["threshold"], arrays["test"], meta["figures"], arrays.get("reward"))


def late_values(dataset: Dataset) -> dict[str, np.ndarray]:
    """Values of the numeric fields of the past in the test rows, the last ones of the table.

    None where there are few such rows, or where the parts were drawn at random.
    """
    schema = dataset.schema
    rows = dataset.split == Split.TEST
    if schema.spec.split.by != "time" or rows.sum() < FEWEST_LATE:
        return {}
    return {name: dataset.store.values[rows, place] for place, name in enumerate(schema.numeric_fields) if name in schema.past_fields}


def write_results(
    folder: RunFolder,
    dataset: Dataset,
    scores: dict[str, Scores],
    *,
    policy: dict[str, Any],
    schedule: Budget,
    config: TrainConfig,
    clock: StageClock,
    explanation: dict[str, pl.Series],
    tasks: dict[str, Any],
    members: Mapping[str, float] | None = None,
    precision: Mapping[str, Any] | None = None,
    network: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the files of a run that follow from its scores.

    Args:
        folder: The run.
        dataset: Its data set.
        scores: Scores by name of the model; ``run`` is the run's own classifier, the others are baselines.
        policy: Description of the policy, for the report.
        schedule: Epochs and steps of the training.
        config: Configuration of the run.
        clock: Duration of each stage.
        explanation: Further columns of ``predictions.parquet``.
        tasks: Metrics of the auxiliary tasks.
        members: Weight of each member of the detector by its name; None for a network alone.
        precision: What the precision plan did; None where there is none.
        network: Description of the network; None without one.

    Returns:
        The report.
    """
    held, test = dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)
    decisions = {name: Decision.fit(each.threshold, dataset.store.label[held]) for name, each in scores.items()}
    figures = {name: evaluate_rows(dataset, test, each.test, decisions[name]) for name, each in scores.items()}
    decisions["run"] = replace(decisions["run"], members=members)
    decisions["run"].save(folder.path)
    write_json(folder.path / SCHEMA_FILE, dataset.schema.to_dict())
    calibrated = decisions["run"].calibration.transform(fraud_score(scores["run"].threshold))
    fields, train = (dataset.schema.numeric_fields, dataset.schema.categorical_fields), dataset.store.values[dataset.split == Split.TRAIN]
    write_json(folder.path / REFERENCE_FILE, Reference.of(*fields, train, calibrated, late_values(dataset)).to_dict())
    epochs = _epochs(scores, dataset.schema.classes)
    if epochs is not None:
        with atomic_path(folder.path / EPOCHS_FILE) as temporary:
            epochs.write_parquet(temporary)
    with atomic_path(folder.path / "predictions.parquet") as temporary:
        predictions = decision_table(dataset, test, scores["run"].test, decisions["run"]).with_columns(**explanation)
        predictions.write_parquet(temporary)
    with atomic_path(folder.path / THRESHOLD_SCORES_FILE) as temporary:
        chosen_on = decision_table(dataset, held, scores["run"].threshold, decisions["run"]).drop("decision", "class")
        chosen_on.write_parquet(temporary)
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
            **({"members": dict(members)} if members else {}),
            **({"network": dict(network) | {"fraud_share": _fraud_share(dataset, scores["run"])}} if network else {}),
            **({"precision": {name: value for name, value in precision.items() if name != "ms"}} if precision else {}),
            "versions": folder.content["versions"],
            **({"tasks": tasks} if tasks else {}),
            "device": folder.content["device"],
            "threads": folder.content["threads"],
            "timing": {
                "seconds": _timing(clock.seconds),
                "cpu_seconds": _timing(clock.cpu_seconds),
                **({"network_ms": precision["ms"]} if precision and "ms" in precision else {}),
            },
        },
    )
    raw_scores = {name: fraud_score(each.test) for name, each in scores.items()}
    with atomic_path(folder.path / TEST_SCORES_FILE) as temporary:
        known = predictions.select(name for name in ("id", "entity", "label") if name in predictions.columns)
        known.with_columns(pl.Series(name, values) for name, values in raw_scores.items()).write_parquet(temporary)
    # The curve before rounding would hide that of the run.
    curves = {name: values for name, values in raw_scores.items() if name != FULL}
    write_report(report, folder.path, label=dataset.store.label[test], scores=curves)
    return report


OF_THE_RUN = ("policy", "stage1", "stage2", "network", "precision")
"""Stages that make the detector; the others are baselines and explanations."""


def _timing(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage, after those of all stages of the detector together (``run``)."""
    # Earlier versions, one of which may have begun the run, called the network's stage ``run``.
    stages = {"network" if name == "run" else name: value for name, value in seconds.items()}
    whole = sum(value for name, value in stages.items() if name in OF_THE_RUN)
    return {name: round(value, 1) for name, value in ({"run": whole} | stages).items()}


def _fraud_share(dataset: Dataset, network: Scores) -> dict[str, float]:
    """Share of frauds among the training rows, and among those drawn in the first and in the last epoch."""
    label = dataset.store.label[dataset.rows(Split.TRAIN)]
    drawn = [1 - line["share"][0] for line in network.figures]
    return {"table": float((label[label >= 0] > 0).mean()), "first": drawn[0], "last": drawn[-1]}


def _epochs(scores: dict[str, Scores], classes: tuple[str, ...]) -> pl.DataFrame | None:
    """A row per model and epoch, with a column for the share of each class; None without a network."""
    rows = []
    for each in scores.values():
        for line in each.figures:
            shares = {f"share_{name}": value for name, value in zip(classes, line["share"], strict=True)}
            rows.append({key: value for key, value in line.items() if key != "share"} | shares)
    if not rows:  # a detector of trees alone, with no network among its baselines
        return None
    frame = pl.DataFrame(rows, infer_schema_length=None)  # epochs of version 0.1 lack some columns
    return frame.with_columns(pl.col(name).cast(pl.Float64) for name in ("half_life",) if name in frame.columns)
