"""Dense causal attention by torch's fused kernel: the reference for every other one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.models.attention.base import Attended, Attention
from balancer.models.attention.rotary import rotate
from balancer.models.batch import SequenceBatch


class DenseAttention(Attention):
    """Multi-head scaled dot-product attention over all earlier positions and the own one (Vaswani et al. 2017).

    Padding stands after the last real position, so the causal mask alone keeps it out and the kernel's fast causal path is used. Only
    where the last position is asked for alone, the keys are masked by length.

    Args:
        d_model: channels in and out.
        num_heads: heads; divides d_model.
        rotary: turn queries and keys by their position (`rotary.py`); for batches that carry no positions of their own.
    """

    def __init__(self, d_model: int, num_heads: int, *, rotary: bool = False) -> None:
        super().__init__()
        self.num_heads, self.rotary = num_heads, rotary
        # Apart from the keys and values, because the last block needs queries for one position of n.
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        """Mix (B, n, d) to (B, n, d), or to (B, 1, d) for the last real position alone."""
        asking = batch.last() if last_only else batch
        everywhere = torch.arange(batch.values.shape[1], device=batch.values.device)
        key, value = self._keys(batch.values, everywhere)
        query = self._queries(asking.values, (batch.lengths - 1).clamp(min=0)[:, None] if last_only else everywhere)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if last_only:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self._seen_by_last(batch)[:, None, None])
        else:
            mixed = self._attend(query, key, value)
        return asking.with_values(self.out(mixed.transpose(1, 2).flatten(2)))

    def attended(self, batch: SequenceBatch, row: Tensor, position: Tensor) -> Attended:
        """See `Attention.attended`; S is n."""
        everywhere = torch.arange(batch.values.shape[1], device=batch.values.device)
        query = self._queries(batch.values[row, position][:, None], position[:, None])[:, 0]
        key = self._keys(batch.values, everywhere)[0][row]
        unseen = (everywhere > position[:, None]) | (everywhere <= position[:, None] - self._reach(batch))
        logits = torch.einsum("thd,tshd->ths", query, key) * query.shape[-1] ** -0.5
        mass = logits.masked_fill(unseen[:, None], -torch.inf).softmax(-1).mean(1)
        seen_at = everywhere.expand_as(mass).masked_fill(unseen, -1)
        return Attended(seen_at, mass.float(), torch.zeros_like(unseen))

    def _queries(self, x: Tensor, position: Tensor) -> Tensor:
        """(B, m, d) at `position` (m,) or (B, m) to (B, m, H, d / H)."""
        query: Tensor = self.query(x).unflatten(-1, (self.num_heads, -1))
        return rotate(query, position) if self.rotary else query

    def _keys(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, m, H, d / H) each."""
        key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in self.key_value(x).chunk(2, -1))
        return (rotate(key, position) if self.rotary else key), value

    def _reach(self, batch: SequenceBatch) -> int:
        """How many positions back, its own included, a query sees."""
        return batch.values.shape[1]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All three (B, H, n, d / H); each position against itself and earlier ones."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    def _seen_by_last(self, batch: SequenceBatch) -> Tensor:
        """(B, n) bool: the keys the last real position sees. A row of padding sees its first, so that its softmax is not over nothing."""
        seen = batch.mask.clone()
        seen[:, 0] = True
        return seen
