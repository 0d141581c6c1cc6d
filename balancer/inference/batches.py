"""Batches of whole histories for the form `histories`: one stretch of history serves all its targets in one forward pass.

Which targets are judged, and how often, is the sampler's choice and is kept exactly; only their order is by stretch. Stretches of similar length go
together, and a batch holds at most `MAX_TOKENS` positions, padding counted, so memory does not depend on how targets fall.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from balancer.data.store import Segments, TransactionStore
from balancer.models import SequenceBatch, Targets

MAX_TOKENS = 32_768
"""Positions in a batch, padding counted: the activations of some hundred megabytes."""


@dataclass(frozen=True)
class SequencePart:
    """Stretches that fit in one pass, and their targets."""

    batch: SequenceBatch
    targets: Targets
    which: np.ndarray
    """(T,) index of each target in the rows that were asked for."""
    first: np.ndarray
    """(S,) store row at which each stretch begins."""


def sequence_parts(store: TransactionStore, rows: np.ndarray, history: int, device: torch.device) -> Iterator[SequencePart]:
    """Split the target store ``rows`` (n,) into passes over stretches of at most ``history`` rows, the shortest first."""
    segments = store.segments(rows, history)
    order = np.argsort(segments.last - segments.first, kind="stable")
    lengths = (segments.last - segments.first + 1)[order]
    # Sorted by length, a batch's width is its last stretch's; it is full when one more would exceed the tokens.
    for chosen in _packed(lengths):
        yield _part(store, segments, order[chosen], device)


def minibatches(store: TransactionStore, rows: np.ndarray, history: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices into ``rows`` (n,) for one optimizer step after another, about ``size`` targets each: whole stretches, in random order.

    There are ceil(n / size) of them; one may be empty where the stretch before it holds many targets.
    """
    segments = store.segments(rows, history)
    shuffled = rng.permutation(len(segments.first))
    rank = np.empty_like(shuffled)
    rank[shuffled] = np.arange(len(shuffled))
    order = np.argsort(rank[segments.segment], kind="stable")
    counts = np.bincount(rank[segments.segment], minlength=len(shuffled))
    # A stretch belongs to the step in which its first target falls.
    step = ((np.cumsum(counts) - counts) // size)[rank[segments.segment[order]]]
    yield from np.split(order, np.searchsorted(step, np.arange(1, -(-len(rows) // size))))


def _packed(lengths: np.ndarray) -> Iterator[slice]:
    """Slices of ``lengths`` (S,), increasing, each of at most MAX_TOKENS positions when padded to its last, and at least one stretch."""
    begin = 0
    while begin < len(lengths):
        padded = lengths[begin:] * np.arange(1, len(lengths) - begin + 1)
        end = begin + max(1, int(np.searchsorted(padded, MAX_TOKENS, side="right")))
        yield slice(begin, end)
        begin = end


def _part(store: TransactionStore, segments: Segments, chosen: np.ndarray, device: torch.device) -> SequencePart:
    first, last = segments.first[chosen], segments.last[chosen]
    lengths = last - first + 1
    batch = SequenceBatch.from_windows(store.slices(first, last, int(lengths.max())), lengths, device)
    place = np.full(len(segments.first), -1)
    place[chosen] = np.arange(len(chosen))
    own = np.flatnonzero(place[segments.segment] >= 0)
    targets = tuple(torch.as_tensor(x, device=device) for x in (place[segments.segment[own]], segments.position[own]))
    return SequencePart(batch, (targets[0], targets[1]), own, first)
