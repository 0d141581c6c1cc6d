"""Exact quotas of batches that are drawn from shards: each shard gives as many rows to every batch.

The rows of a rarer class in a batch are divided among the shards by systematic rounding, in proportion to the
shards' rows of the class: its total is exact, and each shard's expected part too. The commonest class fills
the rest of each shard's rows. A shard with too many rows of the rarer classes hands some over to shards that
have the class and room for it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shard_quotas(counts: NDArray[np.int64], shard_counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Number of rows of each class that each shard gives to each batch.

    Args:
        counts: (n, K) rows of each class in each batch; each batch has a multiple of S rows.
        shard_counts: (S, K) rows of each class in each shard; each shard has rows of class 0.
        rng: Source of randomness.

    Returns:
        (n, S, K). The sum over the classes is the same for every batch and shard. The sum over the shards is
        ``counts``, wherever the shards that hold the rarer classes have room for them.
    """
    (batches, num_classes), num_shards = counts.shape, len(shard_counts)
    size = int(counts[0].sum()) // num_shards
    result = np.zeros((batches, num_shards, num_classes), dtype=np.int64)
    for c in range(1, num_classes):
        edges = np.concatenate([[0.0], np.cumsum(shard_counts[:, c]) / max(int(shard_counts[:, c].sum()), 1)])
        points = np.floor(counts[:, c, None] * edges + rng.random((batches, 1))).astype(np.int64)
        result[:, :, c] = np.diff(points, axis=1)
    for batch in np.flatnonzero((result.sum(axis=2) > size).any(axis=1)).tolist():
        _make_room(result[batch], shard_counts, size)
    result[:, :, 0] = size - result[:, :, 1:].sum(axis=2)
    return result


def _make_room(quota: NDArray[np.int64], shard_counts: NDArray[np.int64], size: int) -> None:
    """Move rows of shards that have more than ``size`` of them, in ``quota`` (S, K), to shards with room.

    Where no shard with the class has room, the row is left to the commonest class.
    """
    for shard in np.flatnonzero(quota.sum(axis=1) > size).tolist():
        while quota[shard].sum() > size:
            room = size - quota.sum(axis=1)
            able = (shard_counts > 0) & (room > 0)[:, None] & (quota[shard] > 0)
            able[:, 0] = False
            if able.any():
                c = int(np.argmax(np.where(able.any(axis=0), quota[shard], -1)))
                quota[int(np.argmax(np.where(able[:, c], room, -1))), c] += 1
            else:
                c = 1 + int(np.argmax(quota[shard, 1:]))
            quota[shard, c] -= 1
