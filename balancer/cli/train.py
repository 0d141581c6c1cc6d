"""``balancer train``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.cli.early import check_training
from balancer.cli.messages import say
from balancer.errors import InputError, LostWorkerError
from balancer.options.flags import parse
from balancer.options.train import TrainConfig
from balancer.training.launcher import leads, started_by_torchrun

if TYPE_CHECKING:
    from rich.console import Console


def main(arguments: Sequence[str]) -> int:
    """Train or resume a run and print its report; returns the exit code."""
    given = parse(TrainConfig, "balancer train", arguments)
    together = started_by_torchrun()
    if given.get("resume"):
        from balancer.runs.run_folder import with_saved_dataset

        given = with_saved_dataset(given)
    config = TrainConfig(**given)
    address = config.address()
    if (together or address is not None) and config.out is None:
        raise InputError("--out is missing: several processes need a run folder that all of them see, name it")
    if together and address is not None:
        raise InputError("--cluster starts the processes itself: leave torchrun out, or leave --cluster and --workers out")
    if not together:
        check_training(config, given)
    from rich.console import Console

    # With --json only the report goes to stdout, and progress to stderr.
    console = Console(markup=False, stderr=config.json)
    try:
        if together:
            return _as_one_of_several(config, given, console)
        if address is not None:
            from balancer.training.on_cluster import train_on_cluster

            folder = train_on_cluster(config, given, console)
        else:
            from balancer.training.pipeline import train_run

            folder = train_run(config, given, console)
    except KeyboardInterrupt:
        out = config.out or "RUN, where RUN is the folder named above"
        if leads():
            print(f"stopped; continue with: balancer train --resume --out {shlex.quote(str(out))}", file=sys.stderr)
        return 130
    return _report(config, folder, console)


def _as_one_of_several(config: TrainConfig, given: dict[str, Any], console: Console) -> int:
    """Train with the other processes that torchrun started; the leader alone prints."""
    from balancer.training.distributed import joined_workers
    from balancer.training.pipeline import train_run

    with joined_workers(config.device) as workers:
        try:
            if not workers.again:
                workers.each(lambda: check_training(config, given))
            folder = train_run(config, given, console, workers)
        except LostWorkerError:
            raise
        except InputError as error:
            if workers.leads:
                raise
            raise SystemExit(2) from error  # the leader prints it
        return _report(config, folder, console) if workers.leads else 0


def _report(config: TrainConfig, folder: Path, console: Console) -> int:
    from balancer.evaluation.report_terminal import print_report
    from balancer.files import read_json

    if config.quantize:
        say("note", "--quantize has no effect any more: --precision says whether training ends with a precision plan")
    report = read_json(folder / "report.json", what="it is the report of the run")
    if config.json:
        print(json.dumps(report, indent=2))
    else:
        print_report(report, console, folder=folder)
    return 0
