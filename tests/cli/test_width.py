"""What export and quantize print fits a terminal of 80 columns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from balancer.cli.export import _print
from balancer.cli.quantize import print_quantization


def console() -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=80), output


def test_the_heading_of_a_light_model_is_one_line() -> None:
    figures = {"average_precision": 0.75, "f1": 0.7, "fpr": 0.001}
    result: dict[str, Any] = {
        "full": "network and boosted trees",
        "test": {"full": figures, "lite": figures},
        "ms": {name: {"1": 0.5, "256": 20.0} for name in ("full", "full_onnx", "lite")},
        "full_bytes": 5_000_000,
        "bytes": 50_000,
        "largest_difference_to_torch": {"float": 1e-7, "int8": 1e-2},
        "int8_layers": ["a", "b"],
    }
    screen, output = console()
    _print(result, screen)
    lines = output.getvalue().splitlines()
    assert lines[0] == "Full model (network and boosted trees) and light model, on the test rows"
    assert max(map(len, lines)) <= 80


def test_the_closing_lines_of_quantize_fit() -> None:
    model = {"bytes": 500_000, "ms": {"1": 0.5}, "test": {"average_precision": 0.75, "f1": 0.7, "fpr": 0.001}}
    result: dict[str, Any] = {
        "before": model,
        "after": model,
        "of": {"test": "network and boosted trees"},
        "applied": {"rows": [{"layer": "head", "got": "int8", "reason": ""}]},
        "plan": {"expected": {"metric_drop": 0.0012}},
        "max_drop": 0.003,
        "backend": "torch",
    }
    screen, output = console()
    print_quantization(result, screen, Path("runs/mine"))
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "backend torch; drop of AP on validation rows: 0.0012 of at most 0.003" in lines
    assert "written to runs/mine" in lines
