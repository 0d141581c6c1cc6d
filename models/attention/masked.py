"""The backend `dense`: one call of torch's fused kernel over all keys, with a mask only where it says something.

Below a few hundred tokens nothing is faster. Where no query of a sequence has a token beyond its window, sparse attention is dense attention, and this
is the fast causal kernel without any mask.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from balancer.models.attention.layout import Layout
from balancer.models.attention.reference import key_bias


def refuses(query: Tensor, layout: Layout) -> str | None:  # noqa: ARG001 (a backend's interface)
    """Why this backend can't work here, or None: it always can."""
    return None


def run(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout) -> Tensor:
    """Arguments and result as `balancer.models.attention.backends` has them."""
    length = query.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if padding is None and length <= layout.window and layout.causal:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    bias = key_bias(gate, index, padding, layout, length).to(query.dtype)
    if padding is not None:
        # A padded query may see nothing; it gets a softmax over everything, which is thrown away.
        bias = bias.masked_fill(padding[..., None], 0)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None]).transpose(1, 2)
    return out if padding is None else out.masked_fill(padding[..., None, None], 0)
