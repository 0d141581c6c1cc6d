"""One token after another from a state of constant size: the last window, the global nodes, and the open chunk's candidates.

What a query sees is the same as in one pass over the whole sequence, so the result is too, up to rounding. Global nodes change at the borders of
chunks only, as they do there; until then the best tokens of the open chunk wait beside them, because by then they may have left the window.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from balancer.models.attention.layout import Layout


class Nodes(NamedTuple):
    """The k best tokens of a stretch, best first; empty slots have a score of -inf."""

    score: Tensor
    """(B, k) float32."""
    position: Tensor
    """(B, k) int64."""
    gate: Tensor
    """(B, k) what is added to the logit."""
    key: Tensor
    """(B, k, H, d)."""
    value: Tensor
    """(B, k, H, d)."""

    def merged(self, later: Nodes) -> Nodes:
        """The best of both; of equal scores the earlier token wins."""
        both = Nodes(*(torch.cat(pair, 1) for pair in zip(self, later, strict=True)))
        order = both.score.sort(dim=1, descending=True, stable=True).indices[:, : self.score.shape[1]]
        row = torch.arange(len(order), device=order.device)[:, None]
        return Nodes(*(x[row, order] for x in both))

    def chosen(self, other: Nodes, rows: Tensor) -> Nodes:
        """`other` in the rows (B,) bool, else this."""
        return Nodes(*(torch.where(rows.view(-1, *[1] * (x.ndim - 1)), y, x) for x, y in zip(self, other, strict=True)))


class StreamState(NamedTuple):
    """What attention remembers of B sequences, which may stand at different positions. Rows can be taken out and put together by index."""

    position: Tensor
    """(B,) int64: tokens read."""
    key: Tensor
    """(B, window, H, d): the key of position t in slot t % window."""
    value: Tensor
    """(B, window, H, d)."""
    nodes: Nodes
    """The global nodes."""
    waiting: Nodes
    """The best of the open chunk."""


def empty_state(batch: int, layout: Layout, num_global: int, like: Tensor) -> StreamState:
    """Nothing read; dtype, device, heads and channels as `like` (..., H, d)."""
    slots = torch.zeros(batch, layout.window, *like.shape[-2:], dtype=like.dtype, device=like.device)
    none = torch.full((batch, num_global), -torch.inf, device=like.device)
    at = torch.zeros(batch, num_global, dtype=torch.int64, device=like.device)
    node = torch.zeros(batch, num_global, *like.shape[-2:], dtype=like.dtype, device=like.device)
    nodes = Nodes(none, at, torch.zeros_like(none), node, node)
    return StreamState(torch.zeros(batch, dtype=torch.int64, device=like.device), slots, slots, nodes, nodes)


def state_after(key: Tensor, value: Tensor, score: Tensor | None, gate: Tensor | None, layout: Layout, num_global: int) -> StreamState:
    """The state after one sequence read at once: keys and values (1, n, H, d), score and gate (1, n), n at least 1."""
    length = key.shape[1]
    empty = empty_state(1, layout, num_global, key)
    held = torch.arange(max(0, length - layout.window), length, device=key.device)
    keys, values = (old.index_copy(1, held % layout.window, new[:, held]) for old, new in ((empty.key, key), (empty.value, value)))
    nodes, waiting = empty.nodes, empty.waiting
    if score is not None:
        border = (length - 1) // layout.chunk * layout.chunk  # where the open chunk begins
        known = score.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        worth = torch.zeros_like(known) if gate is None else gate.float()
        every = Nodes(known, torch.arange(length, device=key.device)[None], worth, key, value)
        nodes = nodes.merged(Nodes(*(x[:, :border] for x in every)))
        waiting = waiting.merged(Nodes(*(x[:, border:] for x in every)))
    return StreamState(torch.full_like(empty.position, length), keys, values, nodes, waiting)


def stream(
    query: Tensor, key: Tensor, value: Tensor, score: Tensor | None, gate: Tensor | None, state: StreamState, layout: Layout
) -> tuple[Tensor, StreamState]:
    """Attend from one token of each sequence, all (B, H, d), score and gate (B,), to what was read and to itself: (B, H, d), and the state after it."""
    # Under autocast these may be narrower than what is kept.
    query, key, value = (each.to(state.key.dtype) for each in (query, key, value))
    at = state.position
    row = torch.arange(len(at), device=at.device)
    nodes, waiting = state.nodes, state.waiting
    if score is not None:
        border = at % layout.chunk == 0
        nodes = nodes.chosen(nodes.merged(waiting), border)
        waiting = waiting._replace(score=waiting.score.masked_fill(border[:, None], -torch.inf))
        known = score.float().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)[:, None]
        worth = torch.zeros_like(known) if gate is None else gate.float()[:, None]
        waiting = waiting.merged(Nodes(known, at[:, None], worth, key[:, None], value[:, None]))
    slot = at % layout.window
    keys, values = state.key.index_put((row, slot), key), state.value.index_put((row, slot), value)
    ring = torch.arange(layout.window, device=at.device)
    held = at[:, None] - (at[:, None] - ring) % layout.window  # the position in each slot; below 0: none yet
    first = at // layout.window * layout.window if layout.mode == "block" else at - layout.window + 1
    local = (held >= first[:, None]) & (held >= 0)
    far = (nodes.score > -torch.inf) & (nodes.position < first[:, None])
    zero = torch.zeros((), device=at.device)
    bias = torch.cat([zero.where(local, -torch.inf), nodes.gate.where(far, -torch.inf)], 1)
    every = torch.cat([keys, nodes.key], 1)
    logits = torch.einsum("bhd,bshd->bhs", query, every) * query.shape[-1] ** -0.5 + bias[:, None].to(query.dtype)
    mixed = torch.einsum("bhs,bshd->bhd", logits.softmax(-1), torch.cat([values, nodes.value], 1))
    return mixed, StreamState(at + 1, keys, values, nodes, waiting)
