"""`balancer pretrain`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from balancer.errors import InputError
from balancer.options.flags import parse

SHOWN = 12
"""Fields in the table."""


def main(arguments: Sequence[str]) -> int:
    """Parse, pretrain or resume, print what was learned."""
    from balancer.training.pretraining import PretrainConfig, pretrain_run

    given = parse(PretrainConfig, "balancer pretrain", PretrainConfig.__doc__ or "", arguments)
    config = PretrainConfig(**given)
    if config.resume and config.out is None:
        raise InputError("--resume needs --out: name the run folder to continue")
    from rich.console import Console

    console = Console(stderr=config.json)
    try:
        folder, told = pretrain_run(config, given, console)
    except KeyboardInterrupt:
        where = f" --out {config.out}" if config.out else " --out RUN, RUN being the folder named above"
        print(f"stopped; continue with: balancer pretrain --dataset {config.dataset} --resume{where}", file=sys.stderr)
        return 130
    if config.json:
        print(json.dumps(told | {"folder": str(folder)}, indent=2))
    else:
        _print(told, console, str(folder))
    return 0


def _print(told: dict[str, Any], console: Any, folder: str) -> None:
    """Fields of the next transaction that the model foresees best, against their frequencies alone."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    last, prior = told["epochs"][-1], told["prior"]
    table = Table(
        title=f"The next transaction on {told['rows']:,} later rows, in nats",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_style="bold",
    )
    for head in ("field", "foreseen", "by frequency", "told"):
        table.add_column(head, justify="left" if head == "field" else "right", no_wrap=True)
    gain = {name: prior[name] - last["fields"][name] for name in prior}
    best = sorted(gain, key=lambda name: -gain[name])
    for name in best[:SHOWN]:
        table.add_row(name, f"{last['fields'][name]:.3f}", f"{prior[name]:.3f}", f"{100 * gain[name] / max(prior[name], 1e-9):.0f} %")
    mean = sum(prior.values()) / len(prior)
    table.add_section()
    table.add_row(f"all {len(prior)} fields", f"{last['next']:.3f}", f"{mean:.3f}", f"{100 * (1 - last['next'] / max(mean, 1e-9)):.0f} %")
    console.print()
    console.print(table)
    console.print(Text(f"continue with labels: balancer train --dataset TABLE --from {folder}", style="dim"), soft_wrap=True)
