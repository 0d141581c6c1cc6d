"""The backend `torch`: one call of the fused kernel over blocks of queries, each beside its keys.

A block of queries stands with the stretch of keys that any of its windows reaches and with its global nodes in the slots after it; who sees what
is a mask of (block, stretch + slots), so cost and memory are linear in length. The sliding blocks are those of Longformer (Beltagy et al. 2020).
Block windows with chunks of the same size need no key twice and are the faster.

Fused kernels of torch on CPU give no gradient to a mask: with one that asks for it they fall back to a slow path. A gate that is trained is
therefore no part of the mask but of the product: queries get a channel that is constant, and the key of a global node has its gate there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balancer.models.attention.layout import Layout

BLOCK = 64
"""Queries that stand together, at least about: the fewer, the fewer keys are computed for nothing, the more, the fewer are copied often."""
SLAB = 1 << 20
"""Numbers in the copy of the keys of the sequences that are done together, about, where there is no backward pass."""


def refuses(query: Tensor, layout: Layout) -> str | None:  # noqa: ARG001 (a backend's interface)
    """Why this backend can't work here, or None: it always can."""
    return None


def run(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout) -> Tensor:
    """Arguments and result as `balancer.models.attention.backends` has them."""
    batch, length, heads, channels = query.shape
    cut = _cut(layout, length)
    nodes, own = _nodes(index, cut, layout)
    worth = None if gate is None else gate.gather(1, nodes.clamp(min=0).flatten(1)).view(nodes.shape)
    # Only a gate that is trained goes the long way. One channel is enough; kernels of other devices want rows aligned.
    trained = worth if worth is not None and worth.requires_grad else None
    wider = 0 if trained is None else 1 if query.device.type == "cpu" else 8
    bias = _bias(None if trained is not None else worth, nodes, own, padding, layout, cut, query.dtype)
    if wider or cut.fill:
        query = F.pad(query, (0, wider, 0, 0, 0, cut.fill), value=channels**0.5)

    def attend(rows: slice) -> Tensor:
        """Blocks (b * blocks, block, H, d + wider) of some sequences."""
        mixed = F.scaled_dot_product_attention(
            query[rows].reshape(-1, cut.block, heads, channels + wider).transpose(1, 2),
            _Beside.apply(key[rows], None if trained is None else trained[rows], nodes[rows], cut, wider),  # type: ignore[no-untyped-call]
            _Beside.apply(value[rows], None, nodes[rows], cut, wider),  # type: ignore[no-untyped-call]
            attn_mask=bias[rows].flatten(0, 1)[:, None],
            scale=channels**-0.5,
        )
        return mixed.transpose(1, 2)

    size = batch
    if query.device.type == "cpu" and not (torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))):
        # Without a backward pass nothing of a sequence is kept: what is copied for a few of them stays in the cache and is soon free.
        size = max(1, SLAB // (cut.blocks * (cut.stretch + nodes.shape[2]) * heads * channels))
    parts = [attend(slice(start, start + size)) for start in range(0, batch, size)]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    out = whole.reshape(batch, cut.blocks * cut.block, heads, channels + wider)[:, :length, :, :channels]
    return out if padding is None else out.masked_fill(padding[..., None, None], 0)


@dataclass(frozen=True)
class _Cut:
    """How a sequence is cut into blocks of queries."""

    block: int
    """Queries of a block."""
    left: int
    """Keys before a block's first query that one of its windows reaches."""
    right: int
    """Keys after its last query."""
    blocks: int
    """How many there are."""
    fill: int
    """Queries that the last one lacks."""

    @property
    def stretch(self) -> int:
        """Keys that stand with a block."""
        return self.left + self.block + self.right

    def pieces(self) -> list[tuple[int, int, int, int]]:
        """The stretch of block j in parts: (where it starts, blocks from j on, first row there, row after the last)."""
        # In rows from block j's first: -left, then the borders of blocks, then block + right.
        first, last = -(self.left // self.block), (self.block + self.right - 1) // self.block
        borders = sorted({-self.left, *(at * self.block for at in range(first, last + 1)), self.block + self.right})
        return [(a + self.left, a // self.block, a % self.block, a % self.block + b - a) for a, b in pairwise(borders)]


def _cut(layout: Layout, length: int) -> _Cut:
    """Blocks are parts of a chunk, or a few chunks; the windows of mode `block` are kept whole where they are chunks."""
    chunk, window = layout.chunk, min(layout.window, length)
    about = max(BLOCK, window // 2)
    if layout.mode == "block" and (chunk == layout.window or not layout.causal):
        block, left, right = window, 0, 0
    elif not layout.causal:
        block, left, right = about, min(layout.window // 2, length - 1), min((layout.window - 1) // 2, length - 1)
    elif chunk >= length:  # the first chunk is the only one
        block, left, right = about, window - 1, 0
    elif chunk <= about:
        block, left, right = chunk * (about // chunk), window - 1, 0
    else:
        block, left, right = min(x for x in range(about, chunk + 1) if chunk % x == 0), window - 1, 0
    blocks = -(-length // block)
    return _Cut(block, left, right, blocks, blocks * block - length)


def _nodes(index: Tensor, cut: _Cut, layout: Layout) -> tuple[Tensor, int]:
    """The global nodes (B, blocks, slots) of blocks, -1 for none, and to how many chunks in a block they belong, each of k slots in a row."""
    batch, chunks, count = index.shape
    if chunks == 1:
        return index.expand(-1, cut.blocks, -1), 1
    if cut.block < layout.chunk:
        return index.repeat_interleave(layout.chunk // cut.block, 1)[:, : cut.blocks], 1
    own = cut.block // layout.chunk
    return F.pad(index, (0, 0, 0, cut.blocks * own - chunks), value=-1).view(batch, cut.blocks, own * count), own


def _bias(worth: Tensor | None, nodes: Tensor, own: int, padding: Tensor | None, layout: Layout, cut: _Cut, dtype: torch.dtype) -> Tensor:
    """What is added to the logits, (B, blocks, block, stretch + slots), without a gradient."""
    batch, blocks, slots = nodes.shape
    device = nodes.device
    length = blocks * cut.block - cut.fill
    first, last = (F.pad(x, (0, cut.fill), value=-1).view(blocks, cut.block, 1) for x in layout.bounds(length, device))
    start = torch.arange(blocks, device=device)[:, None, None] * cut.block
    key = start + torch.arange(-cut.left, cut.block + cut.right, device=device)
    query = start + torch.arange(cut.block, device=device)[:, None]
    unseen = torch.full((), -torch.inf, device=device, dtype=dtype)
    zero = torch.zeros((), device=device, dtype=dtype)
    # Queries past the end, and padded ones, may see nothing; they get a softmax over everything, which is thrown away.
    idle = query >= length
    bias = torch.empty(batch, blocks, cut.block, cut.stretch + slots, device=device, dtype=dtype)
    bias[..., : cut.stretch] = torch.where(((key >= first) & (key <= last)) | idle, zero, unseen)
    if slots:
        kept = (nodes >= 0)[:, :, None] & ((nodes[:, :, None] < first) | (nodes[:, :, None] > last))
        if padding is not None:
            kept &= ~padding.gather(1, nodes.clamp(min=0).flatten(1)).view(nodes.shape)[:, :, None]
        if own > 1:
            chunk = torch.arange(own, device=device)
            kept &= chunk.repeat_interleave(cut.block // own)[:, None] == chunk.repeat_interleave(slots // own)
        bias[..., cut.stretch :] = torch.where(kept, zero if worth is None else worth.to(dtype)[:, :, None], unseen)
    if padding is not None:
        padded = F.pad(padding, (cut.left, cut.right + cut.fill), value=True).unfold(1, cut.stretch, cut.block)
        bias[..., : cut.stretch].masked_fill_(padded[:, :, None], -torch.inf)
        bias.masked_fill_(F.pad(padding, (0, cut.fill), value=True).view(batch, blocks, cut.block, 1), 0)
    return bias


class _Beside(torch.autograd.Function):
    """(B, n, H, d) to (B * blocks, H, stretch + slots, d + wider): each block's stretch, then its global nodes.

    Written out, because the backward pass of what torch has for overlapping windows goes through several copies of all of them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, extra: Tensor | None, nodes: Tensor, cut: _Cut, wider: int) -> Tensor:
        """`extra` (B, blocks, slots) is put into the first of the `wider` channels of the global nodes."""
        batch, length, heads, channels = x.shape
        slots = nodes.shape[2]
        row = torch.arange(batch, device=x.device)[:, None]
        at = nodes.clamp(min=0).flatten(1)
        ctx.save_for_backward(row, at)
        ctx.cut, ctx.length, ctx.channels, ctx.slots, ctx.gated = cut, length, channels, slots, extra is not None
        blocked = (F.pad(x, (0, 0, 0, 0, 0, cut.fill)) if cut.fill else x).unflatten(1, (cut.blocks, cut.block))
        out = x.new_empty(batch, cut.blocks, cut.stretch + slots, heads, channels + wider)
        for start, off, low, high in cut.pieces():
            part = out[:, :, start : start + high - low, :, :channels]
            into, source = _overlap(cut.blocks, off)
            part[:, into] = blocked[:, source, low:high]
            part[:, : into.start] = 0
            part[:, into.stop :] = 0
        out[:, :, cut.stretch :, :, :channels] = x[row, at].view(batch, cut.blocks, slots, heads, channels)
        if wider:
            out[..., channels:] = 0
            if extra is not None:
                out[:, :, cut.stretch :, :, channels] = extra[..., None]
        return out.flatten(0, 1).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The parts added up where they overlap."""
        row, at = ctx.saved_tensors
        cut = ctx.cut
        grad = grads[0].transpose(1, 2).unflatten(0, (len(row), cut.blocks))
        extra = grad[:, :, cut.stretch :, :, ctx.channels].sum(-1) if ctx.gated else None
        grad = grad[..., : ctx.channels]
        total = grad[:, :, cut.left : cut.left + cut.block].clone(memory_format=torch.contiguous_format)
        for start, off, low, high in cut.pieces():
            if off:
                into, source = _overlap(cut.blocks, off)
                total[:, source, low:high] += grad[:, into, start : start + high - low]
        flat = total.flatten(0, 2)
        flat.index_add_(0, (at + row * cut.blocks * cut.block).flatten(), grad[:, :, cut.stretch :].flatten(0, 2))
        return flat.unflatten(0, (len(row), -1))[:, : ctx.length], extra, None, None, None


def _overlap(blocks: int, off: int) -> tuple[slice, slice]:
    """Blocks j that have a block j + off, and those."""
    into = slice(min(max(0, -off), blocks), max(0, min(blocks, blocks - off)))
    return into, slice(into.start + off, into.stop + off) if into.start < into.stop else slice(0, 0)
