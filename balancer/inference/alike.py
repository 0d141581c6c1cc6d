"""Batches of equal shape, so that the scores of a row do not depend on the rows that are scored with it.

Matrix products of other shapes add in another order, which changes the last bits. So a table that is scored
as a whole and the same rows scored in pieces have equal scores only if all batches have the same shape: the
last batch is filled up with rows whose scores are not used.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from balancer.data.store import TransactionStore
from balancer.inference.batches import HistoryBatch
from balancer.models import ModelConfig, SequenceBatch

TOKENS = 8_192
"""Positions in a batch of segments of history."""
STEP = 32
"""Widths of segments are multiples of it, so that there are few shapes."""


def alike_batches(
    store: TransactionStore, rows: np.ndarray, config: ModelConfig, *, size: int, device: torch.device
) -> Iterator[HistoryBatch]:
    """Batch target rows as :func:`balancer.inference.batches.target_batches`, in batches of fixed shapes.

    In the form `histories` the shape depends on the width of the segment alone.

    Args:
        store: The transactions.
        rows: (n,) target store rows.
        config: Form and history length of the classifier.
        size: Targets per batch; in the form `histories` their number is filled up to a multiple of it.
        device: Where the batches are.

    Yields:
        Batches whose ``targets`` are at least as many as ``index``; the first ones belong to it.
    """
    if config.form == "histories":
        yield from _segments(store, rows, config.history_length, size, device)
        return
    for begin in range(0, len(rows), size):
        chosen = _filled_up(rows[begin : begin + size], size)
        values, lengths = store.windows(chosen, config.history_length)
        targets = (torch.arange(size, device=device), torch.as_tensor(lengths - 1, device=device))
        index = np.arange(begin, min(begin + size, len(rows)))
        yield HistoryBatch(SequenceBatch.from_windows(values, lengths, device), targets, index, chosen - lengths + 1)


def _segments(store: TransactionStore, rows: np.ndarray, history: int, size: int, device: torch.device) -> Iterator[HistoryBatch]:
    segments = store.segments(rows, history)
    lengths = segments.last - segments.first + 1
    widths = np.minimum(-(-lengths // STEP) * STEP, history)
    order = np.argsort(segments.segment, kind="stable")  # targets by segment
    bounds = np.searchsorted(segments.segment[order], np.arange(len(lengths) + 1))
    for width in np.unique(widths):
        members, count = np.flatnonzero(widths == width), max(1, TOKENS // int(width))
        for begin in range(0, len(members), count):
            used = members[begin : begin + count]
            chosen = _filled_up(used, count)
            first, last = segments.first[chosen], segments.last[chosen]
            batch = SequenceBatch.from_windows(store.slices(first, last, int(width)), lengths[chosen], device)
            index = np.concatenate([order[bounds[each] : bounds[each + 1]] for each in used])
            place = np.repeat(np.arange(len(used)), bounds[used + 1] - bounds[used])
            number = -(-len(index) // size) * size
            targets = tuple(torch.as_tensor(_filled_up(x, number), device=device) for x in (place, segments.position[index]))
            yield HistoryBatch(batch, (targets[0], targets[1]), index, first)


def _filled_up(values: NDArray[np.integer], size: int) -> NDArray[np.integer]:
    """``values`` and then the last of them again, ``size`` in all."""
    return np.concatenate([values, np.repeat(values[-1:], size - len(values))])
