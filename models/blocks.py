"""A pre-norm transformer block that owns its linears.

torch's own encoder layer reads the weights of its linears directly, so a quantized or otherwise swapped linear breaks it; here each one is
called.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from balancer.models.attention import Attention
from balancer.models.batch import SequenceBatch
from balancer.models.dropout import Dropout

EXPANSION = 2
"""Width of the feed-forward part in units of d_model."""


class Block(nn.Module):
    """Attention, then feed-forward, each on a normed input and added to its input.

    Args:
        attention: any `Attention` over d_model channels.
        d_model: channels in and out.
        dropout: probability of zeroing a channel of what is added, in training.
    """

    def __init__(self, attention: Attention, d_model: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(d_model)
        self.ff_norm = nn.LayerNorm(d_model)
        self.ff1 = nn.Linear(d_model, EXPANSION * d_model)
        self.ff2 = nn.Linear(EXPANSION * d_model, d_model)
        self.dropout = Dropout(dropout)

    def forward(self, batch: SequenceBatch, *, last_only: bool = False) -> SequenceBatch:
        """(B, n, d) to (B, n, d), or to (B, 1, d) for the last real position alone."""
        normed = SequenceBatch(self.attention_norm(batch.values), batch.lengths, batch.mask)
        mixed = self.attention(normed, last_only=last_only)
        kept = batch.last() if last_only else batch
        hidden = kept.values + self.dropout(mixed.values)
        hidden = hidden + self.dropout(self.ff2(F.gelu(self.ff1(self.ff_norm(hidden)))))
        return kept.with_values(hidden)
