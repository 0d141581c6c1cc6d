"""What every other backend must equal: sparse attention by a dense (n, n) mask, in float64. Slow, short, and never chosen by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from balancer.models.attention.layout import Layout


def key_bias(gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout, length: int) -> Tensor:
    """What is added to the logit of key s for query t, (B, n, n): 0 in the window, the gate for a global node outside it, else -inf.

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
    own = torch.arange(length, device=device) // layout.chunk if layout.causal else torch.zeros(length, dtype=torch.int64, device=device)
    is_global = chosen[:, own] & ~local
    worth = torch.zeros(len(index), length, device=device) if gate is None else gate
    bias = worth[:, None].masked_fill(~is_global, -torch.inf).masked_fill(local, 0)
    return bias if padding is None else bias.masked_fill(padding[:, None], -torch.inf)


def run(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout) -> Tensor:
    """The backend `reference`; arguments as `balancer.models.attention.backends` has them."""
    bias = key_bias(None if gate is None else gate.double(), index, padding, layout, query.shape[1])[:, None]
    logits = torch.einsum("bihd,bjhd->bhij", query.double(), key.double()) * query.shape[-1] ** -0.5 + bias
    # A query that sees nothing (only padding about it) gives zeros; the softmax over nothing must not be taken, its gradient is NaN.
    nothing = (bias == -torch.inf).all(-1, keepdim=True)
    if padding is not None:
        nothing = nothing | padding[:, None, :, None]
    weight = logits.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
    mixed = torch.einsum("bhij,bjhd->bihd", weight, value.double())
    return mixed.to(query.dtype)
