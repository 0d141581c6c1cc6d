"""Dense causal attention by torch's fused kernel: the reference for every other one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from balancer.models.attention.base import Attention
from balancer.models.batch import SequenceBatch


class DenseAttention(Attention):
    """Multi-head scaled dot-product attention over all earlier positions and the own one (Vaswani et al. 2017).

    Padding stands after the last real position, so the causal mask alone keeps it out and the kernel's fast causal path is used. Only
    where the last position is asked for alone, the keys are masked by length.

    Args:
        d_model: channels in and out.
        num_heads: heads; divides d_model.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        # Apart from the keys and values, because the last block needs queries for one position of n.
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        """Mix (B, n, d) to (B, n, d), or to (B, 1, d) for the last real position alone."""
        asking = batch.last() if last_only else batch
        query = self._split(self.query(asking.values))
        key, value = (self._split(part) for part in self.key_value(batch.values).chunk(2, -1))
        if last_only:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self._seen_by_last(batch)[:, None, None])
        else:
            mixed = self._attend(query, key, value)
        return asking.with_values(self.out(mixed.transpose(1, 2).flatten(2)))

    def _split(self, x: Tensor) -> Tensor:
        """(B, n, d) to (B, H, n, d / H)."""
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1))
        return heads.transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All three (B, H, n, d / H); each position against itself and earlier ones."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def _seen_by_last(self, batch: SequenceBatch) -> Tensor:
        """(B, n) bool: the keys the last real position sees. A row of padding sees its first, so that its softmax is not over nothing."""
        seen = batch.mask.clone()
        seen[:, 0] = True
        return seen
