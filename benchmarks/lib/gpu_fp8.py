"""Linear layers in FP8 on torch's ``_scaled_mm``, as a contender of INT8."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
TINY = torch.finfo(torch.float32).tiny
MULTIPLE = 16
"""``_scaled_mm`` needs numbers of channels that are multiples of this."""


class Fp8Linear(nn.Module):
    """Linear layer in FP8 (e4m3), with a scale for each output channel and for each row of the input.

    Args:
        linear: layer whose weight (N, K) is rounded.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = rounded_rows(linear.weight.detach().float())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N) in the dtype of ``x``; the product is accumulated to bfloat16."""
        low, step = rounded_rows(x.reshape(-1, x.shape[-1]).float())
        out = torch._scaled_mm(low, self.weight.t(), scale_a=step, scale_b=self.scale, out_dtype=torch.bfloat16, use_fast_accum=True)
        out = out.to(x.dtype)
        return (out if self.bias is None else out + self.bias.to(x.dtype)).view(*x.shape[:-1], self.weight.shape[0])


def rounded_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows (R, K) float32 to FP8; return them and the scale of each row, (R, 1) float32."""
    scale = (rows.abs().amax(1, keepdim=True) / LARGEST).clamp(min=TINY)
    return (rows / scale).to(FP8), scale


def in_fp8(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with its linear layers in FP8, but for those of unsuitable sizes."""
    made = copy.deepcopy(model).eval().requires_grad_(False)
    for name, module in list(made.named_modules()):
        if isinstance(module, nn.Linear) and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE):
            parent, _, child = name.rpartition(".")
            setattr(made.get_submodule(parent), child, Fp8Linear(module))
    return made
