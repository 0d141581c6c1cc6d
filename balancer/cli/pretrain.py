"""``balancer pretrain``."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from balancer.cli.early import check_training
from balancer.names import counted
from balancer.options.flags import parse
from balancer.options.pretrain import PretrainConfig

SHOWN_FIELDS = 12
"""Fields in the table."""


def main(arguments: Sequence[str]) -> int:
    """Pretrain or resume a run and print its losses; returns the exit code."""
    given = parse(PretrainConfig, "balancer pretrain", arguments)
    if given.get("resume"):
        from balancer.runs.run_folder import with_saved_dataset

        given = with_saved_dataset(given)
    config = PretrainConfig(**given)
    check_training(config, given)
    from rich.console import Console

    from balancer.training.pretraining import pretrain_run

    console = Console(markup=False, stderr=config.json)
    try:
        folder, result = pretrain_run(config, given, console)
    except KeyboardInterrupt:
        out = config.out or "RUN, where RUN is the folder named above"
        print(f"stopped; continue with: balancer pretrain --resume --out {shlex.quote(str(out))}", file=sys.stderr)
        return 130
    if config.json:
        print(json.dumps(result | {"folder": str(folder)}, indent=2))
    else:
        _print(result, console, str(folder))
    return 0


def _print(result: dict[str, Any], console: Any, folder: str) -> None:
    """Print the fields that the model predicts best, compared with predicting their frequencies."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    last, prior = result["epochs"][-1], result["prior"]
    table = Table(
        title=f"Prediction of the next transaction: loss in nats on {counted(result['rows'], 'later row')}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_style="bold",
    )
    for head in ("field", "model", "frequencies alone", "reduction"):
        table.add_column(head, justify="left" if head == "field" else "right", no_wrap=True)
    gain = {name: prior[name] - last["fields"][name] for name in prior}
    best = sorted(gain, key=lambda name: -gain[name])
    for name in best[:SHOWN_FIELDS]:
        table.add_row(name, f"{last['fields'][name]:.3f}", f"{prior[name]:.3f}", _reduction(last["fields"][name], prior[name]))
    mean = sum(prior.values()) / len(prior)
    table.add_section()
    table.add_row(f"all {counted(len(prior), 'field')}", f"{last['next']:.3f}", f"{mean:.3f}", _reduction(last["next"], mean))
    console.print()
    console.print(table)
    console.print(
        Text(f"continue with labels: balancer train --dataset TABLE --from {shlex.quote(str(folder))}", style="dim"), soft_wrap=True
    )


def _reduction(loss: float, prior: float) -> str:
    return f"{100 * (1 - loss / prior):.0f} %" if prior >= 0.0005 else "–"  # 0.000 in the table
