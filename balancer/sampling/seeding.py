"""Counter-based randomness: a generator is a function of (seed, purpose, indices), so that resuming needs no generator state."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """NumPy generator for one purpose, e.g. ``generator(seed, "draw", epoch)``; independent for every other purpose and index."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *index])


def integer_seed(seed: int, purpose: str, *index: int) -> int:
    """Non-negative 31-bit integer for libraries that take one (torch, LightGBM, scikit-learn)."""
    return int(generator(seed, purpose, *index).integers(2**31 - 1))
