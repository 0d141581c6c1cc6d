"""Relative position by rotation (Su et al. 2021), on half of a head's channels.

Queries and keys are turned by angles that grow with position, so a logit depends on the distance only: nothing is counted from the end of a
sequence, and one pass serves every position of it as a target. The other half stays as it is, for what matters at any distance.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHORTEST, LONGEST = 6.0, 4096.0
"""Wavelengths in positions, of the fastest and the slowest rotation."""


def rotate(x: Tensor, position: Tensor) -> Tensor:
    """Turn half of the channels of `x` (B, n, H, d) by its tokens' `position` (n,) or (B, n); heads of fewer than 4 channels stay."""
    pairs = x.shape[-1] // 4
    if not pairs:
        return x
    # Angles of positions in the millions have no digits left in float32.
    octave = (
        torch.linspace(0, 1, pairs, dtype=torch.float64, device=x.device)
        if pairs > 1
        else torch.zeros(1, dtype=torch.float64, device=x.device)
    )
    speed = 2 * torch.pi / (SHORTEST * (LONGEST / SHORTEST) ** octave)
    angle = (position[..., None].double() * speed)[..., None, :]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    left, right, still = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return torch.cat([left * cos - right * sin, left * sin + right * cos, still], -1)
