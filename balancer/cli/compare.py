"""`balancer compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from balancer.comparison.config import CompareConfig, parse_flags, role_names
from balancer.errors import InputError
from balancer.options.flags import from_dict


def main(arguments: Sequence[str]) -> int:
    """Parse, compare or go on, print table and sentence."""
    typed, roles = parse_flags("balancer compare", _with_dataset(list(arguments)))
    config = CompareConfig(**typed)
    if config.resume:
        config, roles = _continued(typed, roles)
    from rich.console import Console

    from balancer.comparison.running import run_comparison
    from balancer.comparison.terminal import print_comparison
    from balancer.runs.progress import TrainingProgress

    console = Console()
    try:
        with TrainingProgress(console) as progress:
            _, content = run_comparison(config, roles, progress)
    except KeyboardInterrupt:
        where = f"--out {config.out}" if config.out else "--out FOLDER, FOLDER being the one named above"
        print(f"stopped; finished cells are kept, continue with: balancer compare --resume {where}", file=sys.stderr)
        return 130
    print_comparison(content, console)
    if config.chart is not None:
        from balancer.comparison.chart import write_chart

        write_chart(content, config.chart)
    written = [str(file) for file in (config.json, config.chart) if file is not None]
    if written:
        console.print(f"written: {', '.join(written)}", highlight=False, soft_wrap=True)
    return 0


def _continued(typed: dict[str, Any], roles: dict[str, Any]) -> tuple[CompareConfig, dict[str, Any]]:
    """Flags of a comparison that goes on: those it was started with, and over them what was typed now."""
    from balancer.comparison.cells import CellFolder

    saved = CellFolder.flags(typed["out"])
    names = role_names()
    once = {"json", "chart", "resume"}  # said anew each time
    try:
        before = {name: value for name, value in saved.items() if name not in names and name not in once}
        config = from_dict(CompareConfig, before | typed)
    except TypeError as error:
        raise InputError(f"{typed['out']} has flags that this balancer can't read ({error}): start anew in another folder") from error
    assert isinstance(config, CompareConfig)
    return config, {name: value for name, value in saved.items() if name in names} | roles


def _with_dataset(arguments: list[str]) -> list[str]:
    """On --resume the data set may be left out: it is the comparison's own."""
    named = any(argument == "--dataset" or argument.startswith("--dataset=") for argument in arguments)
    if "--resume" not in arguments or named:
        return arguments
    from balancer.comparison.cells import CellFolder

    outs = [b for a, b in pairwise(arguments) if a == "--out"]
    outs += [argument.removeprefix("--out=") for argument in arguments if argument.startswith("--out=")]
    if not outs:
        raise InputError("--resume needs --out: name the folder of the comparison to continue")
    return ["--dataset", str(CellFolder.flags(Path(outs[-1])).get("dataset")), *arguments]
