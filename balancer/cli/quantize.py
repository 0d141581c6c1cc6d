"""`balancer quantize`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from balancer.options.flags import parse


@dataclass(frozen=True)
class QuantizeConfig:
    """Make a trained run smaller and faster: INT8 where the model does not mind, BF16 or FP32 where it does; written beside the full model."""

    run: Path = field(metadata={"positional": True, "metavar": "RUN"})
    """Run folder that balancer train wrote; its table must be where it was."""
    max_drop: float = 0.003
    """Average precision on validation rows that may be lost."""
    prefer: Literal["speed", "size"] = "speed"
    """speed: a layer that is slower in low precision on this machine stays in FP32; size: every layer as small as the budget allows."""
    backend: Literal["auto", "torch", "bitsandbytes", "onnxruntime"] = "auto"
    """auto and torch: used by score and evaluate --precision quantized; onnxruntime: also an ONNX file to deploy; bitsandbytes: measured, not stored."""
    json: bool = False
    """Print plan, sensitivity and figures as JSON."""


def main(arguments: Sequence[str]) -> int:
    """Parse, quantize, print before and after."""
    config = QuantizeConfig(**parse(QuantizeConfig, "balancer quantize", QuantizeConfig.__doc__ or "", arguments))
    from rich.console import Console

    from balancer.deployment.quantize import quantize_run

    console = Console(stderr=config.json)
    told = quantize_run(config.run, max_drop=config.max_drop, backend=config.backend, prefer=config.prefer, console=console)
    if config.json:
        print(json.dumps(told, indent=2))
    else:
        print_quantization(told, console, config.run)
    return 0


def print_quantization(told: dict[str, Any], console: Any, run: Path) -> None:
    """Before and after side by side, then what each layer got and why."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    before, after = told["before"], told["after"]
    table = Table(title="Before and after, on the test rows", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for head in ("", "full", "quantized", "change"):
        table.add_column(head, justify="left" if not head else "right", no_wrap=True)
    table.add_row(
        "weights on disk, kB", f"{before['bytes'] / 1000:,.0f}", f"{after['bytes'] / 1000:,.0f}", _change(before["bytes"], after["bytes"])
    )
    for size in after["ms"]:
        if size in before["ms"]:
            own, other = before["ms"][size], after["ms"][size]
            table.add_row(f"ms at batch {size}", f"{own:.2f}", f"{other:.2f}", _change(own, other))
    for name, key, decimals in (("average precision", "average_precision", 4), ("F1, tuned", "f1", 4), ("false-positive rate", "fpr", 5)):
        own, other = before["test"][key], after["test"][key]
        if own is not None and other is not None:
            table.add_row(name, f"{own:.{decimals}f}", f"{other:.{decimals}f}", f"{other - own:+.{decimals}f}")
    console.print()
    console.print(table)
    rows = told["applied"]["rows"]
    layers = Table(title="Layers", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for head in ("layer", "got", "why not what was planned"):
        layers.add_column(head, no_wrap=head != "why not what was planned")
    for row in rows:
        layers.add_row(row["layer"], row["got"], row["reason"])
    console.print(layers)
    drop = told["plan"]["expected"].get("metric_drop")
    lost = f"; on validation rows average precision lost {drop:.4f} of the {told['max_drop']:g} allowed" if drop is not None else ""
    console.print(Text(f"backend {told['backend']}{lost}; written into {run}", style="dim"), soft_wrap=True)


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.0f} %" if before else "–"
