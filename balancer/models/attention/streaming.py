"""Sparse attention token by token, from a state of constant size.

The state consists of the last window, the global nodes, and candidates for them. A query attends to the same
keys as in one pass over the whole sequence, so the results are equal up to rounding. Global nodes change only
at the start of a chunk. The best tokens of the current chunk are stored as candidates until then, because
they may have left the window.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from balancer.models.attention.layout import Layout


class Nodes(NamedTuple):
    """The k best tokens of a range, best first; empty slots have a score of -inf."""

    score: Tensor
    """(B, k) float32."""
    position: Tensor
    """(B, k) int64."""
    gate: Tensor
    """(B, k) bias of the logit."""
    key: Tensor
    """(B, k, H, d)."""
    value: Tensor
    """(B, k, H, d)."""

    def merged(self, later: Nodes) -> Nodes:
        """Return the best of both; among equal scores the earlier token comes first."""
        both = Nodes(*(torch.cat(pair, 1) for pair in zip(self, later, strict=True)))
        order = both.score.sort(dim=1, descending=True, stable=True).indices[:, : self.score.shape[1]]
        row = torch.arange(len(order), device=order.device)[:, None]
        return Nodes(*(x[row, order] for x in both))

    def chosen(self, other: Nodes, rows: Tensor) -> Nodes:
        """Select `other` in the rows (B,) bool that are True, and this elsewhere."""
        return Nodes(*(torch.where(rows.view(-1, *[1] * (x.ndim - 1)), y, x) for x, y in zip(self, other, strict=True)))


class StreamState(NamedTuple):
    """State of B sequences, which may be at different positions.

    Rows can be selected and combined by index.
    """

    position: Tensor
    """(B,) int64: number of tokens read."""
    key: Tensor
    """(B, window, H, d): the key of position t is in slot t % window."""
    value: Tensor
    """(B, window, H, d)."""
    nodes: Nodes
    """Global nodes."""
    candidates: Nodes
    """Best tokens of the current chunk."""


def empty_state(batch: int, layout: Layout, num_global: int, like: Tensor) -> StreamState:
    """Initial state, with dtype, device, heads and channels of `like` (..., H, d)."""
    slots = torch.zeros(batch, layout.window, *like.shape[-2:], dtype=like.dtype, device=like.device)
    none = torch.full((batch, num_global), -torch.inf, device=like.device)
    at = torch.zeros(batch, num_global, dtype=torch.int64, device=like.device)
    zeros = torch.zeros(batch, num_global, *like.shape[-2:], dtype=like.dtype, device=like.device)
    nodes = Nodes(none, at, torch.zeros_like(none), zeros, zeros)
    return StreamState(torch.zeros(batch, dtype=torch.int64, device=like.device), slots, slots, nodes, nodes)


def state_after(key: Tensor, value: Tensor, score: Tensor | None, gate: Tensor | None, layout: Layout, num_global: int) -> StreamState:
    """Compute the state after one sequence of n >= 1 tokens.

    Args:
        key: (1, n, H, d).
        value: (1, n, H, d).
        score: (1, n), or None without global nodes.
        gate: (1, n), or None.
        layout: windows and chunks.
        num_global: k.
    """
    length = key.shape[1]
    empty = empty_state(1, layout, num_global, key)
    recent = torch.arange(max(0, length - layout.window), length, device=key.device)
    keys, values = (old.index_copy(1, recent % layout.window, new[:, recent]) for old, new in ((empty.key, key), (empty.value, value)))
    nodes, candidates = empty.nodes, empty.candidates
    if score is not None:
        start = (length - 1) // layout.chunk * layout.chunk  # start of the current chunk
        ranks = score.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        bias = torch.zeros_like(ranks) if gate is None else gate.float()
        tokens = Nodes(ranks, torch.arange(length, device=key.device)[None], bias, key, value)
        nodes = nodes.merged(Nodes(*(x[:, :start] for x in tokens)))
        candidates = candidates.merged(Nodes(*(x[:, start:] for x in tokens)))
    return StreamState(torch.full_like(empty.position, length), keys, values, nodes, candidates)


def stream(
    query: Tensor, key: Tensor, value: Tensor, score: Tensor | None, gate: Tensor | None, state: StreamState, layout: Layout
) -> tuple[Tensor, StreamState]:
    """Attend from one token of each sequence to the tokens read before and to itself.

    Args:
        query: (B, H, d).
        key: (B, H, d).
        value: (B, H, d).
        score: (B,), or None without global nodes.
        gate: (B,), or None.
        state: state before the token.
        layout: windows and chunks.

    Returns:
        (B, H, d) and the new state.
    """
    # Under autocast these may have a narrower dtype than the state.
    query, key, value = (each.to(state.key.dtype) for each in (query, key, value))
    at = state.position
    row = torch.arange(len(at), device=at.device)
    nodes, candidates = state.nodes, state.candidates
    if score is not None:
        starts_chunk = at % layout.chunk == 0
        nodes = nodes.chosen(nodes.merged(candidates), starts_chunk)
        candidates = candidates._replace(score=candidates.score.masked_fill(starts_chunk[:, None], -torch.inf))
        ranks = score.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)[:, None]
        node_bias = torch.zeros_like(ranks) if gate is None else gate.float()[:, None]
        candidates = candidates.merged(Nodes(ranks, at[:, None], node_bias, key[:, None], value[:, None]))
    slot = at % layout.window
    keys, values = state.key.index_put((row, slot), key), state.value.index_put((row, slot), value)
    slots = torch.arange(layout.window, device=at.device)
    position = at[:, None] - (at[:, None] - slots) % layout.window  # position in each slot; negative in an empty slot
    first = at // layout.window * layout.window if layout.mode == "block" else at - layout.window + 1
    local = (position >= first[:, None]) & (position >= 0)
    outside = (nodes.score > -torch.inf) & (nodes.position < first[:, None])
    seen = torch.cat([local, outside], 1)
    zero = torch.zeros((), device=at.device)
    bias = torch.cat([zero.where(local, -torch.inf), nodes.gate.where(outside, -torch.inf)], 1)
    # Zeros in slots that are not seen: they may hold NaN, and a weight of 0 times NaN is NaN.
    all_keys, all_values = (
        torch.cat(pair, 1).masked_fill(~seen[..., None, None], 0) for pair in ((keys, nodes.key), (values, nodes.value))
    )
    logits = torch.einsum("bhd,bshd->bhs", query, all_keys) * query.shape[-1] ** -0.5 + bias[:, None].to(query.dtype)
    mixed = torch.einsum("bhs,bshd->bhd", logits.softmax(-1), all_values)
    return mixed, StreamState(at + 1, keys, values, nodes, candidates)
