"""Use a finished run: score new rows, or evaluate it on labelled ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.schema import Schema
from balancer.data.split import PART_TEST
from balancer.envs.classifier_student import score_rows
from balancer.errors import InputError
from balancer.files import atomic_path, read_json
from balancer.models import Classifier, load_classifier
from balancer.models.quantization import load_quantized_classifier
from balancer.training.results import SCHEMA_FILE, Decision, decision_columns, judge
from balancer.training.run_folder import RunFolder
from balancer.training.streaming import score_streaming

Precision = Literal["full", "quantized"]


@dataclass(frozen=True)
class TrainedRun:
    """Model, schema and decision of a complete run."""

    folder: RunFolder
    model: Classifier
    schema: Schema
    decision: Decision
    device: torch.device

    @classmethod
    def load(cls, path: Path, *, precision: Precision = "full") -> TrainedRun:
        """Read a run folder, with its full model or with the one that `balancer quantize` made; InputError naming the file that is missing, truncated or foreign."""
        folder = RunFolder.open(path)
        if folder.pretrained:
            raise InputError(
                f"the run in {path} is pretrained only, its head has learned nothing: train one by balancer train --from {path}"
            )
        if not folder.complete:
            raise InputError(f"the run in {path} is not complete: continue it with balancer train --resume --out {path}")
        content = read_json(path / SCHEMA_FILE, what="it holds the fields the model was trained on")
        try:
            schema = Schema.from_dict(content)
        except (InputError, TypeError, AttributeError) as error:
            raise InputError(f"{path / SCHEMA_FILE} can't be used ({error}): give a run folder as balancer train wrote it") from error
        model = load_classifier(path) if precision == "full" else load_quantized_classifier(path)
        own = (schema.numeric_fields, schema.categorical_fields, schema.classes)
        if own != (model.config.numeric_fields, model.config.categorical_fields, model.config.classes):
            raise InputError(f"{path / SCHEMA_FILE} and {path / 'model.json'} name different fields or classes: they are of two runs")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(int(folder.content["threads"]))
        return cls(folder, model.to(device), schema, Decision.load(path), device)

    def scores(self, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
        """Raw class probabilities (n, K) of store ``rows`` (n,)."""
        return score_rows(self.model, dataset, rows, device=self.device)

    def streamed_scores(self, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
        """The same, one row at a time, as ``balancer serve`` computes them; a bar on the terminal tells how far it is."""
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("reading rows", total=len(dataset.store))
            return score_streaming(self.model, dataset, rows, device=self.device, progress=lambda done: bar.update(task, completed=done))


def training_table(folder: RunFolder) -> Dataset:
    """The table that a run was trained on, read as it was then; InputError where it is gone or has changed."""
    config = folder.config()
    if not config.dataset.exists():
        raise InputError(
            f"{config.dataset} is not here: it is the table that the run in {folder.path} was trained on; go where that path leads to it"
        )
    schema = Schema.from_dict(read_json(folder.path / SCHEMA_FILE, what="it holds the fields the model was trained on"))
    dataset = load_dataset(
        config.dataset, schema.spec, bad_rows=config.bad_rows, hash_buckets=schema.hash_buckets, vocabularies=schema.vocabularies
    )
    if dataset.fingerprint != folder.content["fingerprint"]:
        raise InputError(
            f"{config.dataset} has changed since the run in {folder.path} was trained: what it holds now does not belong to the run"
        )
    return dataset


def score_file(
    run: TrainedRun, source: Path, output: Path, *, history: Path | None, bad_rows: Any, streaming: bool = False
) -> dict[str, Any]:
    """Score the rows of ``source`` and write them with score, decision and class to ``output`` (.parquet or .csv), in the order they came.

    ``history`` holds earlier rows of the same entities, with labels where they are known: context, not scored. ``streaming`` reads one row
    at a time. Returns what to tell: rows, alarms, dropped.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise InputError(f"--output {output} must end in .parquet or .csv")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: the folder {output.parent} does not exist; make it first")
    dataset = load_dataset(source, run.schema.spec, schema=run.schema, history=history, bad_rows=bad_rows)
    rows = dataset.scored_rows()
    scores = run.streamed_scores(dataset, rows) if streaming else run.scores(dataset, rows)
    columns = decision_columns(scores, run.decision, run.schema.classes)
    frame = dataset.input_frame()
    taken = [name for name in columns if name in frame.columns]
    if taken:
        raise InputError(f"column {taken[0]!r} of {source} has the name of a result: rename it")
    frame = frame.with_columns(**columns)
    with atomic_path(output) as temporary:
        if output.suffix == ".csv":
            frame.write_csv(temporary)
        else:
            frame.write_parquet(temporary)
    alarms = int(columns["decision"].sum())
    return {"rows": frame.height, "alarms": alarms, "threshold": run.decision.threshold, "dropped": dataset.dropped, "output": str(output)}


def evaluate_file(run: TrainedRun, source: Path, *, history: Path | None, bad_rows: Any) -> dict[str, Any]:
    """Figures of the run on labelled rows: on the table it was trained on only its test part, on any other all rows.

    Returns a dict with ``part``, ``rows_of`` and ``test``, the last with the keys of report.json.
    """
    spec = run.schema.spec
    dataset = load_dataset(source, spec, schema=run.schema, history=history, bad_rows=bad_rows)
    trained_on = dataset.fingerprint == run.folder.content["fingerprint"]
    if trained_on:
        dataset = load_dataset(source, spec, bad_rows=bad_rows, hash_buckets=run.schema.hash_buckets, vocabularies=run.schema.vocabularies)
    if spec.label is None or not (dataset.store.label[dataset.part == PART_TEST] >= 0).any():
        raise InputError(f"{source} has no labelled row: evaluate needs the column {spec.label!r}; without labels use balancer score")
    rows = dataset.rows(PART_TEST)
    if not (dataset.store.label[rows] > 0).any():
        raise InputError(
            f"column {spec.label!r} of {source} has no positive row: there is nothing to evaluate by; give rows that hold some"
        )
    return {
        "part": "test" if trained_on else "all",
        "dataset": str(source),
        "rows": len(rows),
        "dropped": dataset.dropped,
        "test": judge(dataset, rows, run.scores(dataset, rows), run.decision),
    }
