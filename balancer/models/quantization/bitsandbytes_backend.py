"""The bitsandbytes library: its INT8 linear layer for CUDA, and its 8-bit AdamW optimizer.

The outlier threshold is 0. With another threshold, an outlier in one row moves whole columns of the batch to
higher precision, so a row's score would depend on the other rows. Inputs are cast to float16, and values
above 65,504 overflow; therefore `apply_precision` uses this backend only on request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from balancer.dependencies import require
from balancer.errors import UnsupportedError
from balancer.models.quantization.carrying import carry_over
from balancer.models.quantization.layers import Layer
from balancer.models.quantization.modules import checked_dtype
from balancer.models.quantization.replacement import Replacement
from balancer.models.quantization.rounding import LARGEST
from balancer.models.quantization.swapping import convert_weight
from balancer.models.quantization.used_weights import plain_type, used


def library() -> Any:
    """Import and return the package.

    Raises:
        MissingDependencyError: The package is not installed.
    """
    require("bitsandbytes", "the backend bitsandbytes")
    import bitsandbytes

    return bitsandbytes


def obstacle(layer: Layer) -> str:
    """Return the reason why torch's kernels are used for an INT8 layer instead; empty if there is none."""
    if any(plain_type(module) is not nn.Linear for module in layer.modules):
        return "bitsandbytes has no embedding that shares its weight with a linear layer: torch is used"
    if not all(layer.shape):
        return "bitsandbytes has no linear layer without channels: torch is used"
    return ""


def int8_linears_of(model: nn.Module, layer: Layer) -> dict[str, nn.Module]:
    """Build bitsandbytes' Linear8bitLt for each module of a linear layer, on its device; see `convert_layer`.

    Raises:
        InputError: The weight has values that float16, in which the library multiplies, can't represent.
    """
    weight, _ = convert_weight(layer.rows, "fp16", layer.name)
    made: dict[int, nn.Module] = {}
    replacements = {}
    for name in layer.module_names:
        module = model.get_submodule(name)
        if id(module) not in made:
            made[id(module)] = BitsandbytesLinear(weight, used(module, "bias"), layer.dtype)
            carry_over(module, made[id(module)])
        replacements[name] = made[id(module)]
    return replacements


class BitsandbytesLinear(Replacement):
    """Linear8bitLt of bitsandbytes, which computes in float16, with results in the replaced layer's dtype.

    Args:
        weight: (N, K) floating point.
        bias: (N,), or None.
        dtype: dtype of the replaced layer.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        bnb = library()
        self.out_features, self.in_features = weight.shape
        inner = bnb.nn.Linear8bitLt(self.in_features, self.out_features, bias=bias is not None, has_fp16_weights=False, threshold=0.0)
        inner.weight = bnb.nn.Int8Params(weight.detach().clone().cpu(), requires_grad=False, has_fp16_weights=False)
        if bias is not None:
            inner.bias = nn.Parameter(bias.detach().to(torch.float16), requires_grad=False)
        self.inner: nn.Module = inner.to(weight.device)  # moving the layer quantizes its weight

    @property
    def weight(self) -> torch.Tensor:
        """The weight (N, K) in the dtype of the replaced layer, computed at each access."""
        stored: Any = self.inner.weight
        state: Any = self.inner.state
        scale = stored.SCB if stored.SCB is not None else state.SCB
        rows = stored.data if stored.dtype == torch.int8 else state.CB
        weight: torch.Tensor = (rows.float() * (scale / LARGEST)[:, None]).to(self.full_dtype)
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias (N,) in the dtype of the replaced layer, or None."""
        bias = self.inner.bias
        return bias.to(self.full_dtype) if isinstance(bias, torch.Tensor) else None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> BitsandbytesLinear:
        """Move the layer, and change its dtype, but not that of its tensors."""
        added = {name: child for name, child in self._modules.items() if name != "inner"}
        inner, self._modules = self.inner, added
        nn.Module._apply(self, fn, recurse)
        probe = fn(torch.empty(0, dtype=self.full_dtype, device=next(inner.parameters()).device))
        self._modules = {"inner": inner.to(probe.device), **added}
        self.full_dtype = probe.dtype
        return self

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name of nn.Linear
        """Map (..., K) to (..., N), in the dtype of the replaced layer."""
        if torch.compiler.is_exporting():
            raise UnsupportedError("a linear layer of bitsandbytes can't be exported: apply the plan with backend='torch'")
        dtype = checked_dtype(input, self.in_features)
        if not input.numel():
            return input.new_zeros(*input.shape[:-1], self.out_features, dtype=dtype)
        out: torch.Tensor = self.inner(input.to(torch.float16)).to(dtype)
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
