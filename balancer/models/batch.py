"""`SequenceBatch`: the one currency between embedding, attention, blocks and head.

Rows are left-aligned: the oldest transaction stands at position 0, the target at position `length - 1`, padding after it. With a causal
attention no real position can then see padding, so no padding mask is needed on the way. The price is one rule that every part keeps:
what it hands on is zero where `mask` is false, which `with_values` takes care of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Targets = tuple[Tensor, Tensor]
"""Positions to judge in a batch of sequences: rows (T,) and positions (T,), int64."""


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """A batch of windows, or of what a part of the model has made of them.

    Attributes:
        values: (B, n, C) float: C input fields (numeric, then categorical codes), or d channels further on.
        lengths: (B,) int64, how many positions of a row are real, 0 to n.
        mask: (B, n) bool, True where a position is real.
    """

    values: Tensor
    lengths: Tensor
    mask: Tensor

    @classmethod
    def from_windows(
        cls, values: NDArray[np.float32] | Tensor, lengths: NDArray[np.int64] | Tensor, device: torch.device | str = "cpu"
    ) -> SequenceBatch:
        """Wrap left-aligned windows, as a transaction store gives them, on `device`.

        Args:
            values: (B, n, C) float32, oldest first; what stands after a row's length is ignored.
            lengths: (B,) integers from 0 to n.
            device: where the tensors go.

        Raises:
            ValueError: The shapes do not fit, or a length is outside 0 to n.
        """
        value = torch.as_tensor(values)
        length = torch.as_tensor(lengths).to(torch.int64)
        if value.ndim != 3 or length.shape != value.shape[:1]:
            raise ValueError(f"windows are (B, n, C) with lengths (B,), given {tuple(value.shape)} and {tuple(length.shape)}")
        if length.numel() and (int(length.min()) < 0 or int(length.max()) > value.shape[1]):
            raise ValueError(f"lengths must lie within 0 to {value.shape[1]}, given {int(length.min())} to {int(length.max())}")
        target = torch.device(device)
        if target.type == "cuda" and value.device.type == length.device.type == "cpu":
            value, length = value.pin_memory(), length.pin_memory()  # lets the copies run beside the kernels
        value = value.to(target, torch.float32, non_blocking=True)
        length = length.to(target, non_blocking=True)
        return cls(value, length, torch.arange(value.shape[1], device=target) < length[:, None])

    def to(self, device: torch.device | str) -> SequenceBatch:
        """The same batch on another device."""
        return SequenceBatch(self.values.to(device), self.lengths.to(device), self.mask.to(device))

    def with_values(self, values: Tensor) -> SequenceBatch:
        """The same rows and positions with other finite values (B, n, d), set to zero where there is padding."""
        return SequenceBatch(values * self.mask[..., None], self.lengths, self.mask)

    def last(self) -> SequenceBatch:
        """The last real position of each row as a batch of its own, (B, 1, C); zeros for a row of padding only."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        real = (self.lengths > 0)[:, None]
        values = self.values[rows, (self.lengths - 1).clamp(min=0)][:, None]
        return SequenceBatch(values.masked_fill(~real[..., None], 0), real[:, 0].to(torch.int64), real)

    def at(self, row: Tensor, position: Tensor) -> SequenceBatch:
        """The positions (row (T,), position (T,)), all real, as T rows of one position each: (T, 1, C)."""
        one = torch.ones_like(row)
        return SequenceBatch(self.values[row, position][:, None], one, one[:, None].bool())
