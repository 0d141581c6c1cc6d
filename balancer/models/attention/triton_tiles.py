"""Functions shared by the Triton kernels: rows, windows, logits, and steps of the softmax.

Windows are computed from positions (`Layout.bounds` and its inverse), never stored as a mask. The online
softmax and
its recomputation in the backward pass follow FlashAttention-2 (Dao 2023). All logits are in base 2: `scale`
is
d ** -.5 * log2(e), the gate is multiplied by log2(e), and the log-sum-exp is a log2.
"""

# Triton has no type stubs: a decorated kernel is untyped for mypy.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
"""Factor from a gradient of base-2 logits to a gradient of natural logits."""


@triton.jit
def locate(count: int, TILE: tl.constexpr) -> tuple[tl.tensor, ...]:
    """Return the index of batch and head, and the first of the TILE items out of `count`, of this program."""
    tiles = tl.cdiv(count, TILE)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    start = tl.program_id(0) % tiles * TILE
    return row, start


@triton.jit
def load_rows(base: tl.tensor, at: tl.tensor, stride: int, real: tl.tensor, DIM: tl.constexpr, WIDTH: tl.constexpr) -> tl.tensor:
    """Load rows `at` (R,) of a matrix with DIM columns as (R, WIDTH).

    The result is zero where not `real` and from column DIM on.
    """
    column = tl.arange(0, WIDTH)
    offset = at.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(base + offset, mask=real[:, None] & (column < DIM)[None, :], other=0.0)


@triton.jit
def store_rows(
    base: tl.tensor, at: tl.tensor, stride: int, inside: tl.tensor, value: tl.tensor, DIM: tl.constexpr, WIDTH: tl.constexpr
) -> None:
    """Store (R, WIDTH) in the rows `at` (R,) where `inside`, converted to the dtype of the target."""
    column = tl.arange(0, WIDTH)
    offset = at.to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(base + offset, value.to(base.dtype.element_ty), mask=inside[:, None] & (column < DIM)[None, :])


