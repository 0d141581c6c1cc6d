"""`balancer score`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from balancer.options.flags import parse


@dataclass(frozen=True)
class ScoreConfig:
    """Score the rows of a table with a trained run: the same rows come out with score, decision and class. No labels are needed."""

    run: Path = field(metadata={"positional": True, "metavar": "RUN"})
    """Run folder that balancer train wrote."""
    input: Path
    """Table to score: Parquet, CSV or a folder of Parquet files."""
    output: Path
    """File to write, .parquet or .csv; replaced where it exists."""
    past: Path | None = field(default=None, metadata={"aliases": ("--history",)})
    """Earlier rows of the same entities, with labels where they are known: they give context and are not scored."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with rows that can't be used: stop, or drop and count them."""
    precision: Literal["full", "quantized"] = "full"
    """The full model, or the one that balancer quantize made of it."""
    streaming: bool = False
    """Read one row at a time, as balancer serve does: its scores to the last bit, and slower than whole histories at once."""
    json: bool = False
    """Print what was done as JSON."""


def main(arguments: Sequence[str]) -> int:
    """Parse, score, say what was written."""
    config = ScoreConfig(**parse(ScoreConfig, "balancer score", ScoreConfig.__doc__ or "", arguments))
    from balancer.runs.tables import score_file
    from balancer.runs.trained_run import TrainedRun

    told = score_file(
        TrainedRun.load(config.run, precision=config.precision),
        config.input,
        config.output,
        past=config.past,
        bad_rows=config.bad_rows,
        streaming=config.streaming,
    )
    if config.json:
        print(json.dumps(told, indent=2))
    else:
        share = 100 * told["alarms"] / max(1, told["rows"])
        print(
            f"{told['rows']:,} rows scored, {told['alarms']:,} alarms ({share:.2f} %) at threshold {told['threshold']:.4g}: {told['output']}"
        )
        for reason, count in told["dropped"].items():
            print(f"dropped {count:,} rows: {reason}")
    return 0
