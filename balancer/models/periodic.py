"""Encoding of numbers by sines and cosines, of learned frequencies or of a known period.

The learned frequencies follow Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep
Learning", section 3.3, where each field has its own linear map and ReLU. In addition, a value is first
replaced by its relative position among the bin edges of the field. The inputs of all frequencies then have
about the same spread, whatever the unit or the tail of the field, and 1e12 is encoded like the largest
training value.
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
"""Number of learned frequencies per field."""
SIGMA = 0.5
"""Standard deviation of the initial frequencies, in periods per standard deviation of a uniform value."""
HARMONICS = 4
"""Number of harmonics of a cycle; with four, the encoding of an hour separates morning from noon."""


class PeriodicEncoder(nn.Module):
    """Encode numeric fields as d channels by sin and cos of 2 pi c x for learned c.

    A linear map and a ReLU follow, and the results are summed over fields. x is the position of the value
    among the edges, scaled to mean 0 and standard deviation 1 for values spread evenly over the bins. A
    missing value (NaN) contributes nothing.

    Args:
        edges: at least two strictly increasing numbers per field.
        d_model: number of output channels.
        sigma: standard deviation of the initial frequencies.
    """

    bins: Tensor

    def __init__(self, edges: Sequence[Sequence[float] | NDArray[np.float32]], d_model: int, *, sigma: float = SIGMA) -> None:
        super().__init__()
        self.places = Bins(edges)
        fields = len(edges)
        # Stored with the weights, so that a model built on the meta device (as quantized models are) gets it
        # on loading.
        self.register_buffer("bins", torch.tensor([len(field) - 1.0 for field in edges]))
        self.frequency = nn.Parameter(torch.randn(fields, FREQUENCIES) * sigma)
        bound = (2 * FREQUENCIES) ** -0.5
        self.weight = nn.Parameter(torch.empty(fields, 2 * FREQUENCIES, d_model).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(fields, d_model).uniform_(-bound, bound))

    def per_field(self, values: Tensor, present: Tensor) -> Tensor:
        """Encode like :meth:`forward`, but without the sum over fields: (R, F, d_model)."""
        cell, is_present, fraction = self.places(values, present)
        place = (cell - self.places.first_cell * self.places.bins + fraction) / self.bins  # 0 at the first edge, 1 at the last
        angle = (2 * place - 1)[..., None] * (self.frequency * (2 * math.pi * math.sqrt(3)))
        waves = torch.cat([angle.sin(), angle.cos()], -1)
        mixed = torch.einsum("rfk,fkd->rfd", waves, self.weight) + self.bias
        each: Tensor = F.relu(mixed) * is_present[..., None]
        return each

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """Encode and project; see :meth:`PiecewiseLinearEncoder.forward` for the arguments and the result."""
        return self.per_field(values, present).sum(1)


class CycleEncoder(nn.Module):
    """Encode cyclic fields as d channels by sin and cos of the first harmonics, and a linear map.

    23:59 is close to 00:00. A missing or infinite value contributes nothing.

    Args:
        columns: for each cycle, the column of its field.
        periods: for each cycle, its period in the field's unit.
        d_model: number of output channels.
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
        """Sines and cosines (R, P, 2 H), zeros where the value is missing."""
        number = values[:, self.column]
        is_present = present[:, self.column] & number.isfinite()
        # Take the remainder first: float32 sines of large angles are inaccurate.
        phase = number.masked_fill(~is_present, 0).remainder(self.period) / self.period
        angle = phase[..., None] * (2 * math.pi * torch.arange(1, HARMONICS + 1, device=phase.device))
        return torch.cat([angle.sin(), angle.cos()], -1) * is_present[..., None]

    def add_to(self, tokens: Tensor, values: Tensor, present: Tensor) -> Tensor:
        """Add the encoded cycles of each field to its token.

        Args:
            tokens: (R, F, d_model), one per numeric field.
            values: (R, F) numbers; NaN is missing.
            present: (R, F) bool, False where a field counts as missing.

        Returns:
            (R, F, d_model).
        """
        return tokens.index_add(1, self.column, torch.einsum("rpk,pkd->rpd", self._waves(values, present), self.weight).to(tokens.dtype))

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """Encode (R, F) numbers as (R, d_model); see :meth:`add_to` for the arguments."""
        return torch.einsum("rpk,pkd->rd", self._waves(values, present), self.weight)