@triton.jit
def are_real(padding: tl.tensor, at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Mask of the tokens `at` that are inside the sequence and not padding."""
    if padding is not None:
        inside = inside & (tl.load(padding + at, mask=inside, other=1) == 0)
    return inside


@triton.jit
def wild_rows(rows: tl.tensor) -> tl.tensor:
    """Mask (R,) of the rows of (R, WIDTH) with a number that is not finite."""
    return tl.max(tl.where(tl.abs(rows) < float("inf"), 0, 1), 1) > 0


@triton.jit
def cleared(rows: tl.tensor) -> tl.tensor:
    """Rows (R, WIDTH) with zeros in those that are not finite, which would reach others by a weight of 0."""
    return tl.where(wild_rows(rows)[:, None], tl.zeros_like(rows), rows)


@triton.jit
def first_key(at: tl.tensor, window: int, CAUSAL: tl.constexpr, BLOCKED: tl.constexpr) -> tl.tensor:
    """First key in the window of the query `at`; see `Layout.bounds` for the four layouts."""
    if BLOCKED:
        first = at // window * window
    elif CAUSAL:
        first = tl.maximum(at - window + 1, 0)
    else:
        first = tl.maximum(at - window // 2, 0)
    return first


@triton.jit
def last_key(at: tl.tensor, length: int, window: int, CAUSAL: tl.constexpr, BLOCKED: tl.constexpr) -> tl.tensor:
    """Last key in the window of the query `at`."""
    if CAUSAL:
        last = at
    elif BLOCKED:
        last = tl.minimum(at // window * window + window - 1, length - 1)
    else:
        last = tl.minimum(at + (window - 1) // 2, length - 1)
    return last


@triton.jit
def first_query(at: tl.tensor, window: int, CAUSAL: tl.constexpr, BLOCKED: tl.constexpr) -> tl.tensor:
    """First query whose window contains the key `at`."""
    if CAUSAL:
        first = at
    elif BLOCKED:
        first = at // window * window
    else:
        first = tl.maximum(at - (window - 1) // 2, 0)
    return first


@triton.jit
def last_query(at: tl.tensor, length: int, window: int, CAUSAL: tl.constexpr, BLOCKED: tl.constexpr) -> tl.tensor:
    """Last query whose window contains the key `at`."""
    if BLOCKED:
        last = at // window * window + window - 1
    elif CAUSAL:
        last = at + window - 1
    else:
        last = at + window // 2
    return tl.minimum(last, length - 1)


@triton.jit
def set_of_globals(at: tl.tensor, chunk: int, CAUSAL: tl.constexpr) -> tl.tensor:
    """Index of the set of global nodes of the query `at`."""
    if CAUSAL:
        index = at // chunk
    else:
        index = at * 0
    return index


@triton.jit
def query_tile(
    query: tl.tensor,
    padding: tl.tensor,
    start: tl.tensor,
    query_token: int,
    length: int,
    window: int,
    CAUSAL: tl.constexpr,
    BLOCKED: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Load the queries of a tile, with their positions, their masks and the bounds of their windows."""
    at = start + tl.arange(0, TILE)
    end = tl.minimum(start + TILE, length)
    inside = at < length
    real = are_real(padding, at, inside)
    first = first_key(at, window, CAUSAL, BLOCKED)[:, None]
    last = last_key(at, length, window, CAUSAL, BLOCKED)[:, None]
    queries = load_rows(query, at, query_token, real, DIM, WIDTH)
    return at, end, inside, real, first, last, queries


@triton.jit
def window_logits(
    queries: tl.tensor,
    key: tl.tensor,
    padding: tl.tensor,
    low: tl.tensor,
    band_end: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    key_token: int,
    scale: float,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Logits of a tile of queries for TILE keys from position `low` on.

    Returns the positions of the keys, the mask of real keys, the keys, the logits, and the mask of keys in
    the window.
    """
    key_at = low + tl.arange(0, TILE)
    key_real = are_real(padding, key_at, key_at < band_end)
    seen = (key_at[None, :] >= first) & (key_at[None, :] <= last) & key_real[None, :]
    keys = load_rows(key, key_at, key_token, key_real, DIM, WIDTH)
    logit = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    return key_at, key_real, keys, logit, seen


@triton.jit
def global_logits(
    queries: tl.tensor,
    key: tl.tensor,
    gate: tl.tensor,
    index: tl.tensor,
    padding: tl.tensor,
    query_set: tl.tensor,
    low: tl.tensor,
    slot_end: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    key_token: int,
    num_global: int,
    scale: float,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Logits of a tile of queries for the global nodes in SLOTS slots from slot `low` on.

    Returns as `window_logits`, and the mask of slots whose gate is NaN or +inf.
    """
    slot = low + tl.arange(0, SLOTS)
    key_at = tl.load(index + slot, mask=slot < slot_end, other=-1)
    key_real = are_real(padding, key_at, key_at >= 0)
    # A global node inside the window is counted there, not here.
    seen = (query_set == (slot // num_global)[None, :]) & ((key_at[None, :] < first) | (key_at[None, :] > last)) & key_real[None, :]
    keys = load_rows(key, key_at, key_token, key_real, DIM, WIDTH)
    logit = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    wild = slot < 0
    if gate is not None:
        bias = tl.load(gate + key_at, mask=key_real, other=0.0)
        wild = (bias < float("inf")) == 0
        logit += bias[None, :]
    return key_at, key_real, keys, logit, seen, wild


@triton.jit
def accumulate(
    logit: tl.tensor,
    seen: tl.tensor,
    wild: tl.tensor,
    value: tl.tensor,
    mixed: tl.tensor,
    peak: tl.tensor,
    total: tl.tensor,
    spoiled: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """One step of the online softmax: add the keys of `logit` where `seen`.

    `mixed` is the weighted sum of values, `peak` the maximum logit, and `total` the sum of exponentials so
    far. `spoiled` counts the keys of each query that are `wild` or whose value is not finite.
    """
    wild = wild | wild_rows(value)
    spoiled += tl.sum(tl.where(seen & wild[None, :], 1, 0), 1)
    value = tl.where(wild[:, None], tl.zeros_like(value), value)
    logit = tl.where(seen & (wild == 0)[None, :], logit, float("-inf"))
    higher = tl.maximum(peak, tl.max(logit, 1))
    shift = tl.where(higher == float("-inf"), 0.0, higher)  # a query without any key so far
    weight = tl.exp2(logit - shift[:, None])
    decay = tl.exp2(peak - shift)
    mixed = tl.dot(weight.to(value.dtype), value, mixed * decay[:, None], input_precision="ieee")
    return mixed, higher, total * decay + tl.sum(weight, 1), spoiled


@triton.jit
def softmax_gradient(logit: tl.tensor, lse: tl.tensor, seen: tl.tensor, weight_grad: tl.tensor, delta: tl.tensor) -> tuple[tl.tensor, ...]:
    """Return the softmax weights and the gradient of the natural logits, from the gradient of the weights."""
    weight = tl.exp2(tl.where(seen, logit - lse, float("-inf")))
    return weight, weight * (weight_grad - delta)


@triton.jit
def add_query_gradient(
    grad: tl.tensor,
    logit: tl.tensor,
    seen: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    out_grads: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
) -> tl.tensor:
    """Add the contribution of some keys to the gradient of a tile of queries.

    A query whose `lse` (queries, 1) is not finite sees no key, or its output is NaN: it gets no gradient.
    """
    keys, values = cleared(keys), cleared(values)
    seen = seen & (lse < float("inf"))
    weight_grad = tl.dot(out_grads, tl.trans(values), input_precision="ieee")
    _, logit_grad = softmax_gradient(logit, lse, seen, weight_grad, delta)
    return tl.dot(logit_grad.to(keys.dtype), keys, grad, input_precision="ieee")


@triton.jit
def add_key_gradients(
    key_grad: tl.tensor,
    value_grad: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    bias: tl.tensor,
    seen: tl.tensor,
    query: tl.tensor,
    out_grad: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    at: tl.tensor,
    real: tl.tensor,
    query_token: int,
    grad_token: int,
    scale: float,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Add the contribution of the queries `at` to the gradients of some keys and values.

    `bias` (keys,) may be None. A query whose lse is not finite contributes nothing. Also returns the gradient
    of the logits (keys, queries).
    """
    row_lse = tl.load(lse + at, mask=real, other=float("inf"))
    real = real & (row_lse < float("inf"))
    seen = seen & real[None, :]
    queries = load_rows(query, at, query_token, real, DIM, WIDTH)
    out_grads = load_rows(out_grad, at, grad_token, real, DIM, WIDTH)
    row_delta = tl.load(delta + at, mask=real, other=0.0)[None, :]
    logit = tl.dot(keys, tl.trans(queries), input_precision="ieee") * scale
    if bias is not None:
        logit += bias[:, None]
    weight_grad = tl.dot(values, tl.trans(out_grads), input_precision="ieee")
    weight, logit_grad = softmax_gradient(logit, row_lse[None, :], seen, weight_grad, row_delta)
    value_grad = tl.dot(weight.to(out_grads.dtype), out_grads, value_grad, input_precision="ieee")
    key_grad = tl.dot(logit_grad.to(queries.dtype), queries, key_grad, input_precision="ieee")
    return key_grad, value_grad, logit_grad
