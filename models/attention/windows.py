"""The backend `torch`: one call of the fused kernel over chunks of queries, each beside its keys.

Chunk j of queries stands with the stretch of keys that any of its windows reaches and with its global nodes in the slots after it; who sees what
is a mask of (chunk, stretch + k), so cost and memory are linear in length. The sliding chunks are those of Longformer (Beltagy et al. 2020). Block
windows with chunks of the same size need no key twice and are the faster.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from balancer.models.attention.layout import Layout


def refuses(query: Tensor, layout: Layout) -> str | None:  # noqa: ARG001 (a backend's interface)
    """Why this backend can't work here, or None: it always can."""
    return None


def run(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout) -> Tensor:
    """Arguments and result as `balancer.models.attention.backends` has them."""
    batch, length, heads, channels = query.shape
    chunk, left, right = _stretch(layout)
    chunks = -(-length // chunk)
    fill = chunks * chunk - length
    if index.shape[1] != chunks:  # nothing is causal: one set for all
        index = index.expand(-1, chunks, -1)
    at = index.clamp(min=0)

    def beside(x: Tensor) -> Tensor:
        """(B, n, H, d) to (B * chunks, H, stretch + k, d)."""
        stretch = F.pad(x, (0, 0, 0, 0, left, right + fill)).unfold(1, left + chunk + right, chunk)
        nodes = x.gather(1, at.flatten(1)[..., None, None].expand(-1, -1, heads, channels)).unflatten(1, at.shape[1:])
        return torch.cat([stretch.permute(0, 1, 2, 4, 3), nodes.transpose(2, 3)], 3).flatten(0, 1)

    queries = F.pad(query, (0, 0, 0, 0, 0, fill)).view(batch * chunks, chunk, heads, channels).transpose(1, 2)
    bias = _bias(gate, index, padding, layout, length).to(query.dtype)
    mixed = F.scaled_dot_product_attention(queries, beside(key), beside(value), attn_mask=bias.flatten(0, 1)[:, None])
    out = mixed.transpose(1, 2).reshape(batch, chunks * chunk, heads, channels)[:, :length]
    return out if padding is None else out.masked_fill(padding[..., None, None], 0)


def _stretch(layout: Layout) -> tuple[int, int, int]:
    """Queries that stand together, and how many keys before their first and after their last one any of them sees."""
    if layout.mode == "block" and (layout.chunk == layout.window or not layout.causal):
        return layout.window, 0, 0
    if layout.causal:
        return layout.chunk, layout.window - 1, 0
    return layout.window, layout.window // 2, (layout.window - 1) // 2


def _bias(gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout, length: int) -> Tensor:
    """What is added to the logits, (B, chunks, chunk, stretch + k); differentiable by the gate."""
    chunk, left, right = _stretch(layout)
    batch, chunks, _ = index.shape
    device = index.device
    first, last = (F.pad(x, (0, chunks * chunk - length), value=-1).view(chunks, chunk, 1) for x in layout.bounds(length, device))
    start = torch.arange(chunks, device=device)[:, None, None] * chunk
    key = start - left + torch.arange(left + chunk + right, device=device)
    seen = ((key >= first) & (key <= last)).expand(batch, -1, -1, -1)
    node = index[:, :, None]
    kept = ((node >= 0) & ((node < first) | (node > last))).expand(-1, -1, chunk, -1)
    query = start + torch.arange(chunk, device=device)[:, None]
    # Queries past the end, and padded ones, may see nothing; they get a softmax over everything, which is thrown away.
    idle = (query >= length).expand(batch, -1, -1, -1)
    if padding is not None:
        padded = F.pad(padding, (left, right + chunks * chunk - length), value=True)
        seen = seen & ~padded.unfold(1, left + chunk + right, chunk)[:, :, None]
        kept = kept & ~padding.gather(1, index.clamp(min=0).flatten(1)).view_as(index)[:, :, None]
        idle = idle | F.pad(padding, (0, chunks * chunk - length)).view(batch, chunks, chunk, 1)
    zero = torch.zeros((), device=device)
    worth = zero if gate is None else gate.gather(1, index.clamp(min=0).flatten(1)).view_as(index)[:, :, None]
    unseen = torch.full((), -torch.inf, device=device)
    local = torch.where(seen | idle, zero, unseen)
    return torch.cat([local, torch.where(kept, worth, torch.where(idle, zero, unseen))], -1)
