"""The backend `torch`: one call of torch's fused kernel over blocks of queries, each with its range of keys.

The keys of a block are the range that any of its windows reaches, followed by slots for its global nodes. A
mask (block, range + slots) excludes the others, so cost and memory are linear in the length. The blocks for
sliding windows follow Longformer (Beltagy et al. 2020). Block windows with chunks of the same size need no
key twice and are faster.

torch's fused kernels on CPU give no gradient to a mask; if the mask requires one, torch uses a slow path. A
gate that is trained is therefore part of the product instead of the mask: queries get an additional constant
channel, and in that channel the key of a global node contains its gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balancer.models.attention.finite import contained, readable
from balancer.models.attention.layout import Layout
from balancer.models.attention.transforms import active, fold, plain_kernels, split

BLOCK = 64
"""Approximate minimum number of queries in a block.

Small blocks compute fewer unnecessary keys, large blocks copy fewer keys.
"""
SLAB = 1 << 20
"""Approximate number of elements in the copy of the keys of sequences that are computed together.

It applies only without a backward pass.
"""


def refuses(query: Tensor, layout: Layout) -> str | None:  # noqa: ARG001 (interface of backends)
    """Return None: this backend can always be used."""
    return None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout
) -> Tensor:
    batch, length, heads, channels = query.shape
    cut = _cut(layout, length)
    nodes, num_sets = _nodes(index, cut, layout)
    node_gate = None if gate is None else gate.gather(1, nodes.clamp(min=0).flatten(1)).view(nodes.shape)
    # Only a gate that is trained uses the additional channel; inside a transform of torch.func that can't be
    # known. One channel is enough; on other devices rows must be aligned.
    trained = node_gate if node_gate is not None and (node_gate.requires_grad or active()) else None
    extra = 0 if trained is None else 1 if query.device.type == "cpu" else 8
    bias = _bias(None if trained is not None else node_gate, nodes, num_sets, padding, layout, cut, query.dtype)
    if extra or cut.fill:
        query = F.pad(query, (0, extra, 0, 0, 0, cut.fill), value=channels**0.5)

    gather = _gather_blocks if torch.compiler.is_compiling() else _GatherBlocks.apply

    def attend(rows: slice) -> Tensor:
        """Attention of some sequences, as blocks (b * blocks, block, H, d + extra)."""
        with plain_kernels():
            mixed = F.scaled_dot_product_attention(
                query[rows].reshape(-1, cut.block, heads, channels + extra).transpose(1, 2),
                gather(key[rows], None if trained is None else trained[rows], nodes[rows], cut, extra),
                gather(value[rows], None, nodes[rows], cut, extra),
                attn_mask=bias[rows].flatten(0, 1)[:, None],
                scale=channels**-0.5,
            )
        return mixed.transpose(1, 2)

    if readable(query) and not (torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))):
        # Without a backward pass nothing is saved, so a few sequences are computed at a time and their copies
        # stay in the cache.
        size = max(1, SLAB // (cut.blocks * (cut.span + nodes.shape[2]) * heads * channels))
        parts = [attend(slice(start, start + size)) for start in range(0, batch, size)]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    else:
        whole = attend(slice(None))
    return whole.reshape(batch, cut.blocks * cut.block, heads, channels + extra)[:, :length, :, :channels]


run = contained(_attend)


@dataclass(frozen=True)
class _Cut:
    """Division of a sequence into blocks of queries."""

    block: int
    """Number of queries in a block."""
    left: int
    """Number of keys before a block's first query that its windows reach."""
    right: int
    """Number of keys after a block's last query that its windows reach."""
    blocks: int
    """Number of blocks."""
    fill: int
    """Number of queries missing in the last block."""

    @property
    def span(self) -> int:
        """Number of keys in the range of a block."""
        return self.left + self.block + self.right

    def pieces(self) -> list[tuple[int, int, int, int]]:
        """Divide the range of block j at the borders of blocks.

        Returns:
            For each piece: its start in the range, the offset of its block from j, and its first and last
            (exclusive) row in that block.
        """
        # Positions relative to the first row of block j: -left, the borders of blocks, block + right.
        first, last = -(self.left // self.block), (self.block + self.right - 1) // self.block
        borders = sorted({-self.left, *(at * self.block for at in range(first, last + 1)), self.block + self.right})
        return [(a + self.left, a // self.block, a % self.block, a % self.block + b - a) for a, b in pairwise(borders)]


def _cut(layout: Layout, length: int) -> _Cut:
    """Choose the blocks: parts of a chunk, or several chunks.

    In mode `block` they are whole windows if these are chunks.
    """
    # Written so that torch exports it for any length of more than a window.
    chunk, window = layout.chunk, layout.window if layout.window <= length else length
    about = max(BLOCK, window // 2)
    if layout.mode == "block" and (chunk == layout.window or not layout.causal):
        block, left, right = window, 0, 0
    elif not layout.causal:
        block, left, right = about, min(layout.window // 2, length - 1), min((layout.window - 1) // 2, length - 1)
    elif chunk >= length:  # there is only one chunk
        block, left, right = about, window - 1, 0
    elif chunk <= about:
        block, left, right = chunk * (about // chunk), window - 1, 0
    else:
        block, left, right = min(x for x in range(about, chunk + 1) if chunk % x == 0), window - 1, 0
    blocks = -(-length // block)
    return _Cut(block, left, right, blocks, blocks * block - length)


def _nodes(index: Tensor, cut: _Cut, layout: Layout) -> tuple[Tensor, int]:
    """Arrange the global nodes by block, (B, blocks, slots), with -1 for none.

    Returns:
        The nodes, and the number of sets of nodes in a block, each in consecutive slots.
    """
    batch, chunks, count = index.shape
    if chunks == 1:
        return index.expand(-1, cut.blocks, -1), 1
    if cut.block < layout.chunk:
        return index.repeat_interleave(layout.chunk // cut.block, 1)[:, : cut.blocks], 1
    num_sets = cut.block // layout.chunk
    return F.pad(index, (0, 0, 0, cut.blocks * num_sets - chunks), value=-1).view(batch, cut.blocks, num_sets * count), num_sets


def _bias(
    node_gate: Tensor | None, nodes: Tensor, num_sets: int, padding: Tensor | None, layout: Layout, cut: _Cut, dtype: torch.dtype
) -> Tensor:
    """Compute the bias of the logits, (B, blocks, block, span + slots), without a gradient."""
    batch, blocks, slots = nodes.shape
    device = nodes.device
    length = blocks * cut.block - cut.fill
    first, last = (F.pad(x, (0, cut.fill), value=-1).view(blocks, cut.block, 1) for x in layout.bounds(length, device))
    start = torch.arange(blocks, device=device)[:, None, None] * cut.block
    key = start + torch.arange(-cut.left, cut.block + cut.right, device=device)
    query = start + torch.arange(cut.block, device=device)[:, None]
    masked = torch.full((), -torch.inf, device=device, dtype=dtype)
    zero = torch.zeros((), device=device, dtype=dtype)
    # Queries beyond the end, and padded ones, may have no key; they attend to everything, and the result is
    # discarded.
    beyond_end = query >= length
    bias = torch.where(((key >= first) & (key <= last)) | beyond_end, zero, masked).expand(batch, -1, -1, -1)
    if padding is not None:
        padded = F.pad(padding, (cut.left, cut.right + cut.fill), value=True).unfold(1, cut.span, cut.block)
        bias = bias.masked_fill(padded[:, :, None], -torch.inf)
    if slots:
        visible = (nodes >= 0)[:, :, None] & ((nodes[:, :, None] < first) | (nodes[:, :, None] > last))
        if padding is not None:
            visible = visible & ~padding.gather(1, nodes.clamp(min=0).flatten(1)).view(nodes.shape)[:, :, None]
        if num_sets > 1:
            chunk = torch.arange(num_sets, device=device)
            own = chunk.repeat_interleave(cut.block // num_sets)[:, None] == chunk.repeat_interleave(slots // num_sets)
            visible = visible & own
        bias = torch.cat([bias, torch.where(visible, zero if node_gate is None else node_gate.to(dtype)[:, :, None], masked)], -1)
    if padding is not None:
        bias = bias.masked_fill(F.pad(padding, (0, cut.fill), value=True).view(batch, blocks, cut.block, 1), 0)
    return bias


class _GatherBlocks(torch.autograd.Function):
    """Gather (B, n, H, d) as (B * blocks, H, span + slots, d + extra).

    Each block contains its range of keys, then its global nodes. It is implemented by hand, because the
    backward pass of torch's operators for overlapping windows makes several copies of all windows.
    """

    @staticmethod
    def forward(x: Tensor, gate: Tensor | None, nodes: Tensor, cut: _Cut, extra: int) -> Tensor:
        """`gate` (B, blocks, slots) is stored in the first of the `extra` channels of the global nodes."""
        batch, _, heads, channels = x.shape
        slots = nodes.shape[2]
        row = torch.arange(batch, device=x.device)[:, None]
        at = nodes.clamp(min=0).flatten(1)
        blocked = (F.pad(x, (0, 0, 0, 0, 0, cut.fill)) if cut.fill else x).unflatten(1, (cut.blocks, cut.block))
        out = x.new_empty(batch, cut.blocks, cut.span + slots, heads, channels + extra)
        for start, offset, low, high in cut.pieces():
            part = out[:, :, start : start + high - low, :, :channels]
            target, source = _overlap(cut.blocks, offset)
            part[:, target] = blocked[:, source, low:high]
            part[:, : target.start] = 0
            part[:, target.stop :] = 0
        out[:, :, cut.span :, :, :channels] = x[row, at].view(batch, cut.blocks, slots, heads, channels)
        if extra:
            out[..., channels:] = 0
            if gate is not None:
                out[:, :, cut.span :, :, channels] = gate[..., None]
        return out.flatten(0, 1).transpose(1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save what the backward pass needs."""
        x, gate, nodes, ctx.cut, _ = inputs
        ctx.length, ctx.channels, ctx.gated = x.shape[1], x.shape[3], gate is not None
        ctx.save_for_backward(nodes)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[Tensor, int]:
        """Make the dimension of a `vmap` a part of the batch."""
        found, dims = split(info.batch_size, [_GatherBlocks.apply(*fold(info.batch_size, in_dims[:3], given[:3]), *given[3:])])  # type: ignore[no-untyped-call]
        return found[0], dims[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Sum the gradients of overlapping ranges."""
        (nodes,) = ctx.saved_tensors
        row, at = torch.arange(len(nodes), device=nodes.device)[:, None], nodes.clamp(min=0).flatten(1)
        cut = ctx.cut
        grad = grads[0].transpose(1, 2).unflatten(0, (len(row), cut.blocks))
        gate_grad = grad[:, :, cut.span :, :, ctx.channels].sum(-1) if ctx.gated else None
        grad = grad[..., : ctx.channels]
        total = grad[:, :, cut.left : cut.left + cut.block].clone(memory_format=torch.contiguous_format)
        for start, offset, low, high in cut.pieces():
            if offset:
                target, source = _overlap(cut.blocks, offset)
                total[:, source, low:high] += grad[:, target, start : start + high - low]
        flat = total.flatten(0, 2)
        flat.index_add_(0, (at + row * cut.blocks * cut.block).flatten(), grad[:, :, cut.span :].flatten(0, 2))
        return flat.unflatten(0, (len(row), -1))[:, : ctx.length], gate_grad, None, None, None


def _gather_blocks(x: Tensor, gate: Tensor | None, nodes: Tensor, cut: _Cut, extra: int) -> Tensor:
    """Gather as `_GatherBlocks`, by operators of torch that can be compiled and exported for any length.

    Where a range reaches beyond the sequence, the tokens at its ends are repeated; they are masked.
    """
    start = torch.arange(cut.blocks, device=x.device)[:, None] * cut.block
    at = (start + torch.arange(-cut.left, cut.block + cut.right, device=x.device)).clamp(min=0).clamp(max=x.shape[1] - 1)
    band = x.index_select(1, at.flatten()).unflatten(1, at.shape)
    place = nodes.clamp(min=0).flatten(1)[..., None, None].expand(-1, -1, *x.shape[2:])
    node = x.gather(1, place).unflatten(1, nodes.shape[1:])
    if extra:
        band = F.pad(band, (0, extra))
        first = node.new_zeros(*node.shape[:-1], 1) if gate is None else gate[..., None, None].expand(*node.shape[:-1], 1).to(x.dtype)
        node = torch.cat([node, first, node.new_zeros(*node.shape[:-1], extra - 1)], -1)
    return torch.cat([band, node], 2).flatten(0, 1).transpose(1, 2)


def _overlap(blocks: int, offset: int) -> tuple[slice, slice]:
    """Return the blocks j for which block j + offset exists, and the blocks j + offset."""
    target = slice(min(max(0, -offset), blocks), max(0, min(blocks, blocks - offset)))
    return target, slice(target.start + offset, target.stop + offset) if target.start < target.stop else slice(0, 0)
