"""Number of rows of each class in every batch: whole numbers that are exact in each batch and over the epoch.

Rounding each batch separately would never draw a class whose share of a batch is below one half. Carrying the
remainder from batch to batch (the greedy largest remainder) can let the totals of three or more classes drift
from their shares. Systematic rounding has neither problem. The fractional parts of the K quotas lie side by
side on a line of whole length, under a comb of points at distance 1: each class gets as many extra rows as
there are points on its part. So every batch has its exact size, and no class is off by a whole row. The B
batches shift the comb by ``0, 1/B, ..., (B-1)/B``, plus a common random offset. By Hermite's identity the
floors then add up to the floor of the sum, so each class's total over the epoch is off by less than one row,
and exact in expectation. The order of the batches is random.

Source: systematic sampling, W. G. Madow, "On the theory of systematic sampling, II", Annals of Mathematical
Statistics 20 (1949).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError
from balancer.sampling.weights import Floats

_TINY = 1e-9


def batch_share(share: Floats, batch_size: int) -> Floats:
    """(K,) class shares that batches of ``batch_size`` rows can have.

    A class with a share gets at least one row of a batch; the shares of the other classes shrink in
    proportion. Where a batch has fewer rows than there are classes with a share, the shares are unchanged,
    and not every batch holds every class.

    >>> batch_share(np.array([0.9, 0.09, 0.01]), 20).round(4).tolist()
    [0.8636, 0.0864, 0.05]
    """
    share = np.asarray(share, dtype=np.float64) / np.sum(share)
    present = share > 0
    if batch_size < present.sum():
        return share
    least = 1.0 / batch_size
    low = np.zeros(len(share), dtype=bool)
    while True:  # each pass fixes at least one more class, so at most K passes
        rest = present & ~low
        scaled = np.where(rest, share * (1.0 - least * low.sum()) / max(share[rest].sum(), _TINY), least * low)
        newly = rest & (scaled < least * (1.0 - _TINY))
        if not newly.any():
            return np.asarray(scaled, dtype=np.float64)
        low |= newly


def quota_notes(share: Floats, batch_size: int) -> list[str]:
    """What may surprise about batches of ``batch_size`` rows with ``share`` (K,)."""
    present = int((np.asarray(share) > 0).sum())
    if batch_size >= present:
        return []
    return [f"a batch of batch_size={batch_size} can't hold all {present} classes, so each batch lacks some; give at least {present}"]


class QuotaPlan:
    """Number of rows of each class in each batch of an epoch; any part of it can be had alone.

    Args:
        share: (K,) share of each class; :func:`batch_share` raises it to one row a batch.
        num_batches: At least 1.
        batch_size: At least 1.
        rng: For the order of the batches and the common offset.

    Raises:
        InputError: ``num_batches`` or ``batch_size`` is below 1.
    """

    def __init__(self, share: Floats, num_batches: int, batch_size: int, rng: np.random.Generator) -> None:
        if min(num_batches, batch_size) < 1:
            raise InputError(f"num_batches and batch_size must be at least 1, not {num_batches} and {batch_size}")
        ideal = batch_share(share, batch_size) * batch_size
        base = np.floor(ideal + _TINY)
        edges = np.concatenate([[0.0], np.cumsum(np.maximum(ideal - base, 0.0))])
        left = batch_size - int(base.sum())
        self._edges = np.minimum(edges, left)
        # The sum is whole: rounding must neither lose a row nor give one to a class without a share.
        self._edges[np.flatnonzero(ideal)[-1] + 1 :] = left
        self._base = base.astype(np.int64)
        self._order, self._offset = rng.permutation(num_batches), float(rng.random())

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Number of rows of each class in batches ``start`` to ``stop``, or to the last one.

        Returns:
            (n, K) rows. Each batch sums to ``batch_size``. Each entry is ``share * batch_size`` rounded down
            or up. Over all batches each column sums to within one of ``share * batch_size * num_batches``.
        """
        shift = (self._order[start:stop] + self._offset) / len(self._order)
        points = np.floor(self._edges + shift[:, None]).astype(np.int64)
        return np.asarray(self._base + np.diff(points, axis=1))


def quotas(share: Floats, num_batches: int, batch_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(num_batches, K) number of rows of each class in every batch of an epoch; see :class:`QuotaPlan`."""
    return QuotaPlan(share, num_batches, batch_size, rng).rows(0, num_batches)
