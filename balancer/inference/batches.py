"""Batches of target rows with their histories, for both forms of the classifier.

In the form `rows` every target has a window of its own. In the form `histories` one segment of history serves
all its targets in one forward pass. The sampler alone decides which rows are targets, and how often; only
their order depends on the segments. Segments of similar length share a batch, and a batch has at most
`MAX_TOKENS` positions including padding, so memory does not depend on how the targets are distributed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from balancer.data.store import Segments, TransactionStore
from balancer.models import ModelConfig, SequenceBatch, Targets

MAX_TOKENS = 32_768
"""Positions in a batch, padding included; their activations take a few hundred megabytes."""

WHOLE = (0, 1)
"""Every batch."""


@dataclass(frozen=True)
class HistoryBatch:
    """Histories for one forward pass, and their targets."""

    batch: SequenceBatch
    """S histories."""
    targets: Targets
    """Row in the batch (T,) and position in the history (T,) of each target."""
    index: np.ndarray
    """(T,) index of each target in the rows that were requested."""
    first: np.ndarray
    """(S,) store row at which each history begins."""


def target_batches(
    store: TransactionStore, rows: np.ndarray, config: ModelConfig, *, size: int, device: torch.device, part: tuple[int, int] = WHOLE
) -> Iterator[HistoryBatch]:
    """Batch target rows in the form that a classifier reads.

    Args:
        store: The transactions.
        rows: (n,) target store rows.
        config: Form and history length of the classifier.
        size: Targets per batch in the form `rows`; segments are batched by `MAX_TOKENS`.
        device: Where the batches are.
        part: (r, W) to make only every W-th batch from the r-th on.
    """
    first, every = part
    if config.form == "histories":
        yield from history_batches(store, rows, config.history_length, device, part)
        return
    for begin in range(first * size, len(rows), every * size):
        chosen = rows[begin : begin + size]
        values, lengths = store.windows(chosen, config.history_length)
        targets = (torch.arange(len(chosen), device=device), torch.as_tensor(lengths - 1, device=device))
        index = np.arange(begin, begin + len(chosen))
        yield HistoryBatch(SequenceBatch.from_windows(values, lengths, device), targets, index, chosen - lengths + 1)


def history_batches(
    store: TransactionStore, rows: np.ndarray, history: int, device: torch.device, part: tuple[int, int] = WHOLE
) -> Iterator[HistoryBatch]:
    """Batch target rows by segments of history, the shortest segments first.

    Args:
        store: The transactions.
        rows: (n,) target store rows.
        history: Longest segment, in rows.
        device: Where the batches are.
        part: (r, W) to make only every W-th batch from the r-th on.
    """
    segments = store.segments(rows, history)
    order = np.argsort(segments.last - segments.first, kind="stable")
    lengths = (segments.last - segments.first + 1)[order]
    for chosen in islice(_token_slices(lengths), part[0], None, part[1]):
        yield _batch(store, segments, order[chosen], device)


def minibatches(store: TransactionStore, rows: np.ndarray, history: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Split target rows into optimizer steps of about `size` targets: whole segments, in random order.

    Args:
        store: The transactions.
        rows: (n,) target store rows.
        history: Longest segment, in rows.
        size: Targets per step.
        rng: Order of the segments.

    Yields:
        Indices into `rows`, ceil(n / size) times. An array is empty if the segment of the previous step has
        very many targets.
    """
    segments = store.segments(rows, history)
    shuffled = rng.permutation(len(segments.first))
    rank = np.empty_like(shuffled)
    rank[shuffled] = np.arange(len(shuffled))
    order = np.argsort(rank[segments.segment], kind="stable")
    counts = np.bincount(rank[segments.segment], minlength=len(shuffled))
    # A segment belongs to the step of its first target.
    step = ((np.cumsum(counts) - counts) // size)[rank[segments.segment[order]]]
    yield from np.split(order, np.searchsorted(step, np.arange(1, -(-len(rows) // size))))


def _token_slices(lengths: np.ndarray) -> Iterator[slice]:
    """Cut increasing `lengths` (S,) into slices of at most `MAX_TOKENS` positions, but at least one segment.

    A slice is padded to its longest segment, which is its last.
    """
    begin = 0
    while begin < len(lengths):
        padded = lengths[begin:] * np.arange(1, len(lengths) - begin + 1)
        end = begin + max(1, int(np.searchsorted(padded, MAX_TOKENS, side="right")))
        yield slice(begin, end)
        begin = end


def _batch(store: TransactionStore, segments: Segments, chosen: np.ndarray, device: torch.device) -> HistoryBatch:
    first, last = segments.first[chosen], segments.last[chosen]
    lengths = last - first + 1
    batch = SequenceBatch.from_windows(store.slices(first, last, int(lengths.max())), lengths, device)
    place = np.full(len(segments.first), -1)
    place[chosen] = np.arange(len(chosen))
    index = np.flatnonzero(place[segments.segment] >= 0)
    targets = tuple(torch.as_tensor(x, device=device) for x in (place[segments.segment[index]], segments.position[index]))
    return HistoryBatch(batch, (targets[0], targets[1]), index, first)
