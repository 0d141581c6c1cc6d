"""The bitsandbytes library: its INT8 linear layer for CUDA, and its 8-bit AdamW optimizer.

The outlier threshold is 0. With another threshold, an outlier in one row moves whole columns of the batch to
higher precision, so a row's score would depend on the other rows. Inputs are cast to float16, and values
above 65,504 overflow; therefore `apply_precision` uses this backend only on request.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from balancer.dependencies import require
from balancer.errors import UnsupportedError
from balancer.models.quantization.layers import Layer


def library() -> Any:
    """Import and return the package.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    require("bitsandbytes", "the backend bitsandbytes")
    import bitsandbytes

    return bitsandbytes


def int8_linear_of(layer: Layer) -> nn.Module:
    """Build bitsandbytes' Linear8bitLt with the weights of a linear layer, on its device."""
    bnb = library()
    linear = layer.module
    assert isinstance(linear, nn.Linear)
    made = bnb.nn.Linear8bitLt(linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False, threshold=0.0)
    made.weight = bnb.nn.Int8Params(linear.weight.detach().clone().cpu(), requires_grad=False, has_fp16_weights=False)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    moved: nn.Module = made.to(linear.weight.device)  # moving the layer quantizes its weight
    return _InFloat32(moved)


class _InFloat32(nn.Module):
    """Return results in the dtype of the input, whatever the library computes in."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., K) to (..., N)."""
        out: torch.Tensor = self.inner(x.to(torch.float16)).to(x.dtype)
        return out


def adamw8bit(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    """AdamW with 8-bit moments, which need a quarter of the memory. CUDA only.

    Raises:
        UnsupportedError: There is no CUDA device.
        MissingDependencyError: bitsandbytes is not installed.
    """
    if not torch.cuda.is_available():
        raise UnsupportedError("the optimizer adamw8bit needs a CUDA device: use adamw")
    optimizer: torch.optim.Optimizer = library().optim.AdamW8bit(parameters, **options)
    return optimizer
