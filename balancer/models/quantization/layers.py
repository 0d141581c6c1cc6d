"""Find the layers of a model whose precision can be chosen, and refuse models that can't be quantized.

Any torch model is accepted; layers are found by the type of the modules. Modules that share a weight form one
layer with several names, so a tied weight is quantized once. torch modules that read the weights of their
linear layers without calling them raise an error, because a replaced layer would be ignored or fail there.
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
"""Bytes of the float32 scale of each row of an INT8 weight."""
_NOT_CALLING_LAYERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class Layer:
    """A layer whose precision can be chosen."""

    name: str
    """Name of the first module that holds the weight, as in `model.named_modules()`."""
    kind: Kind
    module: nn.Module
    tied: tuple[str, ...] = ()
    """Names of the other modules with the same weight."""

    @property
    def module_names(self) -> tuple[str, ...]:
        """Names of all modules that hold the weight."""
        return (self.name, *self.tied)

    @property
    def rows(self) -> Tensor:
        """The weight as rows of channels, (R, d); each row has its own scale.

        A row is an output channel of a linear layer or an entry of a table.
        """
        if isinstance(self.module, PiecewiseLinearEncoder):
            return self.module.table()
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """Bias (N,) of a linear layer, or None."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    @property
    def parameters(self) -> int:
        """Number of elements of weight and bias."""
        return self.rows.numel() + (0 if self.bias is None else self.bias.numel())

    def bytes(self, precision: Precision) -> int:
        """Exact number of bytes of weight, scales and bias on disk.

        The bias of an INT8 layer remains in float32.
        """
        bias = 0 if self.bias is None else self.bias.numel()
        if precision == "int8":
            return self.rows.numel() + SCALE_BYTES * (self.rows.shape[0] + bias)
        return (4 if precision == "fp32" else 2) * (self.rows.numel() + bias)


def find_layers(model: nn.Module) -> list[Layer]:
    """Find every Linear, Embedding and encoder table of ``model``, in the order of its modules.

    Raises:
        InputError: There is no such layer.
        UnsupportedError: A torch module reads the weights of its linear layers without calling them.
    """
    found: dict[int, Layer] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _NOT_CALLING_LAYERS):
            raise UnsupportedError(
                f"{name or 'the model'} is a torch {type(module).__name__}, which does not call its linear layers, so they can't be replaced: "
                "use a module that calls them (as balancer.models.attention.SparseSelfAttention does), or quantize other modules only"
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
    if type(module) is nn.Linear:  # a subclass may compute something else
        return "linear"
    if type(module) is nn.Embedding and module.max_norm is None:
        return "embedding"
    return "table" if isinstance(module, PiecewiseLinearEncoder) else None


def fingerprint(layers: list[Layer]) -> str:
    """Hex digest of names, kinds and shapes of the layers.

    A plan fits every model with the same fingerprint.
    """
    description = [[layer.name, layer.kind, list(layer.rows.shape), list(layer.tied)] for layer in layers]
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()
