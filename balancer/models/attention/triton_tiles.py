"""What the Triton kernels of sparse attention share: rows of a tile, the windows of its tokens, and one step of the softmax.

Windows are `Layout.bounds` and their inverse, by position and never as a mask in memory. The online softmax and its recomputation backward
are those of FlashAttention-2 (Dao 2023). Logits are in base 2 throughout: `scale` is d ** -.5 * log2(e), the gate comes times log2(e), and the
log-sum-exp is a log2.
"""

# Triton ships no types: a decorated kernel is untyped to mypy.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
"""From a gradient in base 2 to one of the logits themselves."""


@triton.jit
def load_rows(base: tl.tensor, at: tl.tensor, stride: int, real: tl.tensor, DIM: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:
    """Rows `at` (R,) of a matrix of DIM columns as (R, WIDTH); zeros where not `real`, and in the columns from DIM on."""
    column = tl.arange(0, WIDTH)
    place = at.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(base + place, mask=real[:, None] & (column < DIM)[None, :], other=0.0)


@triton.jit
def store_rows(
    base: tl.tensor, at: tl.tensor, stride: int, inside: tl.tensor, value: tl.tensor, DIM: tl.constexpr, WIDTH: tl.constexpr
) -> None:
    """Write (R, WIDTH) to the rows `at` (R,) where `inside`, in the dtype found there."""
    column = tl.arange(0, WIDTH)
    place = at.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(base + place, value.to(base.dtype.element_ty), mask=inside[:, None] & (column < DIM)[None, :])


@triton.jit
def are_real(padding: tl.tensor, at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Which of the tokens `at` are inside the sequence and no padding."""
    if padding is not None:
        inside = inside & (tl.load(padding + at, mask=inside, other=1) == 0)
    return inside


@triton.jit
def first_key(at: tl.tensor, window: int, CAUSAL: tl.constexpr, BLOCKED: tl.constexpr) -> tl.tensor:
    """Where the window of the query `at` begins: `Layout.bounds`, which says the four layouts."""
    if BLOCKED:
        first = at // window * window
    elif CAUSAL:
        first = tl.maximum(at - window + 1, 0)
    else:
        first = tl.maximum(at - window // 2, 0)
    return first


@triton.jit
def last_key(at: tl.tensor, length: int, window: int, CAUSAL: tl.constexpr, BLOCKED: tl.constexpr) -> tl.tensor:
    """The last key in the window of the query `at`."""
    if CAUSAL:
        last = at
    elif BLOCKED:
        last = tl.minimum(at // window * window + window - 1, length - 1)
    else:
        last = tl.minimum(at + (window - 1) // 2, length - 1)
    return last


@triton.jit
def first_query(at: tl.tensor, window: int, CAUSAL: tl.constexpr, BLOCKED: tl.constexpr) -> tl.tensor:
    """The first query whose window holds the key `at`."""
    if CAUSAL:
        first = at
    elif BLOCKED:
        first = at // window * window
    else:
        first = tl.maximum(at - (window - 1) // 2, 0)
    return first


@triton.jit
def last_query(at: tl.tensor, length: int, window: int, CAUSAL: tl.constexpr, BLOCKED: tl.constexpr) -> tl.tensor:
    """The last query whose window holds the key `at`."""
    if BLOCKED:
        last = at // window * window + window - 1
    elif CAUSAL:
        last = at + window - 1
    else:
        last = at + window // 2
    return tl.minimum(last, length - 1)


@triton.jit
def own_set(at: tl.tensor, chunk: int, CAUSAL: tl.constexpr) -> tl.tensor:
    """Which set of global nodes the query `at` sees."""
    if CAUSAL:
        own = at // chunk
    else:
        own = at * 0
    return own


@triton.jit
def fold(logit: tl.tensor, value: tl.tensor, mixed: tl.tensor, peak: tl.tensor, total: tl.tensor) -> tuple[tl.tensor, ...]:
    """One step of the online softmax: what is summed so far, and some more keys."""
    higher = tl.maximum(peak, tl.max(logit, 1))
    shift = tl.where(higher == float("-inf"), 0.0, higher)  # a query that has seen nothing yet
    weight = tl.exp2(logit - shift[:, None])
    keep = tl.exp2(peak - shift)
    mixed = tl.dot(weight.to(value.dtype), value, mixed * keep[:, None], input_precision="ieee")
    return mixed, higher, total * keep + tl.sum(weight, 1)


@triton.jit
def weigh(logit: tl.tensor, lse: tl.tensor, seen: tl.tensor, flow: tl.tensor, delta: tl.tensor) -> tuple[tl.tensor, ...]:
    """Softmax weights and the gradient of the logits (base e), from the gradient `flow` of the weights."""
    weight = tl.exp2(tl.where(seen, logit - lse, float("-inf")))
    return weight, weight * (flow - delta)
