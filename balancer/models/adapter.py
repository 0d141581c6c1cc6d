"""Low-rank adapters (Hu et al. 2021, "LoRA"): trainable low-rank updates of frozen linear layers.

An adapted linear layer keeps the names of its weight and bias, so the weights of a model without adapters
load unchanged. For deployment a trained adapter is merged into the weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAIN = 2.0
"""Factor on the output of an adapter, the same for every rank."""


class AdaptedLinear(nn.Linear):
    """A linear layer plus a product of two matrices of rank r, initialized so that the product is zero.

    Args:
        linear: its weight and bias are shared, not copied.
        rank: r, at least 1.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        like = linear.weight
        self.adapter_down = nn.Parameter(
            torch.randn(rank, linear.in_features, dtype=like.dtype, device=like.device) * linear.in_features**-0.5
        )
        self.adapter_up = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=like.dtype, device=like.device))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(x, self.weight, self.bias) + GAIN * F.linear(F.linear(x, self.adapter_down), self.adapter_up)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """Return a plain linear layer that computes the same function, up to rounding."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device=self.weight.device, dtype=self.weight.dtype)
        plain.weight.copy_(self.weight + GAIN * self.adapter_up @ self.adapter_down)
        if self.bias is not None:
            plain.bias.copy_(self.bias)
        return plain


def adapt(module: nn.Module, rank: int) -> None:
    """Give every plain linear layer inside `module` an adapter of rank `rank`, in place."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, AdaptedLinear(child, rank))
        else:
            adapt(child, rank)


def fold(module: nn.Module) -> None:
    """Merge every adapter inside `module` into its linear layer, in place."""
    for name, child in list(module.named_children()):
        if isinstance(child, AdaptedLinear):
            setattr(module, name, child.folded().train(child.training))
        else:
            fold(child)
