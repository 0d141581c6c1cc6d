"""``balancer quantize``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from balancer.cli.early import check_run
from balancer.deployment.targets import check_max_drop
from balancer.options.flags import Flag, read_flags


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Reduce a trained run's size and latency within a given drop of average precision.

    Layers get INT8 weights where the model tolerates it, and stay in BF16 or FP32 where it does not. The
    quantized model is written beside the full one.
    """

    run: Annotated[
        Path, Flag("Run folder written by balancer train; the table it was trained on is needed.", metavar="RUN", positional=True)
    ]
    dataset: Annotated[Path | None, Flag("The table that the run was trained on.", metavar="PATH", default="where it was in training")] = (
        None
    )
    max_drop: Annotated[float, "Largest allowed drop of average precision on validation rows."] = 0.003
    prefer: Annotated[
        Literal["speed", "size"],
        "speed: a layer that is slower in low precision on this machine stays in FP32; size: every layer as small as --max-drop allows.",
    ] = "speed"
    backend: Annotated[
        Literal["auto", "torch", "bitsandbytes", "onnxruntime"],
        "auto and torch: for score and evaluate with --precision quantized. onnxruntime: also writes an ONNX file. "
        "bitsandbytes: only measured, nothing is written.",
    ] = "auto"
    json: Annotated[bool, "Print plan, sensitivities and metrics as JSON."] = False


def main(arguments: Sequence[str]) -> int:
    """Quantize a run and print a comparison with the full model; returns the exit code."""
    config = read_flags(QuantizeConfig, "balancer quantize", arguments)
    check_max_drop(config.max_drop)
    check_run(config.run, dataset=config.dataset, needs_table=True)
    from rich.console import Console

    from balancer.deployment.quantize import quantize_run

    console = Console(markup=False, stderr=config.json)
    result = quantize_run(
        config.run, max_drop=config.max_drop, backend=config.backend, prefer=config.prefer, console=console, dataset=config.dataset
    )
    if config.json:
        print(json.dumps(result, indent=2))
    else:
        print_quantization(result, console, config.run)
    return 0


def print_quantization(result: dict[str, Any], console: Any, run: Path) -> None:
    """Print both models side by side, then the precision of each layer with the reason."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    before, after, test = result["before"], result["after"], result["of"]["test"]
    table = Table(
        title="Full and quantized model, on the test rows", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold"
    )
    for head in ("", "full", "quantized", "change"):
        table.add_column(head, justify="left" if not head else "right", no_wrap=True)
    table.add_row(
        "weights on disk, kB, network",
        f"{before['bytes'] / 1000:,.0f}",
        f"{after['bytes'] / 1000:,.0f}",
        _change(before["bytes"], after["bytes"]),
    )
    for size in after["ms"]:
        if size in before["ms"]:
            full, quantized = before["ms"][size], after["ms"][size]
            table.add_row(f"ms at batch {size}, network", f"{full:.2f}", f"{quantized:.2f}", _change(full, quantized))
    for name, key, decimals in (("average precision", "average_precision", 4), ("F1, tuned", "f1", 4), ("false-positive rate", "fpr", 5)):
        full, quantized = before["test"][key], after["test"][key]
        if full is not None and quantized is not None:
            table.add_row(name, f"{full:.{decimals}f}", f"{quantized:.{decimals}f}", f"{quantized - full:+.{decimals}f}")
    console.print()
    console.print(table)
    layers = Table(title="Layers", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for head in ("layer", "precision", "if not the planned one, why"):
        layers.add_column(head, no_wrap=head == "layer" or head == "precision")
    for row in result["applied"]["rows"]:
        layers.add_row(row["layer"], row["got"], row["reason"])
    console.print(layers)
    drop = result["plan"]["expected"].get("metric_drop")
    allowed = f"{result['max_drop']:g}"
    note = "" if drop is None else f"; drop of AP on validation rows: {drop:.4f} of at most {allowed}"
    console.print(Text(f"backend {result['backend']}{note}", style="dim"))
    written = f"{run} is unchanged: this backend is only measured" if result["backend"] == "bitsandbytes" else f"written to {run}"
    console.print(Text(written, style="dim"), soft_wrap=True)
    if test != "network":
        console.print(Text(f"bytes and ms are those of the network; all other figures those of {test}", style="dim"))


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.0f} %" if before else "–"
