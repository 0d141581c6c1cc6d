"""One row without a past: every field is a token, and the attention mixes fields instead of transactions.

The last token stands for the row and is what the head judges; it comes last because the attention is causal, so it alone sees all fields.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models.batch import SequenceBatch
from balancer.models.config import ModelConfig
from balancer.models.embedding import FieldEmbedding


class TabularEmbedding(FieldEmbedding):
    """One token per field, numeric fields first, each the sum of its value's vector and its own; then the row's token, then dropout.

    Takes a batch of single rows (B, 1, C); gives (B, C + 1, d_model) of length C + 1, or 0 for a row of padding. A missing or hidden number
    leaves its field's own vector, an unseen category adds that of code 0. Windowed attention sees all fields where its window is C + 1 or more.

    Args:
        config: as for `FieldEmbedding`, of history 1.

    Raises:
        InputError: The history is not 1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        if config.history_length != 1:
            raise InputError(f"embedding 'tabular' judges a row by itself, the history is {config.history_length}: set history_length to 1")
        self.token = nn.Embedding(self.num_fields + 1, config.d_model)
        self.draw_tables(self.token)

    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        """Embed (B, 1, C) as (B, C + 1, d_model).

        Raises:
            InputError: The batch has another number of fields than the model was built for, or more than one row each.
        """
        rows, length, num_fields = batch.values.shape
        if length != 1:
            raise InputError(f"the batch's windows are {length} rows long, embedding 'tabular' takes single rows; cut windows of 1")
        keep, values = self.keep(batch)[:, 0], batch.values[:, 0]
        tokens = []
        if self.numeric is not None:
            tokens.append(self._numbers(values[:, : self.num_numeric], keep[:, : self.num_numeric]))
        for column, table in enumerate(self.categorical, start=self.num_numeric):
            tokens.append(table(self.codes(values[:, column], keep[:, column], column))[:, None])
        every = torch.arange(num_fields + 1, device=values.device)
        tokens.append(torch.zeros_like(tokens[0][:, :1]))
        total = torch.cat(tokens, 1) + self.token(every)
        mask = batch.mask.expand(rows, num_fields + 1)
        return SequenceBatch(total, batch.lengths * (num_fields + 1), mask).with_values(self.dropout(total))

    def _numbers(self, values: Tensor, present: Tensor) -> Tensor:
        """(B, F, d_model)."""
        each = getattr(self.numeric, "each", None)
        if each is None:  # the encoder in another precision gives only the sum over fields: ask for one field at a time
            assert self.numeric is not None
            alone = present[:, None] & torch.eye(values.shape[1], dtype=torch.bool, device=values.device)
            tokens: Tensor = self.numeric(values.repeat_interleave(values.shape[1], 0), alone.flatten(0, 1)).unflatten(0, values.shape)
        else:
            tokens = each(values, present)
        return tokens if self.cycles is None else self.cycles.add_to(tokens, values, present)
