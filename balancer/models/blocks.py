"""A pre-norm transformer block that owns its linears.

torch's own encoder layer reads the weights of its linears directly, so a quantized or otherwise swapped linear breaks it; here each one is
called.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from balancer.models.attention import Attention
from balancer.models.batch import SequenceBatch, Targets
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

    def forward(self, batch: SequenceBatch, *, last_only: bool = False, targets: Targets | None = None) -> SequenceBatch:
        """(B, n, d) to (B, n, d), to (B, 1, d) for the last real position alone, or to (T, 1, d) for the `targets`."""
        mixed = self.attention(self.normed(batch), last_only=last_only)
        kept = batch.last() if last_only else batch
        if targets is not None:
            mixed, kept = mixed.at(*targets), kept.at(*targets)
        return kept.with_values(self._feed_forward(kept.values, mixed.values))

    def normed(self, batch: SequenceBatch) -> SequenceBatch:
        """What the attention sees of `batch`."""
        return SequenceBatch(self.attention_norm(batch.values), batch.lengths, batch.mask)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one position (B, d) of each sequence: the block's output there, and the attention's state after it."""
        mixed, state = self.attention.step(self.attention_norm(x), state)
        return self._feed_forward(x, mixed), state

    def _feed_forward(self, x: Tensor, mixed: Tensor) -> Tensor:
        hidden = x + self.dropout(mixed)
        added: Tensor = hidden + self.dropout(self.ff2(F.gelu(self.ff1(self.ff_norm(hidden)))))
        return added
