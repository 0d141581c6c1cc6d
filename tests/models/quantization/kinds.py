"""Small models of each kind of layer, and comparisons of a quantized model with the full one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from balancer.models.encoding import PiecewiseLinearEncoder
from balancer.models.quantization import Precision, apply_precision, uniform_plan

PRECISIONS: tuple[Precision, ...] = ("int8", "bf16", "fp16", "fp32")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BACKENDS = ("torch", *(["bitsandbytes"] if importlib.util.find_spec("bitsandbytes") else []))
ROUNDING = {"int8": 0.03, "bf16": 0.02, "fp16": 0.01, "fp32": 0.01}
"""Largest relative difference between the outputs of a small quantized model and the full one."""


class Encoded(nn.Module):
    """Numbers (R, 2) by the encoder of the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = PiecewiseLinearEncoder([[0.0, 1.0, 2.0], [0.0, 5.0]], 8)

    def forward(self, values: Tensor) -> Tensor:
        """Encode (R, 2) as (R, 8)."""
        encoded: Tensor = self.encoder(values, values.isfinite())
        return encoded


class Kind(NamedTuple):
    """A kind of layer."""

    make: Callable[[], nn.Module]
    data: Callable[[int], Tensor]
    """Input of a number of rows."""
    empty: tuple[tuple[int, ...], ...]
    """Shapes of inputs without rows."""


KINDS = {
    "linear": Kind(
        lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)), lambda rows: torch.randn(rows, 8), ((0, 8), (2, 0, 8))
    ),
    "embedding": Kind(lambda: nn.Sequential(nn.Embedding(9, 8)), lambda rows: torch.randint(0, 9, (rows, 3)), ((0,), (0, 3), (2, 0))),
    "table": Kind(Encoded, lambda rows: torch.rand(rows, 2) * 4, ((0, 2),)),
}


def quantized(model: nn.Module, precision: Precision, backend: str = "torch") -> nn.Module:
    """Apply one precision to all layers."""
    result, _ = apply_precision(model, uniform_plan(model, precision), backend=backend)  # type: ignore[arg-type]
    return result


@torch.no_grad()
def distance(other: nn.Module, model: nn.Module, x: Tensor) -> float:
    """Largest relative difference of the outputs, after a check of shapes and dtypes."""
    found, expected = other(x), model(x)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
