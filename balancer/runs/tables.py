"""Score a table with a trained run, or evaluate the run on a labelled table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from balancer.data.dataset import load_dataset
from balancer.data.split import Split
from balancer.errors import InputError
from balancer.files import atomic_path, check_writable
from balancer.inference.decision import decision_columns, evaluate_rows
from balancer.runs.trained_run import TrainedRun


def score_file(
    run: TrainedRun, source: Path, output: Path, *, past: Path | None, bad_rows: Any, streaming: bool = False, explain: int = 0
) -> dict[str, Any]:
    """Score the rows of a table and write them with score, decision and class, in their order.

    Args:
        run: The run to score with.
        source: Table to score.
        output: File to write, .parquet or .csv.
        past: Table of earlier rows of the same entities, with labels where known; they are context and not
            scored.
        bad_rows: ``error`` or ``drop``.
        streaming: Read one row at a time, as ``balancer serve`` does.
        explain: Above 0, a column ``reasons`` names this many fields that contribute most to each alarm.

    Returns:
        A summary: rows, alarms, threshold, dropped rows by reason, output.

    Raises:
        InputError: The table or the output can't be used.
    """
    if output.suffix not in (".parquet", ".csv"):
        raise InputError(f"--output {output} must end in .parquet or .csv")
    check_writable(output, "--output")
    dataset = run.table(source, past=past, bad_rows=bad_rows)
    rows = dataset.scored_rows()
    scores = run.streamed_scores(dataset, rows) if streaming else run.scores(dataset, rows)
    columns = decision_columns(scores, run.decision, run.schema.classes)
    if explain:
        columns["reasons"] = pl.Series([None] * len(rows), dtype=pl.String)
    frame = dataset.input_frame()
    taken = [name for name in columns if name in frame.columns]
    if taken:
        raise InputError(f"column {taken[0]!r} of {source} has the name of a result: rename it")
    if explain:
        raised = columns["decision"].to_numpy()
        texts = run.contributions(dataset, rows[raised]).reasons(dataset, explain)
        columns["reasons"] = columns["reasons"].scatter(np.flatnonzero(raised), texts)
    frame = frame.with_columns(**columns)
    with atomic_path(output) as temporary:
        if output.suffix == ".csv":
            frame.write_csv(temporary)
        else:
            frame.write_parquet(temporary)
    alarms = int(columns["decision"].sum())
    return {"rows": frame.height, "alarms": alarms, "threshold": run.decision.threshold, "dropped": dataset.dropped, "output": str(output)}


def evaluate_file(run: TrainedRun, source: Path, *, past: Path | None, bad_rows: Any) -> dict[str, Any]:
    """Evaluate a run on labelled data: on its own table only the test rows, on any other table all rows.

    Args:
        run: The run to evaluate.
        source: Labelled table.
        past: Table of earlier rows of the same entities; they are context and not evaluated.
        bad_rows: ``error`` or ``drop``.

    Returns:
        ``part`` (``test`` or ``all``), ``dataset``, ``rows``, ``dropped``, and ``test`` with the keys of
        report.json.

    Raises:
        InputError: The table can't be used, or has no labelled or no positive row.
    """
    spec = run.schema.spec
    dataset = run.table(source, past=past, bad_rows=bad_rows)
    trained_on = dataset.fingerprint == run.folder.content["fingerprint"]
    if trained_on:
        codes = {"hash_buckets": run.schema.hash_buckets, "vocabularies": run.schema.vocabularies}
        dataset = load_dataset(source, spec, bad_rows=bad_rows, score_fields=bool(run.schema.score_fields), **codes)  # type: ignore[arg-type]
        dataset = run.filled(dataset.with_numeric_fields(run.schema.numeric_fields))
    if spec.label is None or not (dataset.store.label[dataset.split == Split.TEST] >= 0).any():
        raise InputError(
            f"{source} has no labelled row: balancer evaluate needs the column {spec.label!r}; without labels use balancer score"
        )
    rows = dataset.rows(Split.TEST)
    if not (dataset.store.label[rows] > 0).any():
        raise InputError(
            f"column {spec.label!r} of {source} has no positive row, so nothing can be evaluated: give a table with positive rows"
        )
    return {
        "part": "test" if trained_on else "all",
        "dataset": str(source),
        "rows": len(rows),
        "dropped": dataset.dropped,
        "test": evaluate_rows(dataset, rows, run.scores(dataset, rows), run.decision),
    }
