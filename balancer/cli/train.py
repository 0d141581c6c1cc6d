"""``balancer train``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from balancer.cli.early import check_training
from balancer.cli.messages import say
from balancer.options.flags import parse
from balancer.options.train import TrainConfig


def main(arguments: Sequence[str]) -> int:
    """Train or resume a run and print its report; returns the exit code."""
    given = parse(TrainConfig, "balancer train", arguments)
    if given.get("resume"):
        from balancer.runs.run_folder import with_saved_dataset

        given = with_saved_dataset(given)
    config = TrainConfig(**given)
    check_training(config, given)
    from rich.console import Console

    from balancer.evaluation.report_terminal import print_report
    from balancer.files import read_json
    from balancer.training.pipeline import train_run

    # With --json only the report goes to stdout, and progress to stderr.
    console = Console(stderr=config.json)
    try:
        folder = train_run(config, given, console)
    except KeyboardInterrupt:
        out = config.out or "RUN, where RUN is the folder named above"
        print(f"stopped; continue with: balancer train --resume --out {out}", file=sys.stderr)
        return 130
    if config.quantize:
        say("note", "--quantize has no effect any more: --precision says whether training ends with a precision plan")
    report = read_json(folder / "report.json", what="it is the report of the run")
    if config.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report, console, folder=folder)
    return 0
