"""`balancer export`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from balancer.options.flags import parse


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained run as one file for a machine without torch; with --lite a small student of it, distilled and in INT8 where that costs nothing."""

    run: Path = field(metadata={"positional": True, "metavar": "RUN"})
    """Run folder that balancer train wrote; for --lite its table must be where it was."""
    target: Literal["onnx", "executorch"] = "onnx"
    """onnx: for ONNX Runtime; executorch: a program for devices, one row at a time, in float32."""
    lite: bool = False
    """A light build: one block of single-head window attention, distilled from the full model."""
    out: Path | None = None
    """File to write (default: model.onnx, model.lite.onnx, or the same in .pte, in the run folder)."""
    max_drop: float = 0.003
    """With --lite: average precision on validation rows that INT8 may lose."""
    json: bool = False
    """Print the figures as JSON."""


def main(arguments: Sequence[str]) -> int:
    """Parse, export, say what was written."""
    config = ExportConfig(**parse(ExportConfig, "balancer export", ExportConfig.__doc__ or "", arguments))
    from rich.console import Console

    from balancer.deployment.export import export_run

    console = Console(stderr=config.json)
    told = export_run(config.run, target=config.target, lite=config.lite, out=config.out, max_drop=config.max_drop, console=console)
    if config.json:
        print(json.dumps(told, indent=2))
        return 0
    if "test" in told:
        _print(told, console)
    console.print(f"{told['bytes'] / 1000:,.0f} kB: {told['file']}", highlight=False, soft_wrap=True)
    return 0


def _print(told: dict[str, Any], console: Any) -> None:
    """Full and light side by side."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="Full model and light build, on the test rows", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold"
    )
    for head in ("", "full", "light", "share"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    full, light, ms = told["test"]["full"], told["test"]["lite"], told["ms"]
    table.add_row("kB", f"{told['full_bytes'] / 1000:,.0f}", f"{told['bytes'] / 1000:,.0f}", _share(told["bytes"], told["full_bytes"]))
    for size in ms["full"]:
        for name, shown in (("full", "torch"), ("full_onnx", "ONNX Runtime")):
            if name in ms:
                own, other = ms[name][size], ms["lite"][size]
                table.add_row(f"ms at batch {size}, full in {shown}", f"{own:.3f}", f"{other:.3f}", _share(other, own))
    for key, shown, decimals in (("average_precision", "average precision", 4), ("f1", "F1, tuned", 4), ("fpr", "false-positive rate", 5)):
        table.add_row(shown, f"{full[key]:.{decimals}f}", f"{light[key]:.{decimals}f}", f"{light[key] - full[key]:+.{decimals}f}")
    console.print(table)
    apart = told["largest_difference_to_torch"]
    console.print(
        f"scores against torch's: {apart['float']:.1e} in float32, {apart['int8']:.1e} with {len(told['int8_layers'])} layers in INT8",
        highlight=False,
    )
    for note in told.get("notes", ()):
        console.print(f"note: {note}", style="dim", highlight=False, soft_wrap=True)


def _share(own: float, other: float) -> str:
    return f"{100 * own / other:.0f} %" if other else "–"
