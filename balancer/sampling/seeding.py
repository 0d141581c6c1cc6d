"""Counter-based randomness: a generator is a function of (seed, purpose, indices).

So resuming a run needs no state of a generator.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """NumPy generator for one purpose, e.g. ``generator(seed, "draw", epoch)``.

    Generators of different purposes or indices are independent.
    """
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *index])


def integer_seed(seed: int, purpose: str, *index: int) -> int:
    """Non-negative 31-bit seed for libraries that need an integer (torch, LightGBM, scikit-learn)."""
    return int(generator(seed, purpose, *index).integers(2**31 - 1))
