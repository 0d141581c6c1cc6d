"""``balancer export``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from balancer.cli.early import check_run
from balancer.deployment.targets import check_max_drop, export_file
from balancer.names import counted
from balancer.options.flags import Flag, read_flags


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a trained run to a file for machines without torch.

    A run with boosted trees gets a second ONNX file beside it, model.first.onnx, of its first stage. With
    --lite a small model is distilled from it first, with INT8 weights where average precision allows.
    """

    run: Annotated[
        Path,
        Flag("Run folder written by balancer train; --lite needs the table it was trained on.", metavar="RUN", positional=True),
    ]
    target: Annotated[
        Literal["onnx", "executorch"],
        "onnx: a model for ONNX Runtime. executorch: a program for edge devices, one row at a time, in float32, without boosted trees.",
    ] = "onnx"
    lite: Annotated[bool, "Distil a model of one block with single-head window attention and export that."] = False
    out: Annotated[
        Path | None,
        Flag("File to write.", metavar="FILE", default="model.onnx, model.lite.onnx or the same in .pte in the run folder"),
    ] = None
    max_drop: Annotated[float, "With --lite: largest allowed drop of average precision on validation rows through INT8."] = 0.003
    overwrite: Annotated[bool, "Replace --out if it exists."] = False
    dataset: Annotated[
        Path | None,
        Flag("With --lite: the table that the run was trained on.", metavar="PATH", default="where it was in training"),
    ] = None
    json: Annotated[bool, "Print the metrics as JSON."] = False


def main(arguments: Sequence[str]) -> int:
    """Export a run and print what was written; returns the exit code."""
    config = read_flags(ExportConfig, "balancer export", arguments)
    check_max_drop(config.max_drop)
    check_run(config.run, dataset=config.dataset, needs_table=config.lite)
    export_file(config.run, config.target, lite=config.lite, out=config.out, overwrite=config.overwrite)
    from rich.console import Console

    from balancer.deployment.export import export_run

    console = Console(markup=False, stderr=config.json)
    result = export_run(
        config.run,
        target=config.target,
        lite=config.lite,
        out=config.out,
        max_drop=config.max_drop,
        console=console,
        dataset=config.dataset,
        overwrite=config.overwrite,
    )
    if config.json:
        print(json.dumps(result, indent=2))
        return 0
    if "test" in result:
        _print(result, console)
    files = " and ".join([result["file"], *([result["first_stage"]] if "first_stage" in result else [])])
    console.print(f"{result['bytes'] / 1000:,.0f} kB: {files}", highlight=False, soft_wrap=True)
    return 0


def _print(result: dict[str, Any], console: Any) -> None:
    """Print the full model and the light one side by side."""
    from rich import box
    from rich.table import Table

    # A title of the table would be wrapped at the table's width.
    console.print(f"Full model ({result['full']}) and light model, on the test rows", style="bold", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("", "full", "light", "ratio or difference"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    full, light, ms = result["test"]["full"], result["test"]["lite"], result["ms"]
    table.add_row(
        "kB", f"{result['full_bytes'] / 1000:,.0f}", f"{result['bytes'] / 1000:,.0f}", _share(result["bytes"], result["full_bytes"])
    )
    for size in ms["full"]:
        for name, shown in (("full", "torch"), ("full_onnx", "ONNX Runtime")):
            if name in ms:
                slow, fast = ms[name][size], ms["lite"][size]
                table.add_row(f"ms at batch {size}, full in {shown}", f"{slow:.3f}", f"{fast:.3f}", _share(fast, slow))
    for key, shown, decimals in (("average_precision", "average precision", 4), ("f1", "F1, tuned", 4), ("fpr", "false-positive rate", 5)):
        table.add_row(shown, f"{full[key]:.{decimals}f}", f"{light[key]:.{decimals}f}", f"{light[key] - full[key]:+.{decimals}f}")
    console.print(table)
    difference, count = result["largest_difference_to_torch"], len(result["int8_layers"])
    console.print(
        f"largest difference from torch's scores: {difference['float']:.1e} in float32, {difference['int8']:.1e} with {counted(count, 'INT8 layer')}",
        highlight=False,
    )
    for note in result.get("notes", ()):
        console.print(f"note: {note}", style="dim", highlight=False, soft_wrap=not console.is_terminal)


def _share(value: float, whole: float) -> str:
    return f"{100 * value / whole:.0f} %" if whole else "–"
