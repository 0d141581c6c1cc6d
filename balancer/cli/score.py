"""``balancer score``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from balancer.cli.early import check_run, check_table, check_written_table
from balancer.cli.messages import say
from balancer.errors import InputError
from balancer.names import counted
from balancer.options.cluster import ClusterOptions
from balancer.options.data import TABLE_KINDS, ReadingOptions
from balancer.options.flags import Flag, read_flags


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(ReadingOptions, ClusterOptions):
    """Score the rows of a table with a trained run.

    The same rows are written with three more columns: score, decision and class. No labels are needed. What
    changed since training is shown: fields with another distribution, values that training did not have, and
    a share of alarms that is not usual.
    """

    HEADING: ClassVar[str] = "Scoring"

    run: Annotated[Path, Flag("Run folder written by balancer train.", metavar="RUN", positional=True)]
    input: Annotated[Path, f"Table to score: {TABLE_KINDS}; or a store of balancer prepare, which is scored shard by shard."]
    output: Annotated[
        Path,
        Flag(
            "File to write, .parquet or .csv; for a store a folder, of one Parquet file a shard. Finished shards are kept.", metavar="FILE"
        ),
    ]
    overwrite: Annotated[bool, "Replace --output if it exists; the input and the past are never replaced."] = False
    past: Annotated[
        Path | None,
        Flag(
            "Table of earlier rows of the same entities, with their labels where known; they are used as context and not scored. Rows of "
            "the input among them are left out.",
            aliases=("--history",),
        ),
    ] = None
    bad_rows: Annotated[Literal["error", "drop"], "What to do with rows that can't be used: stop, or drop and count them."] = "error"
    precision: Annotated[
        Literal["auto", "full", "quantized"],
        "auto: the network whose layers have the planned precision, where the run has one; full: all layers in float32; quantized: refuses a run without a plan.",
    ] = "auto"
    streaming: Annotated[
        bool,
        "Read one row at a time, as balancer serve does: scores equal its scores to the last bit, but take longer.",
    ] = False
    explain: Annotated[
        int,
        Flag(
            "Add a column, reasons: for each row that raises an alarm, the N fields that contribute most to its score, in words.",
            metavar="N",
        ),
    ] = 0
    json: Annotated[bool, "Print the summary as JSON."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.explain < 0:
            raise InputError(f"--explain is {self.explain}: give the number of fields to name, 0 or more")


def main(arguments: Sequence[str]) -> int:
    """Score a table or a store and print a summary; returns the exit code."""
    config = read_flags(ScoreConfig, "balancer score", arguments)
    check_table(config.input)
    from balancer.tables.kinds import is_store

    if is_store(config.input):
        return _score_shards(config)
    if config.several():
        raise InputError(
            f"--cluster and --workers score the shards of a store, and {config.input} is none: make one with balancer prepare, or leave them out"
        )
    read = config.read_options()
    check_table(config.past)
    check_written_table(config.output, "--output", overwrite=config.overwrite, inputs={"--input": config.input, "--past": config.past})
    check_run(config.run)
    from balancer.runs.tables import score_file
    from balancer.runs.trained_run import TrainedRun

    run = TrainedRun.load(config.run, precision=config.precision)
    if run.detector.stages is not None and run.detector.stages.note is not None:
        say("note", run.detector.stages.note)
    result = score_file(
        run,
        config.input,
        config.output,
        past=config.past,
        bad_rows=config.bad_rows,
        streaming=config.streaming,
        explain=config.explain,
        overwrite=config.overwrite,
        read=read,
    )
    return _print(config, result)


def _score_shards(config: ScoreConfig) -> int:
    """Score the shards of a store; returns the exit code."""
    cluster = config.address()
    for given, flag in (
        (config.past, "--past"),
        (config.read_options().to_dict(), "how text is read"),
        (config.bad_rows == "drop", "--bad-rows"),
    ):
        if given:
            raise InputError(f"{flag} is for tables, and {config.input} is a store: give it to balancer prepare, or leave it out")
    check_run(config.run)
    from rich.console import Console

    from balancer.data.sharded.folder import StoreFolder
    from balancer.runs.progress import TrainingProgress
    from balancer.runs.shard_scores import ShardScoring, score_store

    scoring = ShardScoring(config.run, config.input, config.output, config.precision, config.streaming, config.explain)
    where: dict[str, Any] = {"cluster": cluster, "workers": config.workers}
    try:
        with (
            TrainingProgress(Console(markup=False, stderr=True)) as shown,
            shown.stage("shards", StoreFolder.open(config.input).shards) as advance,
        ):
            result = score_store(scoring, overwrite=config.overwrite, **where, progress=lambda done, _: advance(done))
    except KeyboardInterrupt:
        print("stopped; finished shards are kept, and the same command continues", file=sys.stderr)
        return 130
    return _print(config, result)


def _print(config: ScoreConfig, result: dict[str, Any]) -> int:
    for kind in ("note", "warning"):
        for text in result[f"{kind}s"]:
            say(kind, text)
    if config.json:
        print(json.dumps(result, indent=2))
        return 0
    share = 100 * result["alarms"] / max(1, result["rows"])
    threshold = f"at threshold {result['threshold']:.4g}"
    print(f"{counted(result['rows'], 'row')} scored, {counted(result['alarms'], 'alarm')} ({share:.2f} %) {threshold}: {result['output']}")
    for reason, count in result["dropped"].items():
        print(f"dropped {counted(count, 'row')}: {reason}")
    from rich.console import Console

    from balancer.evaluation.drift_terminal import print_changes

    print_changes(result["drift"], Console(markup=False))
    return 0
