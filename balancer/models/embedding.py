"""Embedding of transactions: encoded numbers, category vectors, and positions relative to the target.

Because positions are counted back, the transaction before the target looks the same in a history of 3 and in
one of 300. In the form `histories`, where every position may be a target, no position is embedded; there the
attention encodes distances (rotary). Field dropout hides a field in the whole window of a row. Without it the
model memorizes the few frauds, which it sees many times, by a single unusual value.
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
from balancer.models.missing import MissingEncoder
from balancer.models.periodic import CycleEncoder, PeriodicEncoder

UNSEEN_RATE = 0.01
"""Probability, in training, of replacing a category by code 0, which trains its vector."""
INITIAL_STD = 0.1
"""Standard deviation of the initial vectors of all tables."""


class FieldEmbedding(nn.Module):
    """Base class of embeddings: the layers of each field, and the masking of hidden and unseen fields.

    Subclasses create their own layers first and then call `init_tables`, so that the order of random draws,
    and with it the weights for a seed, stays the same.

    Args:
        config: its fields, cardinalities, edges, numeric_encoding, cycles, missing, d_model, dropout and
            field_dropout are used.
    """

    hides_whole_windows = True
    """Whether field dropout hides a field at all positions of a row, or at each independently."""

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
        self.missing = (
            MissingEncoder([config.numeric_fields.index(name) for name in config.missing], config.d_model) if config.missing else None
        )
        self.dropout = Dropout(config.dropout)

    def init_tables(self, *others: nn.Module) -> None:
        """Draw the initial weights of the tables of categories, then of the `others`."""
        for table in (*self.categorical, *others):
            assert isinstance(table, nn.Embedding)
            nn.init.normal_(table.weight, std=INITIAL_STD)

    def visible(self, batch: SequenceBatch) -> Tensor:
        """Mask of the fields to use, (B, n, C) bool: False at padding and for hidden fields.

        Fields are hidden by the batch (`SequenceBatch.hidden`) and, in training, by field dropout.

        Raises:
            InputError: The number of fields differs from that of the model.
        """
        rows, length, num_fields = batch.values.shape
        if num_fields != self.num_fields:
            raise InputError(
                f"the batch has {num_fields} fields, the model was built for {self.num_fields}; give the columns of its configuration"
            )
        visible = batch.mask[..., None].expand(-1, -1, num_fields)
        if batch.hidden is not None:
            visible = visible & ~batch.hidden
        if self.training and self.field_dropout > 0:
            draws = torch.rand(rows, 1 if self.hides_whole_windows else length, num_fields, device=visible.device)
            visible = visible & (draws >= self.field_dropout)
        return visible

    def codes(self, values: Tensor, visible: Tensor, column: int) -> Tensor:
        """Codes of a categorical column, int64.

        The code is 0 if the field is not visible or the category is unknown and, in training, for a random
        `UNSEEN_RATE` of the values.
        """
        size = self.categorical[column - self.num_numeric].num_embeddings  # of an Embedding or its quantized replacement
        assert isinstance(size, int)
        known = visible & (values >= 0) & (values < size)
        if self.training:
            known = known & (torch.rand(values.shape, device=values.device) >= UNSEEN_RATE)
        return values.masked_fill(~known, 0).to(torch.int64)


class TransactionEmbedding(FieldEmbedding):
    """Sum of the vectors of numbers, categories and, in the form `rows`, positions; then dropout.

    Maps a batch of fields (B, n, C), numeric fields first, then categorical codes as numbers, to (B, n,
    d_model). A NaN in a numeric field is a missing value; it contributes a learned vector where the
    configuration says so (`missing`), and nothing in other fields. A code outside the known range counts as
    code 0, unseen.

    Args:
        config: as for `FieldEmbedding`; its history_length and form are used too.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.history_length = config.history_length
        self.position = nn.Embedding(config.history_length, config.d_model) if config.form == "rows" else None
        self.init_tables(*([self.position] if self.position is not None else []))

    def forward(self, batch: SequenceBatch) -> SequenceBatch:
        """Embed (B, n, C) as (B, n, d_model).

        Raises:
            InputError: The number of fields differs from that of the model, or the windows are longer than
                its history.
        """
        rows, length, _ = batch.values.shape
        if length > self.history_length:
            raise InputError(
                f"the windows of the batch are {length} transactions long, the model's history is {self.history_length}; cut shorter windows"
            )
        visible = self.visible(batch)
        total = torch.zeros(rows, length, 1, device=visible.device)
        if self.position is not None:
            total = self.position((batch.lengths[:, None] - 1 - torch.arange(length, device=visible.device)).clamp(min=0))
        numbers = batch.values[..., : self.num_numeric].flatten(0, 1)
        present = visible[..., : self.num_numeric].flatten(0, 1)
        for encoder in (self.numeric, self.cycles, self.missing):
            if encoder is not None:
                total = total + encoder(numbers, present).unflatten(0, (rows, length))
        for column, table in enumerate(self.categorical, start=self.num_numeric):
            total = total + table(self.codes(batch.values[..., column], visible[..., column], column))
        return batch.with_values(self.dropout(total))
