"""Layers in low precision, on torch's own kernels.

Special: a row's result never depends on the rows beside it. INT8 activations have a scale of their own per row, sums of INT8 products are exact integers,
and a float32 linear is given its rows in multiples of sixteen, because torch multiplies a few rows by another kernel than many. NaN in a row stays NaN, and no
other row sees it.
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
"""What makes a signed byte an unsigned one."""
ROWS = 16
"""Float32 rows are multiplied in multiples of this."""
_CUDA_ROWS = 32
"""torch's INT8 product on CUDA wants more than 16 rows."""
_TINY = torch.finfo(torch.float32).tiny


def quantize_rows(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Round each row (R, d) to signed integers of ``bits``: int8 (R, d) and float32 scale (R,), symmetric, largest to largest."""
    most = 2 ** (bits - 1) - 1
    scale = (weight.detach().float().abs().amax(1) / most).clamp(min=_TINY)
    return (weight.detach().float() / scale[:, None]).round_().to(torch.int8), scale


@torch.library.custom_op("balancer::int8_linear", mutates_args=())
def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` (..., K) by ``weight`` int8 (N, K) with ``scale`` (N,) and ``bias`` (N,): (..., N) in the dtype of ``x``.

    Each row of ``x`` is rounded to INT8 by its own largest value; what is infinite or NaN makes its row NaN.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    step = (rows.abs().amax(1, keepdim=True) / LARGEST).clamp_(min=_TINY)
    whole = (rows / step).round_().to(torch.int8)
    step = step.where(step.isfinite(), torch.nan)
    if whole.shape[1] == 1:  # torch's kernel leaves the result unwritten there
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
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001 - the operator's signature
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class Int8Linear(nn.Module):
    """A linear with INT8 weights, a scale per output channel, and INT8 activations, a scale per row."""

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
        """(..., K) to (..., N)."""
        if torch.compiler.is_compiling() or not x.is_cpu or x.dtype != torch.float32 or native.absence() is not None:
            out: Tensor = int8_linear(x, self.weight, self.scale, self.bias)
            return out
        if self._packed is None:
            self._packed = native.pack(self.weight)
        return native.linear(x, *self._packed, self.scale, self.bias)

    def __deepcopy__(self, memo: dict[int, object]) -> Int8Linear:
        """A copy; what was packed is packed anew when it is needed."""
        copied = Int8Linear(self.weight.clone(), self.scale.clone(), None if self.bias is None else self.bias.clone())
        memo[id(self)] = copied
        return copied.train(self.training)


class Int8Embedding(nn.Module):
    """An embedding with INT8 entries, a scale each."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, index: Tensor) -> Tensor:
        """(...) int64 to (..., d) float32."""
        flat = index.flatten()
        found = self.weight.index_select(0, flat).float() * self.scale.index_select(0, flat)[:, None]
        return found.view(*index.shape, -1)


class LowLinear(nn.Module):
    """A linear in bfloat16 or float16."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N) in the dtype of ``x``."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class LowEmbedding(nn.Module):
    """An embedding in bfloat16 or float16."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, index: Tensor) -> Tensor:
        """(...) int64 to (..., d) float32."""
        return F.embedding(index, self.weight).float()


class RowwiseLinear(nn.Module):
    """A float32 linear whose rows do not depend on how many there are."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N)."""
        rows = x.reshape(-1, x.shape[-1])
        spare = -len(rows) % ROWS
        out = F.linear(F.pad(rows, (0, 0, 0, spare)) if spare else rows, self.weight, self.bias)
        return out[: len(rows)].view(*x.shape[:-1], -1)


class TableEncoder(nn.Module):
    """A piecewise-linear encoder whose running sums are a finished table: in float32, bfloat16, or INT8 with a scale an entry.

    Args:
        bins: where a number falls, of the encoder it comes from.
        table: (2 T, d) as :meth:`PiecewiseLinearEncoder.table` gives it; int8 with ``scale`` (2 T,), or floating without.
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
        """The table of an encoder, rounded."""
        table = encoder.table().detach()
        if precision == "int8":
            return cls(encoder.places, *quantize_rows(table))
        return cls(encoder.places, table.to(DTYPES[precision]), None)

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """(R, F) numbers and whether they are there to (R, d) float32."""
        cell, there, fraction = self.places(values, present)
        index = torch.cat([cell, cell + len(self.weight) // 2], 1)
        share = torch.cat([there, fraction], 1)
        if self.scale is None:
            return F.embedding_bag(index, self.weight, mode="sum", per_sample_weights=share.to(self.weight.dtype)).float()
        if not self.weight.is_cpu:
            entries = self.weight.index_select(0, index.flatten()).float().view(*index.shape, -1)
            return torch.einsum("rf,rfd->rd", share * self.scale.index_select(0, index.flatten()).view_as(share), entries)
        if self.packed is None:
            self.packed = self._pack()
        bags = torch.arange(0, index.numel(), index.shape[1], dtype=index.dtype)
        looked_up: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            self.packed, index.flatten(), bags, False, 0, False, share.flatten(), None, False
        )
        return looked_up

    def _pack(self) -> Tensor:
        """(2 T, d + 8) uint8, as torch's kernel reads it: each entry's bytes, then its scale and offset as float32."""
        assert self.scale is not None
        ends = torch.stack([self.scale, -_MIDDLE * self.scale], 1).contiguous().view(torch.uint8)
        return torch.cat([(self.weight.to(torch.int16) + _MIDDLE).to(torch.uint8), ends.view(len(self.scale), -1)], 1).contiguous()


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
