"""A pre-norm transformer block that calls its linear layers as modules.

torch's own encoder layer reads the weights of its linear layers directly, so it breaks when one of them is
replaced, for example by a quantized layer.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from balancer.models.attention import Attention
from balancer.models.batch import SequenceBatch, Targets
from balancer.models.dropout import Dropout

EXPANSION = 2
"""Width of the feed-forward part, as a multiple of d_model."""


class Block(nn.Module):
    """Attention, then feed-forward; each has a layer norm before it and a residual connection around it.

    Args:
        attention: any `Attention` over d_model channels.
        d_model: number of input and output channels.
        dropout: probability of zeroing a channel of each residual branch during training.
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
        """Apply the block to a batch (B, n, d).

        Args:
            batch: values (B, n, d).
            last_only: compute only the last real position of each row.
            targets: compute the feed-forward part only at these T positions.

        Returns:
            Values (B, n, d), (B, 1, d) with `last_only`, or (T, 1, d) with `targets`.
        """
        mixed = self.attention(self.normed(batch), last_only=last_only)
        residual = batch.last() if last_only else batch
        if targets is not None:
            mixed, residual = mixed.at(*targets), residual.at(*targets)
        return residual.with_values(self._feed_forward(residual.values, mixed.values))

    def normed(self, batch: SequenceBatch) -> SequenceBatch:
        """Normalize `batch` as the attention of this block receives it."""
        return SequenceBatch(self.attention_norm(batch.values), batch.lengths, batch.mask)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read one position (B, d) of each sequence.

        Returns:
            The block's output at that position, (B, d), and the attention's state after it.
        """
        mixed, state = self.attention.step(self.attention_norm(x), state)
        return self._feed_forward(x, mixed), state

    def _feed_forward(self, x: Tensor, mixed: Tensor) -> Tensor:
        hidden = x + self.dropout(mixed)
        added: Tensor = hidden + self.dropout(self.ff2(F.gelu(self.ff1(self.ff_norm(hidden)))))
        return added
