"""Layers in low precision, on torch's kernels.

A row's result never depends on the other rows of the batch. INT8 activations have a separate scale for each
row, sums of INT8 products are exact integers, and a float32 linear layer multiplies its rows in groups of
sixteen, because torch uses different kernels for few and for many rows. NaN in one row does not affect other
rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.models.encoding import Bins, PiecewiseLinearEncoder
from balancer.models.quantization import native

LARGEST = 127
"""INT8 is used symmetrically, from -127 to 127."""
_MIDDLE = 128
"""Offset between signed and unsigned bytes."""
ROWS = 16
"""The number of float32 rows is padded to a multiple of this."""
_ONE_KERNEL = torch.cpu._is_avx512_supported()
"""Whether one product of all rows is enough, because every multiple of ``ROWS`` is multiplied by the same
kernel.

With AVX2 on Intel processors it is not: MKL multiplies rows in groups of six, and it has other kernels for
the rows that are left over and for small products. The share of a thread changes the kernel, too.
"""
_CUDA_ROWS = 32
"""Minimum number of rows for torch's INT8 product on CUDA, which requires more than 16."""
_TINY = torch.finfo(torch.float32).tiny


def quantize_rows(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Round each row of a weight to signed integers, symmetrically.

    The largest magnitude of a row maps to the largest integer.

    Args:
        weight: (R, d).
        bits: number of bits of the integers.

    Returns:
        int8 (R, d) and float32 scale (R,).
    """
    most = 2 ** (bits - 1) - 1
    scale = (weight.detach().float().abs().amax(1) / most).clamp(min=_TINY)
    return (weight.detach().float() / scale[:, None]).round_().to(torch.int8), scale


@torch.library.custom_op("balancer::int8_linear", mutates_args=())
def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by an INT8 weight, after rounding each row of ``x`` to INT8 by its largest magnitude.

    A row with an infinite value or NaN gives NaN.

    Args:
        x: (..., K).
        weight: int8 (N, K).
        scale: (N,) float32.
        bias: (N,) or None.

    Returns:
        (..., N) in the dtype of ``x``.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    step = (rows.abs().amax(1, keepdim=True) / LARGEST).clamp_(min=_TINY)
    whole = (rows / step).round_().to(torch.int8)
    step = step.where(step.isfinite(), torch.nan)
    if whole.shape[1] == 1:  # torch's kernel does not write the result in this case
        product = whole.int() * weight.int().t()
    elif x.is_cuda and len(whole) < _CUDA_ROWS:
        product = torch._int_mm(F.pad(whole, (0, 0, 0, _CUDA_ROWS - len(whole))), weight.t())[: len(whole)]
    else:
        product = torch._int_mm(whole, weight.t())
    out = (product * step).mul_(scale)
    if bias is not None:
        out += bias
    return out.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


@int8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001 - signature of the operator
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class Int8Linear(nn.Module):
    """Linear layer with INT8 weights (a scale per channel) and INT8 activations (a scale per row)."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        self._packed: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        if torch.compiler.is_compiling() or not x.is_cpu or x.dtype != torch.float32 or native.absence() is not None:
            out: Tensor = int8_linear(x, self.weight, self.scale, self.bias)
            return out
        if self._packed is None:
            self._packed = native.pack(self.weight)
        return native.linear(x, *self._packed, self.scale, self.bias)

    def __deepcopy__(self, memo: dict[int, object]) -> Int8Linear:
        """Copy the layer; the packed weight is computed again when needed."""
        copied = Int8Linear(self.weight.clone(), self.scale.clone(), None if self.bias is None else self.bias.clone())
        memo[id(self)] = copied
        return copied.train(self.training)


class Int8Embedding(nn.Module):
    """Embedding with INT8 entries, one scale per entry."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, index: Tensor) -> Tensor:
        """Map (...) int64 to (..., d) float32."""
        flat = index.flatten()
        found = self.weight.index_select(0, flat).float() * self.scale.index_select(0, flat)[:, None]
        return found.view(*index.shape, -1)


class _FrozenLinear(nn.Module):
    """Weight and bias of a linear layer as buffers."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)


class LowLinear(_FrozenLinear):
    """Linear layer in bfloat16 or float16."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N) in the dtype of ``x``."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class LowEmbedding(nn.Module):
    """Embedding in bfloat16 or float16."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, index: Tensor) -> Tensor:
        """Map (...) int64 to (..., d) float32."""
        return F.embedding(index, self.weight).float()


class RowwiseLinear(_FrozenLinear):
    """Float32 linear layer whose result for a row does not depend on the number of rows."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        rows = x.reshape(-1, x.shape[-1])
        if not _ONE_KERNEL and x.is_cpu:
            return self._by_groups(rows)[: len(rows)].view(*x.shape[:-1], self.weight.shape[0])
        padding = -len(rows) % ROWS
        out = F.linear(F.pad(rows, (0, 0, 0, padding)) if padding else rows, self.weight, self.bias)
        return out[: len(rows)].view(*x.shape[:-1], self.weight.shape[0])

    def _by_groups(self, rows: Tensor) -> Tensor:
        """Multiply (R, K) as a batch of products of ``ROWS`` rows; at least two, because torch multiplies a
        single one like any other matrix. Returns (R padded, N).
        """
        count = max(2, -(-len(rows) // ROWS))
        groups = F.pad(rows, (0, 0, 0, count * ROWS - len(rows))).view(count, ROWS, -1)
        out = groups.bmm(self.weight.mT.expand(count, -1, -1)).flatten(0, 1)
        return out if self.bias is None else out + self.bias


class TableEncoder(nn.Module):
    """Piecewise-linear encoder with a precomputed table.

    The table is in float32, bfloat16, or INT8 with one scale per entry.

    Args:
        bins: bins of the encoder that it replaces.
        table: (2 T, d) from :meth:`PiecewiseLinearEncoder.table`: int8 with ``scale``, or floating without.
        scale: (2 T,) float32, or None.
    """

    weight: Tensor
    scale: Tensor | None
    packed: Tensor | None

    def __init__(self, bins: Bins, table: Tensor, scale: Tensor | None) -> None:
        super().__init__()
        self.places = bins
        self.register_buffer("weight", table)
        self.register_buffer("scale", scale)
        self.register_buffer("packed", None, persistent=False)

    @classmethod
    def of(cls, encoder: PiecewiseLinearEncoder, precision: str) -> TableEncoder:
        """Build from an encoder, with its table rounded to ``precision``."""
        table = encoder.table().detach()
        if precision == "int8":
            return cls(encoder.places, *quantize_rows(table))
        return cls(encoder.places, table.to(DTYPES[precision]), None)

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """Encode numbers (R, F), with a mask (R, F) of those that are present, as (R, d) float32."""
        cell, is_present, fraction = self.places(values, present)
        index = torch.cat([cell, cell + len(self.weight) // 2], 1)
        factor = torch.cat([is_present, fraction], 1)
        if self.scale is None:
            return F.embedding_bag(index, self.weight, mode="sum", per_sample_weights=factor.to(self.weight.dtype)).float()
        if not self.weight.is_cpu:
            entries = self.weight.index_select(0, index.flatten()).float().view(*index.shape, -1)
            return torch.einsum("rf,rfd->rd", factor * self.scale.index_select(0, index.flatten()).view_as(factor), entries)
        if self.packed is None:
            self.packed = self._pack()
        bags = torch.arange(0, index.numel(), index.shape[1], dtype=index.dtype)
        looked_up: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            self.packed, index.flatten(), bags, False, 0, False, factor.flatten(), None, False
        )
        return looked_up

    def _pack(self) -> Tensor:
        """Pack the table for torch's kernel, (2 T, d + 8) uint8.

        Each entry consists of its bytes, then its scale and offset as float32.
        """
        assert self.scale is not None
        ends = torch.stack([self.scale, -_MIDDLE * self.scale], 1).contiguous().view(torch.uint8)
        return torch.cat([(self.weight.to(torch.int16) + _MIDDLE).to(torch.uint8), ends.view(len(self.scale), -1)], 1).contiguous()


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
