"""Attention to the last `window` positions: cost grows with n x window instead of n x n.

Queries are cut into chunks of `window`; a chunk sees itself and the chunk before it under one band mask, so a whole batch is one call of
the fused kernel (the sliding chunks of Longformer, Beltagy et al. 2020, in their causal form).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from balancer.models.attention.dense import DenseAttention
from balancer.models.batch import SequenceBatch


class WindowAttention(DenseAttention):
    """Each position sees itself and the `window - 1` before it; windows no longer than that are dense.

    Args:
        d_model: channels in and out.
        num_heads: heads; divides d_model.
        window: how many positions are seen, the own one included.
    """

    def __init__(self, d_model: int, num_heads: int, window: int = 64, *, rotary: bool = False) -> None:
        super().__init__(d_model, num_heads, rotary=rotary)
        self.window = window

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        size, length = self.window, query.shape[2]
        if length <= size:
            return super()._attend(query, key, value)
        chunks = -(-length // size)
        fill = (0, 0, 0, chunks * size - length)
        own_query, own_key, own_value = (F.pad(x, fill).unflatten(2, (chunks, size)) for x in (query, key, value))
        # Chunks stand beside the heads (B, H * chunks, ., d / H): one call, and a mask that the batch shares.
        mixed = F.scaled_dot_product_attention(
            own_query.flatten(1, 2),
            _with_previous(own_key).flatten(1, 2),
            _with_previous(own_value).flatten(1, 2),
            attn_mask=self._band(chunks, query.device).repeat(self.num_heads, 1, 1)[None],
        )
        apart: Tensor = mixed.unflatten(1, (self.num_heads, chunks))
        return apart.flatten(2, 3)[:, :, :length]

    def _band(self, chunks: int, device: torch.device) -> Tensor:
        """(chunks, window, 2 window) bool: which keys of the previous and the own chunk a query sees."""
        size = self.window
        distance = torch.arange(size, device=device)[:, None] + size - torch.arange(2 * size, device=device)
        band = ((distance >= 0) & (distance < size)).repeat(chunks, 1, 1)
        band[0, :, :size] = False
        return band

    def _reach(self, batch: SequenceBatch) -> int:
        return self.window

    def _seen_by_last(self, batch: SequenceBatch) -> Tensor:
        position = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        return super()._seen_by_last(batch) & (position > batch.lengths[:, None] - 1 - self.window)


def _with_previous(chunks: Tensor) -> Tensor:
    """(B, H, chunks, window, d / H) to (B, H, chunks, 2 window, d / H): the chunk before each in front of it, zeros before the first."""
    previous = F.pad(chunks[:, :, :-1], (0, 0, 0, 0, 1, 0))
    return torch.cat([previous, chunks], 3)
