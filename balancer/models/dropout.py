"""Dropout that needs only 16 random bits per channel.

On a CPU torch's dropout draws a 64-bit number for each channel, one after another, and took a sixth of the
time of a training step. Here four channels share one 64-bit number. The probability is therefore rounded to a
multiple of 1 / 65,536.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16


class Dropout(nn.Module):
    """Zero channels with probability `p` in training and scale the others by 1 / (1 - p).

    On CUDA this is torch's dropout.

    Args:
        p: probability, from 0 to below 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout; the result has the shape of `x`."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        dropped = round(self.p * LEVELS)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
        return x * (keep * (LEVELS / (LEVELS - dropped)))

    def extra_repr(self) -> str:
        """Show the probability in the printed module."""
        return f"p={self.p}"
