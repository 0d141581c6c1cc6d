"""``balancer compare``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Any

from balancer.cli.early import check_table
from balancer.comparison.config import CompareConfig
from balancer.data.spec import read_spec_file
from balancer.errors import InputError
from balancer.options.flags import from_dict, parse
from balancer.options.run import folder_to_resume


def main(arguments: Sequence[str]) -> int:
    """Run or continue a comparison and print its results; returns the exit code."""
    given = parse(CompareConfig, "balancer compare", arguments)
    config = _continued(given) if given.get("resume") else CompareConfig(**given)
    check_table(config.dataset)
    if config.spec is not None:
        read_spec_file(config.spec)
    config.check_files()
    config.check_treatments()
    config.address()
    from rich.console import Console

    from balancer.comparison.running import run_comparison
    from balancer.comparison.terminal import print_comparison
    from balancer.runs.progress import TrainingProgress

    console = Console(markup=False)
    try:
        with TrainingProgress(console) as progress:
            _, content = run_comparison(config, progress)
    except KeyboardInterrupt:
        out = config.out or "FOLDER, where FOLDER is the one named above"
        print(f"stopped; finished cells are kept, continue with: balancer compare --resume --out {shlex.quote(str(out))}", file=sys.stderr)
        return 130
    print_comparison(content, console)
    if config.chart is not None:
        from balancer.comparison.chart import write_chart

        write_chart(content, config.chart)
    written = [str(file) for file in (config.json, config.chart) if file is not None]
    if written:
        console.print(f"written: {', '.join(written)}", highlight=False, soft_wrap=True)
    return 0


def _continued(given: dict[str, Any]) -> CompareConfig:
    """The configuration of a comparison to continue: its saved flags, replaced by those that were typed."""
    from balancer.comparison.cells import CellFolder

    out = folder_to_resume(given.get("out"))
    this_time = {"json", "chart", "resume", "overwrite"}  # not taken from the saved flags
    saved = {name: value for name, value in CellFolder.flags(out).items() if name not in this_time}
    try:
        config = from_dict(CompareConfig, saved | given)
    except TypeError as error:
        raise InputError(f"{out} has flags that this balancer can't read ({error}): start a new comparison in another folder") from error
    assert isinstance(config, CompareConfig)
    return config
