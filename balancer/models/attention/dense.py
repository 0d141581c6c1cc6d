"""Dense causal attention, the reference for the other attentions."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balancer.models.attention.base import Attended, Attention
from balancer.models.attention.finite import dense_causal, is_finite, readable
from balancer.models.attention.rotary import rotate
from balancer.models.batch import SequenceBatch


class DenseAttention(Attention):
    """Multi-head attention to the position itself and all earlier ones (Vaswani et al. 2017).

    Padding follows the last real position, so the causal mask alone excludes it and the fast causal path of
    the kernel is used. Only with `last_only` the keys are masked by length.

    Args:
        d_model: number of input and output channels.
        num_heads: number of heads; must divide d_model.
        rotary: rotate queries and keys by their position (`rotary.py`), for batches without embedded
            positions.
    """

    def __init__(self, d_model: int, num_heads: int, *, rotary: bool = False) -> None:
        super().__init__()
        self.num_heads, self.rotary = num_heads, rotary
        # Separate from keys and values, because the last block needs the query of only one of n positions.
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        """Map (B, n, d) to (B, n, d), or to (B, 1, d) for the last real position of each row."""
        batch = without_padding(batch)
        queries = batch.last() if last_only else batch
        positions = torch.arange(batch.values.shape[1], device=batch.values.device)
        key, value = self._keys(batch.values, positions)
        query = self._queries(queries.values, (batch.lengths - 1).clamp(min=0)[:, None] if last_only else positions)
        if last_only:
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self._mask_of_last(batch)[:, None, None]).transpose(1, 2)
        else:
            mixed = dense_causal(query, key, value)
        return queries.with_values(self.out(mixed.flatten(2)))

    def attended(self, batch: SequenceBatch, row: Tensor, position: Tensor) -> Attended:
        """See :meth:`Attention.attended`; S is n."""
        positions = torch.arange(batch.values.shape[1], device=batch.values.device)
        query = self._queries(batch.values[row, position][:, None], position[:, None])[:, 0]
        key = self._keys(batch.values, positions)[0][row]
        masked = (positions > position[:, None]) | (positions <= position[:, None] - self._reach(batch))
        logits = torch.einsum("thd,tshd->ths", query, key) * query.shape[-1] ** -0.5
        mass = logits.masked_fill(masked[:, None], -torch.inf).softmax(-1).mean(1)
        key_at = positions.expand_as(mass).masked_fill(masked, -1)
        return Attended(key_at, mass.float(), torch.zeros_like(masked))

    def _queries(self, x: Tensor, position: Tensor) -> Tensor:
        """Project (B, m, d) at `position`, (m,) or (B, m), to queries (B, m, H, d / H)."""
        query: Tensor = self.query(x).unflatten(-1, (self.num_heads, -1))
        return rotate(query, position) if self.rotary else query

    def _keys(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Project (B, m, d) at `position` to keys and values, (B, m, H, d / H) each."""
        key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in self.key_value(x).chunk(2, -1))
        return (rotate(key, position) if self.rotary else key), value

    def _reach(self, batch: SequenceBatch) -> int:
        """Number of positions that a query attends to, including its position."""
        return batch.values.shape[1]

    def _mask_of_last(self, batch: SequenceBatch) -> Tensor:
        """Mask (B, n) of the keys that the last real position attends to.

        A row of only padding attends to its first position, so that no softmax is over an empty set.
        """
        mask = batch.mask.clone()
        mask[:, 0] = True
        return mask


def without_padding(batch: SequenceBatch) -> SequenceBatch:
    """Return the batch with zeros at padding, if a number there may not be finite.

    Otherwise it could reach real positions, by a masked weight of 0 or by the gradient of a weight.
    """
    if readable(batch.values) and is_finite(batch.values):
        return batch
    return dataclasses.replace(batch, values=batch.with_values(batch.values).values)
