"""Rotary position encoding (Su et al. 2021) on half of the channels of a head.

Queries and keys are rotated by angles proportional to their positions, so a logit depends only on the
distance. Positions need not be counted from the end of a sequence, and one pass serves all its positions as
targets. The other half of the channels is not rotated, so that a logit can also ignore the distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST, LONGEST = 6.0, 4096.0
"""Wavelengths, in positions, of the fastest and the slowest rotation."""


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Rotate half of the channels of `x`; heads with fewer than 4 channels are returned unchanged.

    Args:
        x: (B, n, H, d).
        position: (n,) or (B, n) position of each token.
    """
    pairs = x.shape[-1] // 4
    if not pairs:
        return x
    # Computed in float64, because float32 is too inaccurate for angles of positions in the millions.
    octave = (
        torch.linspace(0, 1, pairs, dtype=torch.float64, device=x.device)
        if pairs > 1
        else torch.zeros(1, dtype=torch.float64, device=x.device)
    )
    speed = 2 * torch.pi / (SHORTEST * (LONGEST / SHORTEST) ** octave)
    angle = (position[..., None].double() * speed)[..., None, :]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right, unrotated = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return torch.cat([left * cos - right * sin, left * sin + right * cos, unrotated], -1)
