"""Keep numbers that are not finite away from the queries that do not see them.

A masked key has weight 0, but 0 times NaN is NaN: in a product of matrices, a NaN in a later token or in
padding reaches every query. Here it does not. One rule holds for every backend, by head:

- A query that is not finite, or that sees a token whose key or value is not finite, gives NaN in all
  channels. The same holds if a gate that it sees is NaN or +inf.
- All other queries give what they would give without that token.
- No gradient flows through an output that is NaN by this rule. The loss of such an output is NaN, which tells
  of the fault; the gradients of the other outputs stay finite.

The native and the Triton kernels follow the rule themselves. The functions below make torch's operators
follow it: tokens that are not finite are replaced by zeros, and the outputs of the queries that see them by
NaN. In eager mode on a CPU that is done only if a query, a key or an output is not finite, since a value that
is not finite always shows in an output.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from balancer.models.attention import flex_native
from balancer.models.attention.flex_plan import plan_of
from balancer.models.attention.layout import Layout
from balancer.models.attention.transforms import active, plain_kernels

LONG = 256
"""Tokens from which our kernel for block masks is used on a CPU; it takes less than half of the time of
torch's (`benchmarks/claims/flex.py`)."""
_BLOCK = 128
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None, Layout], Tensor]
"""Arguments and result as those of a backend, see `balancer.models.attention.backends`."""


def contained(attend: Attend, *, checked: bool = True) -> Attend:
    """Make a backend follow the rule of this module.

    Args:
        attend: computes the attention. Its outputs at padding may be anything, but a number there that is not
            finite must show in some output.
        checked: whether `attend` is tried without changes first, where its outputs can be read.

    Returns:
        The backend, with zeros at padding.
    """

    def run(
        query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout
    ) -> Tensor:
        """Compute sparse attention; see `balancer.models.attention.backends`."""
        # A query or a key that is infinite may leave no trace in the outputs.
        tried = checked and readable(query) and is_finite(query) and is_finite(key)
        out = attend(query, key, value, gate, index, padding, layout) if tried else None
        if out is None or not is_finite(out):
            out = _contain(attend, query, key, value, gate, index, padding, layout)
        return out if padding is None else out.masked_fill(padding[..., None, None], 0)

    return run


def readable(x: Tensor) -> bool:
    """Whether a program can branch on the numbers of `x` at no great cost.

    It can't while torch compiles or exports, or inside a transform of `torch.func`. On other devices it would
    wait for the device.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not active()


def is_finite(x: Tensor) -> bool:
    """Whether all numbers are known to be finite; a sum that overflows is taken for one that is not."""
    sums = x.detach().sum(dtype=torch.float32 if x.dtype.itemsize < 4 else None)
    return math.isfinite(sums.item())


def dense_causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Dense causal attention of (B, n, H, d) by the rule of this module.

    A graph that is exported assumes finite numbers, which the embeddings of a classifier guarantee.
    """
    if _exporting():
        return _dense_causal(query, key, value)
    if readable(query) and is_finite(query) and is_finite(key):
        out = _dense_causal(query, key, value)
        if is_finite(out):
            return out
    wild = _wild(query, key, value)
    seen = (wild[1].to(torch.int32).cumsum(1) > 0) | wild[0]
    out = _dense_causal(*_cleared(query, key, value, wild))
    return out.masked_fill(seen[..., None], torch.nan)


def _exporting() -> bool:
    is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", bool)
    return torch.onnx.is_in_onnx_export() or is_exporting()


def _dense_causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    length = query.shape[1]
    if length >= LONG and query.dtype == torch.float32 and readable(query) and not _exporting() and flex_native.absence() is None:
        return flex_native.run(q, k, v, _causal_plan(length), query.shape[-1] ** -0.5)[0].transpose(1, 2)
    with plain_kernels():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


@functools.lru_cache(maxsize=32)
def _causal_plan(length: int) -> Tensor:
    """The plan of a causal mask: of each row of blocks those before the diagonal are seen whole."""
    from torch.nn.attention.flex_attention import BlockMask

    rows = -(-length // _BLOCK)
    diagonal = torch.arange(rows, dtype=torch.int32)
    columns = diagonal.expand(1, 1, rows, rows).contiguous()
    mask = BlockMask.from_kv_blocks(
        torch.ones(1, 1, rows, dtype=torch.int32),
        diagonal[None, None, :, None].expand(1, 1, rows, rows).contiguous(),
        diagonal[None, None].contiguous(),
        columns,
        BLOCK_SIZE=_BLOCK,
        mask_mod=lambda _batch, _head, query, key: query >= key,
        seq_lengths=(length, length),
    )
    return plan_of(mask)


def _wild(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, and tokens by key or value, with a number that is not finite: (B, n, H) each."""
    return ~query.isfinite().all(-1), ~(key.isfinite().all(-1) & value.isfinite().all(-1))


def _cleared(query: Tensor, key: Tensor, value: Tensor, wild: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value with zeros in the rows that are not finite."""
    wild_query, wild_key = (rows[..., None] for rows in wild)
    return query.masked_fill(wild_query, 0), key.masked_fill(wild_key, 0), value.masked_fill(wild_key, 0)


def _contain(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor | None,
    index: Tensor,
    padding: Tensor | None,
    layout: Layout,
) -> Tensor:
    wild_query, wild_key = _wild(query, key, value)
    wild_node = wild_key
    cleared = _cleared(query, key, value, (wild_query, wild_key))
    if gate is not None:
        wild_gate = gate.isnan() | (gate == torch.inf)
        gate = gate.masked_fill(wild_gate, 0)
        wild_node = wild_node | wild_gate[..., None]
    if padding is not None:
        wild_key, wild_node = (x & ~padding[..., None] for x in (wild_key, wild_node))
    out = attend(*cleared, gate, index, padding, layout)
    spoiled = wild_query | _seen_in_window(wild_key, layout) | _seen_as_node(wild_node, index, layout)
    return out.masked_fill(spoiled[..., None], torch.nan)


def _seen_in_window(wild: Tensor, layout: Layout) -> Tensor:
    """Whether the window of each query contains a token of `wild`, (B, n, H)."""
    first, last = layout.bounds(wild.shape[1], wild.device)
    before = F.pad(wild.to(torch.int32).cumsum(1), (0, 0, 1, 0))
    seen: Tensor = before.index_select(1, last + 1) > before.index_select(1, first)
    return seen


def _seen_as_node(wild: Tensor, index: Tensor, layout: Layout) -> Tensor:
    """Whether a query sees a token of `wild` as a global node outside its window, (B, n, H)."""
    length = wild.shape[1]
    first, last = (bound[:, None] for bound in layout.bounds(length, wild.device))
    at = torch.arange(length, device=wild.device)
    nodes = index.index_select(1, at // layout.chunk if layout.causal else torch.zeros_like(at))
    outside = (nodes >= 0) & ((nodes < first) | (nodes > last))
    is_wild = wild.gather(1, nodes.clamp(min=0).flatten(1)[..., None].expand(-1, -1, wild.shape[2])).unflatten(1, nodes.shape[1:])
    seen: Tensor = (is_wild & outside[..., None]).any(2)
    return seen
