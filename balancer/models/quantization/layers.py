"""Which layers of a model can change their precision, and what a model must not contain.

Special: any torch model is taken, by the types of its leaves; layers that share a weight are one layer with several names, so a tied weight is quantized once.
Modules that read the weights of their linears past the linears' own forward are refused by name: swapped linears would be skipped there, or raise.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from balancer.errors import InputError, UnsupportedError
from balancer.models.encoding import PiecewiseLinearEncoder

Precision = Literal["int8", "bf16", "fp16", "fp32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Kind = Literal["linear", "embedding", "table"]
SCALE_BYTES = 4
"""A float32 scale per row of an INT8 weight."""
_READ_PAST = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class Layer:
    """A layer whose precision can be chosen."""

    name: str
    """Of the first module that holds the weight, as `model.named_modules()` has it."""
    kind: Kind
    module: nn.Module
    tied: tuple[str, ...] = ()
    """Names of further modules with the same weight."""

    @property
    def places(self) -> tuple[str, ...]:
        """All names."""
        return (self.name, *self.tied)

    @property
    def rows(self) -> Tensor:
        """The weight as rows of channels, (R, d): output channels of a linear, entries of a table; each row has a scale of its own."""
        if isinstance(self.module, PiecewiseLinearEncoder):
            return self.module.table()
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """(N,) of a linear that has one."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    @property
    def parameters(self) -> int:
        """Numbers of weight and bias."""
        return self.rows.numel() + (0 if self.bias is None else self.bias.numel())

    def bytes(self, precision: Precision) -> int:
        """Exact bytes of weight, scales and bias on disk; a bias stays float32 beside an INT8 weight."""
        bias = 0 if self.bias is None else self.bias.numel()
        if precision == "int8":
            return self.rows.numel() + SCALE_BYTES * (self.rows.shape[0] + bias)
        return (4 if precision == "fp32" else 2) * (self.rows.numel() + bias)


def find_layers(model: nn.Module) -> list[Layer]:
    """Every Linear, Embedding and encoder table of ``model``, in the order of its modules.

    Raises:
        InputError: there is none, or a module inside reads its linears' weights past their forward.
    """
    found: dict[int, Layer] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _READ_PAST):
            raise UnsupportedError(
                f"{name or 'the model'} is a torch {type(module).__name__}, which reads its weights past the layers that would be swapped: "
                "build it of linears that are called (as balancer.models.attention.SparseSelfAttention is), or quantize its surroundings only"
            )
        kind = _kind(module)
        if kind is None:
            continue
        key = id(module) if kind == "table" else id(module.weight)
        if key not in found:
            found[key] = Layer(name, kind, module)
        elif name not in (found[key].name, *found[key].tied):
            first = found[key]
            found[key] = Layer(first.name, first.kind, first.module, (*first.tied, name))
    if not found:
        raise InputError("the model has no Linear, Embedding or encoder table: there is nothing to quantize")
    return list(found.values())


def _kind(module: nn.Module) -> Kind | None:
    if type(module) is nn.Linear:  # a subclass may do more than its weight says
        return "linear"
    if type(module) is nn.Embedding and module.max_norm is None:
        return "embedding"
    return "table" if isinstance(module, PiecewiseLinearEncoder) else None


def fingerprint(layers: list[Layer]) -> str:
    """Hex digest of names, kinds and shapes: a plan fits every model with the same."""
    told = [[layer.name, layer.kind, list(layer.rows.shape), list(layer.tied)] for layer in layers]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
