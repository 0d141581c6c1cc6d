"""Embedding of single rows without a history: every field is a token.

Attention mixes fields instead of transactions. The last token represents the row and is the head's input. It
is last because attention is causal, so only the last token sees all fields.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models.batch import SequenceBatch
from balancer.models.config import ModelConfig
from balancer.models.embedding import FieldEmbedding


class TabularEmbedding(FieldEmbedding):
    """One token per field, numeric fields first, then one token for the row; then dropout.

    The token of a field is the sum of a vector for the value and a vector for the field. Maps a batch of
    single rows (B, 1, C) to (B, C + 1, d_model), of length C + 1, or 0 for a row of padding. A hidden number
    contributes no value vector, and a missing one only where the configuration says so (`missing`); an unseen
    category contributes that of code 0. Window attention sees all fields if its window is at least C + 1.

    Args:
        config: as for `FieldEmbedding`; history_length must be 1.

    Raises:
        InputError: history_length is not 1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if config.history_length != 1:
            raise InputError(
                f"embedding 'tabular' takes single rows, but history_length is {config.history_length}; set history_length to 1"
            )
        self.token = nn.Embedding(self.num_fields + 1, config.d_model)
        self.init_tables(self.token)

    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        """Embed (B, 1, C) as (B, C + 1, d_model).

        Raises:
            InputError: The number of fields differs from that of the model, or a window has more than one
                row.
        """
        rows, length, num_fields = batch.values.shape
        if length != 1:
            raise InputError(f"the windows of the batch are {length} rows long, embedding 'tabular' takes single rows; cut windows of 1")
        visible, values = self.visible(batch)[:, 0], batch.values[:, 0]
        tokens = []
        if self.numeric is not None:
            tokens.append(self._numbers(values[:, : self.num_numeric], visible[:, : self.num_numeric]))
        for column, table in enumerate(self.categorical, start=self.num_numeric):
            tokens.append(table(self.codes(values[:, column], visible[:, column], column))[:, None])
        every = torch.arange(num_fields + 1, device=values.device)
        tokens.append(torch.zeros_like(tokens[0][:, :1]))
        total = torch.cat(tokens, 1) + self.token(every)
        mask = batch.mask.expand(rows, num_fields + 1)
        return SequenceBatch(total, batch.lengths * (num_fields + 1), mask).with_values(self.dropout(total))

    def _numbers(self, values: Tensor, present: Tensor) -> Tensor:
        """Encode the numeric fields (B, F) as (B, F, d_model)."""
        per_field = getattr(self.numeric, "per_field", None)
        if per_field is None:  # a quantized encoder returns only the sum over fields: encode one field at a time
            assert self.numeric is not None
            alone = present[:, None] & torch.eye(values.shape[1], dtype=torch.bool, device=values.device)
            tokens: Tensor = self.numeric(values.repeat_interleave(values.shape[1], 0), alone.flatten(0, 1)).unflatten(0, values.shape)
        else:
            tokens = per_field(values, present)
        for encoder in (self.cycles, self.missing):
            if encoder is not None:
                tokens = encoder.add_to(tokens, values, present)
        return tokens
