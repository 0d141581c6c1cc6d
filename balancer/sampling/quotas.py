"""How many rows of each class every batch holds: whole numbers that add up, in each batch and over the epoch.

Rounding each batch by itself would never draw a class whose share of a batch is below one half, and carrying the remainder from batch to batch (the greedy
largest remainder) can let three or more classes run away from their shares. Systematic rounding does neither. Put the fractional parts side by side on a line
of whole length and lay a comb of unit pitch over it: each class gets as many extra rows as teeth fall on its part, so a batch never misses its size and no class
is off by a whole row. The B batches shift the comb by ``0, 1/B, ..., (B-1)/B`` (and a common random part); by Hermite's identity the floors then add up to the
floor of the sum, so each class's total over the epoch is off by less than one row, and exact in expectation. The batches go in random order.

Source: systematic sampling, W. G. Madow, "On the theory of systematic sampling, II", Annals of Mathematical Statistics 20 (1949).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.weights import Floats

_TINY = 1e-9


def batch_share(share: Floats, batch_size: int) -> Floats:
    """(K,) shares that batches of ``batch_size`` rows can keep: no class with a share has less than one row, the others give way in proportion.

    Where there are fewer rows than classes with a share, the shares stay as they are, and not every batch holds every class.

    >>> batch_share(np.array([0.9, 0.09, 0.01]), 20).round(4).tolist()
    [0.8636, 0.0864, 0.05]
    """
    share = np.asarray(share, dtype=np.float64) / np.sum(share)
    there = share > 0
    if batch_size < there.sum():
        return share
    least = 1.0 / batch_size
    low = np.zeros(len(share), dtype=bool)
    while True:  # each turn fixes at least one class more, so at most K turns
        rest = there & ~low
        scaled = np.where(rest, share * (1.0 - least * low.sum()) / max(share[rest].sum(), _TINY), least * low)
        newly = rest & (scaled < least * (1.0 - _TINY))
        if not newly.any():
            return np.asarray(scaled, dtype=np.float64)
        low |= newly


def quotas(share: Floats, num_batches: int, batch_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of each class in each batch.

    Args:
        share: (K,) share of each class; raised to one row a batch by :func:`batch_share`.
        num_batches, batch_size: at least 1 each.
        rng: for the order of the batches and the common shift.

    Returns:
        (num_batches, K): lines sum to ``batch_size``; each entry is ``share * batch_size`` rounded down or up; each column sums to within one of
        ``share * batch_size * num_batches``.
    """
    if min(num_batches, batch_size) < 1:
        raise InputError(f"num_batches and batch_size must be at least 1, not {num_batches} and {batch_size}")
    ideal = batch_share(share, batch_size) * batch_size
    base = np.floor(ideal + _TINY)
    edges = np.concatenate([[0.0], np.cumsum(np.maximum(ideal - base, 0.0))])
    left = batch_size - int(base.sum())
    edges = np.minimum(edges, left)
    edges[np.flatnonzero(ideal)[-1] + 1 :] = left  # the sum is whole; rounding must not lose a row, nor give one to a class without a share
    shift = rng.permutation(num_batches) + rng.random()
    teeth = np.floor(edges + (shift / num_batches)[:, None]).astype(np.int64)
    return np.asarray(base.astype(np.int64) + np.diff(teeth, axis=1))
