"""Score a table with a trained run, or evaluate the run on a labelled table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from balancer.data.dataset import load_dataset
from balancer.data.loaded import Dataset
from balancer.data.split import Split
from balancer.errors import InputError
from balancer.files import atomic_path, check_new_file
from balancer.inference.decision import decision_columns, evaluate_rows
from balancer.runs.changes import changes
from balancer.runs.scored_rows import ScoredRows
from balancer.runs.trained_run import TrainedRun
from balancer.tables.options import ReadOptions


def score_file(
    run: TrainedRun,
    source: Path,
    output: Path,
    *,
    past: Path | None,
    bad_rows: Any,
    streaming: bool = False,
    explain: int = 0,
    overwrite: bool = False,
    read: ReadOptions | None = None,
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
        overwrite: Whether an existing output may be replaced.
        read: How text files are read, where it differs from the table of training.

    Returns:
        A summary: rows, alarms, threshold, dropped rows by reason, output, and what
        :func:`balancer.runs.changes.changes` found.

    Raises:
        InputError: The table or the output can't be used.
    """
    check_output(output, source, past=past, overwrite=overwrite)
    dataset = run.table(source, past=past, bad_rows=bad_rows, read=read)
    frame = scored_frame(run, dataset, streaming=streaming, explain=explain)
    with atomic_path(output) as temporary:
        if output.suffix.lower() == ".csv":
            frame.write_csv(temporary)
        else:
            frame.write_parquet(temporary)
    scored = ScoredRows.of(dataset, frame, run.schema)
    found = changes(run, scored)
    summary = {"rows": scored.rows, "alarms": scored.alarms, "threshold": run.decision.threshold, "dropped": dataset.dropped}
    return (
        summary
        | {"output": str(output)}
        | found
        | {"notes": [*dataset.notes, *found["notes"]], "warnings": [*dataset.cautions, *found["warnings"]]}
    )


def scored_frame(run: TrainedRun, dataset: Dataset, *, streaming: bool = False, explain: int = 0) -> pl.DataFrame:
    """Score the rows of a table or of a shard.

    The scores of a row do not depend on the rows that are scored with it, so a table in pieces has the scores
    of the whole table.

    Args:
        run: The run to score with.
        dataset: The rows.
        streaming: See :func:`score_file`.
        explain: See :func:`score_file`.

    Returns:
        The input rows with their columns, and ``score``, ``decision``, ``class`` and, with ``explain``,
        ``reasons``.

    Raises:
        InputError: A column has the name of a result.
    """
    rows = dataset.scored_rows()
    scores = run.streamed_scores(dataset, rows) if streaming else run.scores(dataset, rows, alike=True)
    columns = decision_columns(scores, run.decision, run.schema.classes)
    if explain:
        columns["reasons"] = pl.Series([None] * len(rows), dtype=pl.String)
    frame = dataset.input_frame()
    taken = [name for name in columns if name in frame.columns]
    if taken:
        raise InputError(f"column {taken[0]!r} of {dataset.source} has the name of a result: rename it")
    if explain:
        raised = columns["decision"].to_numpy()
        texts = run.contributions(dataset, rows[raised]).reasons(dataset, explain)
        columns["reasons"] = columns["reasons"].scatter(np.flatnonzero(raised), texts)
    return frame.with_columns(**columns)


def check_output(output: Path, source: Path, *, past: Path | None, overwrite: bool) -> None:
    """Check where the scores of a table are written, before a run is loaded.

    Args:
        output: The file.
        source: The table that is scored.
        past: Table of earlier rows.
        overwrite: Whether an existing file may be replaced; the tables never are.

    Raises:
        InputError: The output has another ending, exists, is one of the tables, or can't be written.
    """
    if output.suffix.lower() not in (".parquet", ".csv"):
        raise InputError(f"--output {output} must end in .parquet or .csv")
    check_new_file(output, "--output", overwrite=overwrite, inputs={"--input": source, "--past": past})


def evaluate_file(run: TrainedRun, source: Path, *, past: Path | None, bad_rows: Any, read: ReadOptions | None = None) -> dict[str, Any]:
    """Evaluate a run on labelled data: on its own table only the test rows, on any other table all rows.

    Args:
        run: The run to evaluate.
        source: Labelled table.
        past: Table of earlier rows of the same entities; they are context and not evaluated.
        bad_rows: ``error`` or ``drop``.
        read: How text files are read, where it differs from the table of training.

    Returns:
        ``part`` (``test`` or ``all``), ``dataset``, ``rows``, ``dropped``, ``notes``, ``warnings``, and
        ``test`` with the keys of report.json.

    Raises:
        InputError: The table can't be used, or has no labelled or no positive row.
    """
    dataset = run.table(source, past=past, bad_rows=bad_rows, read=read)
    spec = dataset.schema.spec
    trained_on = dataset.fingerprint == run.folder.content["fingerprint"]
    if trained_on:
        dataset = run.filled(load_dataset(source, spec, bad_rows=bad_rows, like=run.schema))
    column = spec.label or spec.label_date
    if column is None or not (dataset.store.label[dataset.split == Split.TEST] >= 0).any():
        raise InputError(f"{source} has no labelled row: balancer evaluate needs the column {column!r}; without labels use balancer score")
    rows = dataset.rows(Split.TEST)
    if not (dataset.store.label[rows] > 0).any():
        raise InputError(f"column {column!r} of {source} has no positive row, so nothing can be evaluated: give a table with positive rows")
    return {
        "part": "test" if trained_on else "all",
        "dataset": str(source),
        "rows": len(rows),
        "dropped": dataset.dropped,
        "notes": dataset.notes,
        "warnings": dataset.cautions,
        "test": evaluate_rows(dataset, rows, run.scores(dataset, rows, alike=True), run.decision),
    }
