"""`SequenceBatch`: the batch type that embedding, attention, blocks and head exchange.

Rows are left-aligned: the oldest transaction is at position 0, the target at position `length - 1`, and
padding follows. With causal attention no real position can therefore see padding, and no padding mask is
needed. In return every part must follow one rule: its output is zero wherever `mask` is False. `with_values`
ensures this.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Targets = tuple[Tensor, Tensor]
"""Positions to score in a batch of sequences: rows (T,) and positions (T,), int64."""


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """A batch of windows: the input fields, or the output of a part of the model.

    Attributes:
        values: (B, n, C) float. In the input, C is the number of fields (numeric fields, then categorical
            codes); after the embedding, C is `d_model`.
        lengths: (B,) int64, number of real positions in each row, from 0 to n.
        mask: (B, n) bool, True where a position is real.
        margin: (B,) float, log-odds that :meth:`Classifier.logits` adds to the fraud logit of an encoded row;
            None for none. Only the output of :meth:`Classifier.encode` has it.
        hidden: (B, n, C) or (B, 1, C) bool, fields of the input that an embedding must not use; None for
            none. A hidden field differs from a missing value, which is NaN.
    """

    values: Tensor
    lengths: Tensor
    mask: Tensor
    margin: Tensor | None = None
    hidden: Tensor | None = None

    @classmethod
    def from_windows(
        cls, values: NDArray[np.float32] | Tensor, lengths: NDArray[np.int64] | Tensor, device: torch.device | str = "cpu"
    ) -> SequenceBatch:
        """Wrap left-aligned windows, as returned by a transaction store, on `device`.

        Args:
            values: (B, n, C) float32, oldest first; values beyond a row's length are ignored.
            lengths: (B,) integers from 0 to n.
            device: device of the resulting tensors.

        Raises:
            ValueError: The shapes do not match, or a length is outside 0 to n.
        """
        value = torch.as_tensor(values)
        length = torch.as_tensor(lengths).to(torch.int64)
        if value.ndim != 3 or length.shape != value.shape[:1]:
            raise ValueError(f"windows must be (B, n, C) and lengths (B,), given {tuple(value.shape)} and {tuple(length.shape)}")
        if length.numel() and (int(length.min()) < 0 or int(length.max()) > value.shape[1]):
            raise ValueError(f"lengths must be from 0 to {value.shape[1]}, given {int(length.min())} to {int(length.max())}")
        target = torch.device(device)
        if target.type == "cuda" and value.device.type == length.device.type == "cpu":
            value, length = value.pin_memory(), length.pin_memory()  # pinned memory lets the copies overlap with kernels
        value = value.to(target, torch.float32, non_blocking=True)
        length = length.to(target, non_blocking=True)
        return cls(value, length, torch.arange(value.shape[1], device=target) < length[:, None])

    def to(self, device: torch.device | str) -> SequenceBatch:
        """Copy the batch to another device."""
        hidden = None if self.hidden is None else self.hidden.to(device)
        return SequenceBatch(self.values.to(device), self.lengths.to(device), self.mask.to(device), hidden=hidden)

    def with_values(self, values: Tensor) -> SequenceBatch:
        """Replace the values by other values (B, n, d), with zeros at padding."""
        return SequenceBatch(values.masked_fill(~self.mask[..., None], 0), self.lengths, self.mask)

    def last(self) -> SequenceBatch:
        """Select the last real position of each row: (B, 1, C), zeros for a row that is all padding."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        real = (self.lengths > 0)[:, None]
        values = self.values[rows, (self.lengths - 1).clamp(min=0)][:, None]
        return SequenceBatch(values.masked_fill(~real[..., None], 0), real[:, 0].to(torch.int64), real)

    def at(self, row: Tensor, position: Tensor) -> SequenceBatch:
        """Select T real positions, each as a row of length 1.

        Args:
            row: (T,) index of the row.
            position: (T,) position within that row.

        Returns:
            Batch of values (T, 1, C).
        """
        one = torch.ones_like(row)
        return SequenceBatch(self.values[row, position][:, None], one, one[:, None].bool())
