"""The backend `dense`: one call of torch's fused kernel over all keys, with a mask only where it is needed.

It is the fastest below a few hundred tokens. If no query has a token outside its window, sparse attention
equals dense attention, and the fast causal kernel is used without a mask.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from balancer.models.attention.finite import contained, readable
from balancer.models.attention.layout import Layout
from balancer.models.attention.reference import key_bias
from balancer.models.attention.transforms import plain_kernels


def refuses(query: Tensor, layout: Layout) -> str | None:  # noqa: ARG001 (interface of backends)
    """Return None: this backend can always be used."""
    return None


def covers(layout: Layout, length: int) -> bool:
    """Whether every query's window contains all tokens that it may attend to.

    Then there are no global nodes.
    """
    reach = layout.window if layout.causal or layout.mode == "block" else (layout.window - 1) // 2 + 1
    return length <= reach


def _attend(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout
) -> Tensor:
    length = query.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    whole = covers(layout, length)
    bias = None
    if not (whole and (padding is None or (layout.causal and _on_the_right(padding)))):
        bias = key_bias(None if whole else gate, index, padding, layout, length).to(query.dtype)[:, None]
        if padding is not None:
            # A padded query may have no key. It attends to everything instead, and its result is discarded.
            bias = bias.masked_fill(padding[:, None, :, None], 0)
    with plain_kernels():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None and layout.causal).transpose(1, 2)


run = contained(_attend)


def _on_the_right(padding: Tensor) -> bool:
    """Whether padding (B, n) follows all real tokens, where no real query of a causal attention can see it.

    This is checked only where the padding can be read.
    """
    return readable(padding) and bool((padding[:, 1:] >= padding[:, :-1]).all())
