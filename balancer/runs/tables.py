"""Score a table with a trained run, or evaluate the run on a labelled table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from balancer.data.dataset import load_dataset
from balancer.data.split import Split
from balancer.errors import InputError
from balancer.files import atomic_path
from balancer.inference.decision import decision_columns, evaluate_rows
from balancer.runs.trained_run import TrainedRun


def score_file(run: TrainedRun, source: Path, output: Path, *, past: Path | None, bad_rows: Any, streaming: bool = False) -> dict[str, Any]:
    """Score the rows of ``source`` and write them with score, decision and class to ``output`` (.parquet or .csv), in the order they came.

    ``past`` holds earlier rows of the same entities, with labels where they are known: context, not scored. ``streaming`` reads one row
    at a time. Returns what to tell: rows, alarms, dropped.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise InputError(f"--output {output} must end in .parquet or .csv")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: the folder {output.parent} does not exist; make it first")
    dataset = load_dataset(source, run.schema.spec, schema=run.schema, past=past, bad_rows=bad_rows)
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


def evaluate_file(run: TrainedRun, source: Path, *, past: Path | None, bad_rows: Any) -> dict[str, Any]:
    """Figures of the run on labelled rows: on the table it was trained on only its test part, on any other all rows.

    Returns a dict with ``part``, ``rows_of`` and ``test``, the last with the keys of report.json.
    """
    spec = run.schema.spec
    dataset = load_dataset(source, spec, schema=run.schema, past=past, bad_rows=bad_rows)
    trained_on = dataset.fingerprint == run.folder.content["fingerprint"]
    if trained_on:
        dataset = load_dataset(source, spec, bad_rows=bad_rows, hash_buckets=run.schema.hash_buckets, vocabularies=run.schema.vocabularies)
    if spec.label is None or not (dataset.store.label[dataset.split == Split.TEST] >= 0).any():
        raise InputError(f"{source} has no labelled row: evaluate needs the column {spec.label!r}; without labels use balancer score")
    rows = dataset.rows(Split.TEST)
    if not (dataset.store.label[rows] > 0).any():
        raise InputError(
            f"column {spec.label!r} of {source} has no positive row: there is nothing to evaluate by; give rows that hold some"
        )
    return {
        "part": "test" if trained_on else "all",
        "dataset": str(source),
        "rows": len(rows),
        "dropped": dataset.dropped,
        "test": evaluate_rows(dataset, rows, run.scores(dataset, rows), run.decision),
    }
