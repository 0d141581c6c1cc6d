"""The backend `reference`: sparse attention by a dense (n, n) mask in float64.

Every other backend must give the same results. It is slow and simple, and `auto` never chooses it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from balancer.models.attention.finite import contained
from balancer.models.attention.layout import Layout


def key_bias(gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout, length: int) -> Tensor:
    """Compute the bias of the logits, (B, n, n).

    It is 0 in the window, the gate for a global node outside it, and -inf elsewhere.

    Args:
        gate: (B, n) float, or None for 0.
        index: (B, chunks, k) positions of the global nodes, -1 for none.
        padding: (B, n) bool, True where a token is padding, or None.
        layout: windows and chunks.
        length: n.
    """
    device = index.device
    first, last = (bound[:, None] for bound in layout.bounds(length, device))
    key = torch.arange(length, device=device)
    local = (key >= first) & (key <= last)
    chosen = torch.zeros(*index.shape[:2], length + 1, dtype=torch.bool, device=device)
    chosen = chosen.scatter(-1, index.where(index >= 0, length), True)[..., :length]
    chunk = torch.arange(length, device=device) // layout.chunk if layout.causal else torch.zeros(length, dtype=torch.int64, device=device)
    is_global = chosen[:, chunk] & ~local
    node_bias = torch.zeros(index.shape[0], length, device=device) if gate is None else gate
    bias = node_bias[:, None].masked_fill(~is_global, -torch.inf).masked_fill(local, 0)
    return bias if padding is None else bias.masked_fill(padding[:, None], -torch.inf)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout
) -> Tensor:
    bias = key_bias(None if gate is None else gate.double(), index, padding, layout, query.shape[1])[:, None]
    logits = torch.einsum("bihd,bjhd->bhij", query.double(), key.double()) * query.shape[-1] ** -0.5 + bias
    # A query without any key (only padding near it) gives zeros. The softmax over an empty set must be
    # avoided, because its gradient is NaN.
    no_key = (bias == -torch.inf).all(-1, keepdim=True)
    if padding is not None:
        no_key = no_key | padding[:, None, :, None]
    weight = logits.masked_fill(no_key, 0).softmax(-1).masked_fill(no_key, 0)
    mixed = torch.einsum("bhij,bjhd->bihd", weight, value.double())
    return mixed.to(query.dtype)


run = contained(_attend, checked=False)
