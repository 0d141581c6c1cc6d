"""`balancer train`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from balancer.errors import InputError
from balancer.options.flags import parse
from balancer.options.train import TrainConfig


def main(arguments: Sequence[str]) -> int:
    """Parse, train or resume, print the report."""
    given = parse(TrainConfig, "balancer train", TrainConfig.__doc__ or "", _with_saved_dataset(list(arguments)))
    config = TrainConfig(**given)
    from rich.console import Console

    from balancer.evaluation.report_terminal import print_report
    from balancer.files import read_json
    from balancer.training.pipeline import train_run

    # Figures for a machine go to stdout alone; what a person reads meanwhile goes to stderr then.
    console = Console(stderr=config.json)
    try:
        folder = train_run(config, given, console)
    except KeyboardInterrupt:
        where = f" --out {config.out}" if config.out else " --out RUN, RUN being the folder named above"
        print(f"stopped; continue with: balancer train --resume{where}", file=sys.stderr)
        return 130
    if config.quantize:
        from balancer.cli.quantize import print_quantization
        from balancer.deployment.quantize import quantize_run

        told = quantize_run(folder, max_drop=0.003, backend="auto", console=console)
        if not config.json:
            print_quantization(told, console, folder)
    report = read_json(folder / "report.json", what="it is the report of the run")
    if config.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report, console, folder=folder)
    return 0


def _with_saved_dataset(arguments: list[str]) -> list[str]:
    """On --resume the data set may be left out: it is the run's own."""
    named = any(argument == "--dataset" or argument.startswith("--dataset=") for argument in arguments)
    if "--resume" not in arguments or named:
        return arguments
    out = _value_of(arguments, "--out")
    if out is None:
        raise InputError("--resume needs --out: name the run folder to continue")
    from balancer.runs.run_folder import RunFolder

    return ["--dataset", str(RunFolder.open(Path(out)).config().dataset), *arguments]


def _value_of(arguments: list[str], flag: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if argument.startswith(flag + "="):
            return argument.removeprefix(flag + "=")
    return None
