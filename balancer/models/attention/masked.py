"""The backend `dense`: one call of torch's fused kernel over all keys, with a mask only where it says something.

Below a few hundred tokens nothing is faster. Where no query of a sequence has a token beyond its window, sparse attention is dense attention, and this
is the fast causal kernel without any mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from balancer.models.attention.layout import Layout
from balancer.models.attention.reference import key_bias


def refuses(query: Tensor, layout: Layout) -> str | None:  # noqa: ARG001 (a backend's interface)
    """Why this backend can't work here, or None: it always can."""
    return None


def covers(layout: Layout, length: int) -> bool:
    """Whether every query's window holds all that it may see, so that there is no place for a global node."""
    reach = layout.window if layout.causal or layout.mode == "block" else (layout.window - 1) // 2 + 1
    return length <= reach


def run(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout) -> Tensor:
    """Arguments and result as `balancer.models.attention.backends` has them."""
    length = query.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    whole = covers(layout, length)
    if whole and (padding is None or (layout.causal and _on_the_right(padding))):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=layout.causal).transpose(1, 2)
    else:
        bias = key_bias(None if whole else gate, index, padding, layout, length).to(query.dtype)
        if padding is not None:
            # A padded query may see nothing; it gets a softmax over everything, which is thrown away.
            bias = bias.masked_fill(padding[..., None], 0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None]).transpose(1, 2)
    return out if padding is None else out.masked_fill(padding[..., None, None], 0)


def _on_the_right(padding: Tensor) -> bool:
    """Whether padding (B, n) stands after all that is real, where no real query of a causal attention sees it.

    Only a CPU is asked: elsewhere the answer would have to be waited for, and while torch traces there is none.
    """
    if padding.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool((padding[:, 1:] >= padding[:, :-1]).all())
