"""From the fields of transactions to channels: numbers encoded, categories looked up, positions counted back from the target.

Counting back makes the transaction before the target the same thing in a history of 3 as in one of 300. In the form `histories`, where every
position may be a target, nothing is counted here and the attention knows distances instead (rotary). Field dropout hides a field over the whole
window of a row: without it the few frauds, shown over and over, are recognised by one odd value.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models.batch import SequenceBatch
from balancer.models.config import ModelConfig
from balancer.models.dropout import Dropout
from balancer.models.encoding import PiecewiseLinearEncoder
from balancer.models.periodic import CycleEncoder, PeriodicEncoder

UNSEEN_RATE = 0.01
"""Probability, in training, of replacing a category by code 0, so that what an unseen one looks like is learned."""
INITIAL_STD = 0.1


class FieldEmbedding(nn.Module):
    """What embeddings of fields share: the layers of each field, and which fields are hidden or unseen.

    Subclasses draw their own layers and then call `draw_tables`, so that a seed goes on giving the weights it gave.

    Args:
        config: its fields, cardinalities, edges, numeric_encoding, cycles, d_model, dropout and field_dropout are used.
    """

    hides_whole_windows = True
    """Whether field dropout hides a field at all positions of a row, or at each by itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_numeric = len(config.numeric_fields)
        self.num_fields = self.num_numeric + len(config.categorical_fields)
        self.field_dropout = config.field_dropout
        make = PeriodicEncoder if config.numeric_encoding == "periodic" else PiecewiseLinearEncoder
        self.numeric = make(config.edges, config.d_model) if config.numeric_fields else None
        self.categorical = nn.ModuleList(nn.Embedding(size, config.d_model) for size in config.cardinalities)
        cycles = dict.fromkeys(config.cycles.items() if isinstance(config.cycles, Mapping) else config.cycles)
        self.cycles = (
            CycleEncoder([config.numeric_fields.index(name) for name, _ in cycles], [period for _, period in cycles], config.d_model)
            if cycles
            else None
        )
        self.dropout = Dropout(config.dropout)

    def draw_tables(self, *further: nn.Module) -> None:
        """Draw the first weights of the categories' tables, then of `further` ones."""
        for table in (*self.categorical, *further):
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=INITIAL_STD)

    def keep(self, batch: SequenceBatch) -> Tensor:
        """(B, n, C) bool: which fields are to count, those of padding and, in training, hidden ones left out.

        Raises:
            InputError: The batch has another number of fields than the model was built for.
        """
        rows, length, num_fields = batch.values.shape
        if num_fields != self.num_fields:
            raise InputError(
                f"the batch has {num_fields} fields, the model was built for {self.num_fields}; give the columns of its configuration"
            )
        keep = batch.mask[..., None].expand(-1, -1, num_fields)
        if self.training and self.field_dropout > 0:
            draws = torch.rand(rows, 1 if self.hides_whole_windows else length, num_fields, device=keep.device)
            keep = keep & (draws >= self.field_dropout)
        return keep

    def codes(self, values: Tensor, keep: Tensor, column: int) -> Tensor:
        """Codes of a categorical column, int64; 0 for what is hidden, unknown or, in training and now and then, chosen."""
        size = self.categorical[column - self.num_numeric].num_embeddings  # of an Embedding, or of what stands for it in another precision
        assert isinstance(size, int)
        known = keep & (values >= 0) & (values < size)
        if self.training:
            known = known & (torch.rand(values.shape, device=values.device) >= UNSEEN_RATE)
        return values.masked_fill(~known, 0).to(torch.int64)


class TransactionEmbedding(FieldEmbedding):
    """Sum of the encoded numbers, one vector per category and, in the form `rows`, one per position, then dropout.

    Takes a batch of fields (B, n, C), C = numeric fields, then categorical codes as numbers; gives (B, n, d_model). A NaN in a numeric
    field counts as missing and contributes nothing; a code outside the known ones counts as code 0, unseen.

    Args:
        config: as for `FieldEmbedding`; its history and form are used too.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.history_length = config.history_length
        self.position = nn.Embedding(config.history_length, config.d_model) if config.form == "rows" else None
        self.draw_tables(*([self.position] if self.position is not None else []))

    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        """Embed (B, n, C) as (B, n, d_model).

        Raises:
            InputError: The batch has another number of fields, or longer windows, than the model was built for.
        """
        rows, length, _ = batch.values.shape
        if length > self.history_length:
            raise InputError(
                f"the batch's windows are {length} transactions long, the model's history is {self.history_length}; cut shorter windows"
            )
        keep = self.keep(batch)
        total = torch.zeros(rows, length, 1, device=keep.device)
        if self.position is not None:
            total = self.position((batch.lengths[:, None] - 1 - torch.arange(length, device=keep.device)).clamp(min=0))
        numbers = batch.values[..., : self.num_numeric].flatten(0, 1)
        present = keep[..., : self.num_numeric].flatten(0, 1)
        for encoder in (self.numeric, self.cycles):
            if encoder is not None:
                total = total + encoder(numbers, present).unflatten(0, (rows, length))
        for column, table in enumerate(self.categorical, start=self.num_numeric):
            total = total + table(self.codes(batch.values[..., column], keep[..., column], column))
        return batch.with_values(self.dropout(total))
