"""Missing numbers as values: a learned vector for each field that was missing in training rows.

What is special: a missing number (NaN) contributes nothing to the encoding of a row, as a hidden field does.
That a number is missing often says much (a card without a delivery address), so such a field gets a bin of
its own for it. Its vector starts at zero, and a model without such fields is as before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MissingEncoder(nn.Module):
    """Encode which numbers are missing as d channels.

    Args:
        columns: for each field with a bin for missing values, its column; M in all.
        d_model: number of output channels.
    """

    column: Tensor

    def __init__(self, columns: Sequence[int], d_model: int) -> None:
        super().__init__()
        # Stored with the weights, so that a model built on the meta device (as quantized models are) gets it
        # on loading.
        self.register_buffer("column", torch.tensor(columns, dtype=torch.int64))
        self.weight = nn.Parameter(torch.zeros(len(columns), d_model))

    def _missing(self, values: Tensor, present: Tensor) -> Tensor:
        """Which fields are missing and not hidden, (R, M) bool."""
        return values[:, self.column].isnan() & present[:, self.column]

    def add_to(self, tokens: Tensor, values: Tensor, present: Tensor) -> Tensor:
        """Add the vector of a missing number to the token of its field.

        Args:
            tokens: (R, F, d_model), one per numeric field.
            values: (R, F) numbers; NaN is missing.
            present: (R, F) bool, False where a field is hidden.

        Returns:
            (R, F, d_model).
        """
        each = self._missing(values, present).to(tokens.dtype)[..., None] * self.weight.to(tokens.dtype)
        return tokens.index_add(1, self.column, each)

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """Encode (R, F) numbers as (R, d_model); see :meth:`add_to` for the arguments."""
        missing = self._missing(values, present).to(self.weight.dtype)
        if torch.is_grad_enabled():
            return missing @ self.weight
        # The sum of a row does not depend on the number of rows, as that of a product of matrices would.
        index = torch.arange(len(self.weight), device=missing.device).expand(missing.shape)
        return F.embedding_bag(index, self.weight, mode="sum", per_sample_weights=missing)
