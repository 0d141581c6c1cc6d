"""Embeddings and the table of the piecewise-linear encoder in low precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.models.encoding import Bins, PiecewiseLinearEncoder
from balancer.models.quantization.replacement import Replacement, Weighted
from balancer.models.quantization.rounding import DTYPES, quantize_rows

_MIDDLE = 128
"""Offset between signed and unsigned bytes."""
_ENDS = 8
"""Bytes after each entry of a packed table: its scale and its offset."""


class _Embedding(Weighted):
    """An embedding in low precision."""

    def __init__(self, stored: Tensor, scale: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)
        self.num_embeddings, self.embedding_dim = stored.shape

    def extra_repr(self) -> str:
        """Describe the layer in its ``repr``."""
        return f"{self.num_embeddings}, {self.embedding_dim}, stored={self.stored.dtype}"


class Int8Embedding(_Embedding):
    """Embedding with INT8 entries, one scale per entry."""

    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(weight, scale, dtype)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Embedding
        """Map (...) integers to (..., d), in the dtype of the replaced layer."""
        flat = input.flatten()
        found = self.stored.index_select(0, flat).float() * self.scale.index_select(0, flat)[:, None]
        return found.view(*input.shape, self.embedding_dim).to(self.full_dtype)


class LowEmbedding(_Embedding):
    """Embedding in float32, bfloat16 or float16."""

    def __init__(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(weight, None, dtype)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Embedding
        """Map (...) integers to (..., d), in the dtype of the replaced layer."""
        return F.embedding(input, self.stored).to(self.full_dtype)


class TableEncoder(Replacement):
    """Piecewise-linear encoder with a precomputed table.

    The table is in float32, bfloat16, or INT8 with one scale per entry.

    Args:
        bins: bins of the encoder that it replaces.
        table: (2 T, d) from :meth:`PiecewiseLinearEncoder.table`: int8 with ``scale``, or floating without.
        scale: (2 T,) float32, or None.
        dtype: dtype of the encoder that it replaces.
    """

    weight: Tensor
    scale: Tensor | None
    packed: Tensor | None

    def __init__(self, bins: Bins, table: Tensor, scale: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self.places = bins
        self.register_buffer("weight", table)
        self.register_buffer("scale", scale)
        self.register_buffer("packed", None, persistent=False)
        self._pack()

    @classmethod
    def of(cls, encoder: PiecewiseLinearEncoder, precision: str) -> TableEncoder:
        """Build from an encoder, with its table rounded to ``precision``."""
        table = encoder.table().detach()
        if precision == "int8":
            return cls(encoder.places, *quantize_rows(table), table.dtype)
        return cls(encoder.places, table.to(DTYPES[precision]), None, table.dtype)

    def own_buffers(self) -> Iterator[tuple[nn.Module, str]]:
        """See :class:`Replacement`; edges in float16 would move values to other bins."""
        for module in (self, self.places):
            for name, tensor in module._buffers.items():
                if tensor is not None:
                    yield module, name

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """Encode numbers (R, F), with a mask (R, F) of those that are present, as (R, d) in the dtype of the
        replaced encoder.
        """
        cell, is_present, fraction = self.places(values, present)
        index = torch.cat([cell, cell + len(self.weight) // 2], 1)
        factor = torch.cat([is_present, fraction], 1)
        if self.scale is None:
            return F.embedding_bag(index, self.weight, mode="sum", per_sample_weights=factor.to(self.weight.dtype)).to(self.full_dtype)
        factor = factor.float()
        if self.packed is None or not self.weight.is_cpu:
            entries = self.weight.index_select(0, index.flatten()).float().view(*index.shape, self.weight.shape[1])
            weighted = factor * self.scale.index_select(0, index.flatten()).view_as(factor)
            return torch.einsum("rf,rfd->rd", weighted, entries).to(self.full_dtype)
        looked_up: Tensor = int8_bags(index, factor, self.packed) if torch.compiler.is_compiling() else _bags(index, factor, self.packed)
        return looked_up.to(self.full_dtype)

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        self._pack()

    def _pack(self) -> None:
        """Pack an INT8 table on the CPU for torch's kernel, (2 T, d + 8) uint8.

        Each entry consists of its bytes, then its scale and offset as float32.
        """
        if self.scale is None or not self.weight.is_cpu:
            return
        ends = torch.stack([self.scale, -_MIDDLE * self.scale], 1).contiguous().view(torch.uint8)
        self.packed = torch.cat([(self.weight.to(torch.int16) + _MIDDLE).to(torch.uint8), ends.view(len(self.scale), -1)], 1).contiguous()


@torch.library.custom_op("balancer::int8_bags", mutates_args=())
def int8_bags(index: Tensor, factor: Tensor, packed: Tensor) -> Tensor:
    """Sum entries of a packed INT8 table.

    Args:
        index: (R, S) int32 entries.
        factor: (R, S) float32 weights of the entries.
        packed: (T, d + 8) uint8, see :class:`TableEncoder`.

    Returns:
        (R, d) float32.
    """
    return _bags(index, factor, packed)


@int8_bags.register_fake
def _(index: Tensor, factor: Tensor, packed: Tensor) -> Tensor:
    return factor.new_empty(index.shape[0], packed.shape[1] - _ENDS)


def _bags(index: Tensor, factor: Tensor, packed: Tensor) -> Tensor:
    """See :func:`int8_bags`."""
    if not index.numel():
        return factor.new_zeros(index.shape[0], packed.shape[1] - _ENDS)
    bags = torch.arange(0, index.numel(), index.shape[1], dtype=index.dtype)
    looked_up: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
        packed, index.flatten(), bags, False, 0, False, factor.flatten(), None, False
    )
    return looked_up
