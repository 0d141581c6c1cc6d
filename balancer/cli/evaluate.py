"""`balancer evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from balancer.options.flags import parse


@dataclass(frozen=True)
class EvaluateConfig:
    """Figures of a trained run on labelled rows: of its own table the test part, of any other table all rows."""

    run: Path = field(metadata={"positional": True, "metavar": "RUN"})
    """Run folder that balancer train wrote."""
    dataset: Path
    """Labelled table: Parquet, CSV or a folder of Parquet files."""
    past: Path | None = field(default=None, metadata={"aliases": ("--history",)})
    """Earlier rows of the same entities: they give context and are not evaluated."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with rows that can't be used: stop, or drop and count them."""
    precision: Literal["full", "quantized"] = "full"
    """The full model, or the one that balancer quantize made of it."""
    json: bool = False
    """Print the figures as JSON, with the keys of report.json."""


def main(arguments: Sequence[str]) -> int:
    """Parse, evaluate, print."""
    config = EvaluateConfig(**parse(EvaluateConfig, "balancer evaluate", EvaluateConfig.__doc__ or "", arguments))
    from balancer.runs.tables import evaluate_file
    from balancer.runs.trained_run import TrainedRun

    result = evaluate_file(
        TrainedRun.load(config.run, precision=config.precision), config.dataset, past=config.past, bad_rows=config.bad_rows
    )
    if config.json:
        print(json.dumps(result, indent=2))
        return 0
    from rich.console import Console

    from balancer.evaluation.report_terminal import print_figures

    print_figures(result, Console())
    return 0
