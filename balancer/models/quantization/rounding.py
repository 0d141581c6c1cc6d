"""Round weights to lower precision."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 127
"""INT8 is used symmetrically, from -127 to 127."""
TINY = torch.finfo(torch.float32).tiny
"""Smallest scale of a row, so that a row of zeros has one."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def quantize_rows(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Round each row of a weight to signed integers, symmetrically.

    The largest magnitude of a row maps to the largest integer.

    Args:
        weight: (R, d).
        bits: number of bits of the integers.

    Returns:
        int8 (R, d) and float32 scale (R,).
    """
    most = 2 ** (bits - 1) - 1
    if not weight.shape[1]:
        return weight.to(torch.int8), weight.new_full(weight.shape[:1], TINY, dtype=torch.float32)
    scale = (weight.detach().float().abs().amax(1) / most).clamp(min=TINY)
    return (weight.detach().float() / scale[:, None]).round_().to(torch.int8), scale
