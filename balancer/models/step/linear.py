"""Weights of linear layers and tables in every precision, as the kernel reads them.

The kernel multiplies in float32. For an INT8 layer it rounds each row of inputs to integers, as the layer
does. The sums of their products with the INT8 weights, which are held as float32, are exact, so the result
has the bits of `int8_linear`. A layer in bfloat16 rounds its inputs and its results to bfloat16, and its sums
are in float32.

Every weight takes four bytes here, whatever its precision: the arrays of the default model with all layers in
INT8 take 1.5 MB, as those in full precision, where the file has 0.4 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from balancer.models.adapter import AdaptedLinear
from balancer.models.encoding import PiecewiseLinearEncoder
from balancer.models.quantization.modules import Int8Embedding, Int8Linear, LowEmbedding, LowLinear, RowwiseLinear, TableEncoder
from balancer.models.quantization.replacement import Replacement

LANES = 16
"""Numbers that the kernel computes at a time; it adds across them in the same order everywhere."""
LINEAR = (nn.Linear, Int8Linear, LowLinear, RowwiseLinear)
"""Types of linear layers that the kernel knows."""
EMBEDDINGS = (nn.Embedding, Int8Embedding, LowEmbedding)
"""Types of embeddings that the kernel knows."""
TABLES = (PiecewiseLinearEncoder, TableEncoder)
"""Types of encoders with a table that the kernel knows."""
_STORED = (torch.int8, torch.bfloat16, torch.float32)

Floats = NDArray[np.float32]


class Precision(IntEnum):
    """How the kernel computes a linear layer; the numbers are those of kernels/step.cpp."""

    FULL = 0
    INT8 = 1
    BFLOAT16 = 2


@dataclass(frozen=True, eq=False)
class LinearWeights:
    """A linear layer: weight (N, K), scale (N,) and bias (N,) float32, and its precision.

    The weight of an INT8 layer holds integers. The scale is 1 in the other precisions.
    """

    weight: Floats
    scale: Floats
    bias: Floats
    precision: Precision = Precision.FULL

    def outputs(self, chosen: slice) -> LinearWeights:
        """Return the layer with some of its outputs only."""
        return LinearWeights(self.weight[chosen], self.scale[chosen], self.bias[chosen], self.precision)

    def panels(self) -> Floats:
        """Arrange the weight as (panels, K, 16)."""
        padded = wide(self.weight.T)
        return np.ascontiguousarray(padded.reshape(len(padded), -1, LANES).transpose(1, 0, 2))


def linear_weights(layer: nn.Module) -> LinearWeights:
    """Copy a linear layer of a type in `LINEAR`, or with an adapter, which is merged."""
    plain = layer.folded() if isinstance(layer, AdaptedLinear) else layer
    if isinstance(plain, Int8Linear):
        # Adding -0.0 changes no number, also not -0.0.
        bias = np.full(plain.out_features, -0.0, np.float32) if plain.stored_bias is None else floats(plain.stored_bias)
        return LinearWeights(floats(plain.stored), floats(plain.scale), bias, Precision.INT8)
    assert isinstance(plain, nn.Linear | LowLinear | RowwiseLinear)
    weight = plain.weight if isinstance(plain, nn.Linear) else plain.stored
    added = plain.bias if isinstance(plain, nn.Linear) else plain.stored_bias
    bias = np.zeros(len(weight), np.float32) if added is None else floats(added)
    precision = Precision.BFLOAT16 if weight.dtype == torch.bfloat16 else Precision.FULL
    return LinearWeights(floats(weight), np.ones(len(weight), np.float32), bias, precision)


def embedding_rows(table: nn.Module) -> Floats:
    """Entries (R, d) of an embedding of a type in `EMBEDDINGS`, as it returns them."""
    assert isinstance(table, EMBEDDINGS)
    return floats(table.weight)


def encoder_table(encoder: nn.Module) -> Floats:
    """Entries (2 T, d) of an encoder of a type in `TABLES`."""
    if isinstance(encoder, TableEncoder):
        return floats(encoder.weight) if encoder.scale is None else floats(encoder.weight) * floats(encoder.scale)[:, None]
    assert isinstance(encoder, PiecewiseLinearEncoder)
    return floats(encoder.table())


def has_low_table(encoder: nn.Module | None) -> bool:
    """Whether an encoder has a table in bfloat16: it rounds the place in the bin and the sum of a row."""
    return isinstance(encoder, TableEncoder) and encoder.weight.dtype == torch.bfloat16


def wrong_dtype(model: nn.Module) -> str | None:
    """Return the reason why the kernel can't compute in the dtypes of a model, or None if it can."""
    own = {id(tensor) for module in model.modules() if isinstance(module, Replacement) for tensor in module.buffers()}
    for name, module in model.named_modules():
        if not isinstance(module, Replacement):
            continue
        stored = module.weight if isinstance(module, TableEncoder) else module.get_buffer("stored")
        if stored.dtype not in _STORED:
            return f"it does not know layers in {_name(stored.dtype)}, as {name} is"
        if module.full_dtype != torch.float32:
            return f"it takes models in float32, but {name} gives {_name(module.full_dtype)}"
    tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
    if any(tensor.dtype != torch.float32 and id(tensor) not in own for tensor in tensors):
        return "it takes weights in float32"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def floats(tensor: Tensor) -> Floats:
    """Convert a tensor to an array of float32."""
    found: Floats = tensor.detach().cpu().float().numpy()
    return found


def wide(array: NDArray[Any]) -> NDArray[Any]:
    """Pad the last dimension with zeros to a multiple of `LANES`."""
    missing = -array.shape[-1] % LANES
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)]) if missing else array
