"""Numbers as sines and cosines: of learned frequencies for any number, of a known period for what comes round again, as the hour of the day.

The frequencies are those of Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning", section 3.3, each field with
a linear map and a ReLU of its own. What is special: a value is first replaced by its place among the field's bin edges. Cents or euros, a long
tail or none, the frequencies see about the same spread, and 1e12 is no more than the largest value of train.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from balancer.models.encoding import Bins

FREQUENCIES = 16
"""Learned frequencies per field."""
SIGMA = 0.5
"""Standard deviation of their first values, in turns per standard deviation of a uniform value."""
HARMONICS = 4
"""Sines of 1 to this many times the frequency of a cycle: the fourth of a day still tells morning from noon."""


class PeriodicEncoder(nn.Module):
    """Numeric fields to d channels: per field sin and cos of 2 pi c x for learned c, then a linear map and a ReLU, summed over the fields.

    x is the value's place among the edges, scaled to mean 0 and standard deviation 1 for values spread evenly over the bins. A missing value
    (NaN) contributes nothing.

    Args:
        edges: per field at least two strictly increasing numbers.
        d_model: channels of the output.
        sigma: standard deviation of the first frequencies.
    """

    bins: Tensor

    def __init__(self, edges: Sequence[Sequence[float] | NDArray[np.float32]], d_model: int, *, sigma: float = SIGMA) -> None:
        super().__init__()
        self.places = Bins(edges)
        fields = len(edges)
        # Kept with the weights, so that a model built without memory (quantized ones are) gets it back.
        self.register_buffer("bins", torch.tensor([len(field) - 1.0 for field in edges]))
        self.frequency = nn.Parameter(torch.randn(fields, FREQUENCIES) * sigma)
        bound = (2 * FREQUENCIES) ** -0.5
        self.weight = nn.Parameter(torch.empty(fields, 2 * FREQUENCIES, d_model).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(fields, d_model).uniform_(-bound, bound))

    def each(self, values: Tensor, present: Tensor) -> Tensor:
        """Numbers (R, F), and whether they are to count (R, F) bool, to one vector per field, (R, F, d_model)."""
        cell, there, fraction = self.places(values, present)
        place = (cell - self.places.first_cell * self.places.bins + fraction) / self.bins  # 0 at the first edge, 1 at the last
        angle = (2 * place - 1)[..., None] * (self.frequency * (2 * math.pi * math.sqrt(3)))
        waves = torch.cat([angle.sin(), angle.cos()], -1)
        mixed = torch.einsum("rfk,fkd->rfd", waves, self.weight) + self.bias
        each: Tensor = F.relu(mixed) * there[..., None]
        return each

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """Encode and project.

        Args:
            values: (R, F) numbers; NaN counts as missing.
            present: (R, F) bool, False where a field is to count as missing.

        Returns:
            (R, d_model).
        """
        return self.each(values, present).sum(1)


class CycleEncoder(nn.Module):
    """Fields of known periods to d channels: sin and cos of the first harmonics, then a linear map; 23:59 lies beside 00:00.

    A value that is missing or infinite contributes nothing.

    Args:
        columns: per cycle the column of its field.
        periods: per cycle its period, in the field's unit.
        d_model: channels of the output.
    """

    column: Tensor
    period: Tensor

    def __init__(self, columns: Sequence[int], periods: Sequence[float], d_model: int) -> None:
        super().__init__()
        self.register_buffer("column", torch.tensor(columns, dtype=torch.int64))
        self.register_buffer("period", torch.tensor(periods, dtype=torch.float32))
        bound = (2 * HARMONICS * len(periods)) ** -0.5
        self.weight = nn.Parameter(torch.empty(len(periods), 2 * HARMONICS, d_model).uniform_(-bound, bound))

    def _waves(self, values: Tensor, present: Tensor) -> Tensor:
        """(R, P, 2 H), zeros for what is missing."""
        own = values[:, self.column]
        there = present[:, self.column] & own.isfinite()
        # The remainder first: sines of large angles are noise in float32.
        turn = own.masked_fill(~there, 0).remainder(self.period) / self.period
        angle = turn[..., None] * (2 * math.pi * torch.arange(1, HARMONICS + 1, device=turn.device))
        return torch.cat([angle.sin(), angle.cos()], -1) * there[..., None]

    def add_to(self, tokens: Tensor, values: Tensor, present: Tensor) -> Tensor:
        """`tokens` (R, F, d_model), one per numeric field, with the cycles of each field of `values` (R, F) added to its own."""
        return tokens.index_add(1, self.column, torch.einsum("rpk,pkd->rpd", self._waves(values, present), self.weight).to(tokens.dtype))

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """Numbers (R, F), and whether they are to count (R, F) bool, to (R, d_model)."""
        return torch.einsum("rpk,pkd->rd", self._waves(values, present), self.weight)
