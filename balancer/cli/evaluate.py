"""``balancer evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from balancer.cli.early import check_run, check_table
from balancer.cli.messages import say
from balancer.options.data import TABLE_KINDS, ReadingOptions
from balancer.options.flags import Flag, read_flags


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ReadingOptions):
    """Evaluate a trained run on labelled data.

    On the table that the run was trained on, only its test rows are evaluated; on any other table all rows.
    """

    HEADING: ClassVar[str] = "Evaluation"

    run: Annotated[Path, Flag("Run folder written by balancer train.", metavar="RUN", positional=True)]
    dataset: Annotated[Path, f"Labelled table: {TABLE_KINDS}."]
    past: Annotated[
        Path | None,
        Flag("Table of earlier rows of the same entities; they are used as context and not evaluated.", aliases=("--history",)),
    ] = None
    bad_rows: Annotated[Literal["error", "drop"], "What to do with rows that can't be used: stop, or drop and count them."] = "error"
    precision: Annotated[
        Literal["auto", "full", "quantized"],
        "auto: the network whose layers have the planned precision, where the run has one; full: all layers in float32; quantized: refuses a run without a plan.",
    ] = "auto"
    json: Annotated[bool, "Print the metrics as JSON, with the keys of report.json."] = False


def main(arguments: Sequence[str]) -> int:
    """Evaluate a run and print its metrics; returns the exit code."""
    config = read_flags(EvaluateConfig, "balancer evaluate", arguments)
    read = config.read_options()
    for table in (config.dataset, config.past):
        check_table(table)
    check_run(config.run)
    from balancer.runs.tables import evaluate_file
    from balancer.runs.trained_run import TrainedRun

    run = TrainedRun.load(config.run, precision=config.precision)
    result = evaluate_file(run, config.dataset, past=config.past, bad_rows=config.bad_rows, read=read)
    for kind in ("note", "warning"):
        for text in result[f"{kind}s"]:
            say(kind, text)
    if config.json:
        print(json.dumps(result, indent=2))
        return 0
    from rich.console import Console

    from balancer.evaluation.report_terminal import print_metrics

    print_metrics(result, Console(markup=False), chosen=run.decision.chosen)
    return 0
