"""Triton kernels over tiles of queries: attention, and the gradient of the queries.

A tile of queries attends to one interval of keys, its band, and then to the global nodes of its chunks. The
sets of global nodes are consecutive in memory, so the slots of all chunks of a tile form an interval too;
they are loaded a fixed number at a time, and a slot is masked for queries of other chunks. Tiles therefore
need not align with chunks, and any window and chunk are possible.

This module is imported only where Triton is needed. With `TRITON_INTERPRET=1`, set before the import, the
kernels run as Python on CPU tensors.
"""

# Triton has no type stubs: a decorated kernel is untyped for mypy.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from balancer.models.attention.triton_tiles import (
    LN2,
    accumulate,
    add_query_gradient,
    first_key,
    global_logits,
    last_key,
    load_rows,
    locate,
    query_tile,
    set_of_globals,
    store_rows,
    wild_rows,
    window_logits,
)


# Lengths differ between batches; specialization would compile the kernel again for some of them.
@triton.jit(do_not_specialize=("length", "heads", "window", "chunk", "num_global", "sets"))
def forward(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    gate: tl.tensor,
    index: tl.tensor,
    padding: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    query_batch: int,
    query_token: int,
    query_head: int,
    key_batch: int,
    key_token: int,
    key_head: int,
    value_batch: int,
    value_token: int,
    value_head: int,
    length: int,
    heads: int,
    window: int,
    chunk: int,
    num_global: int,
    sets: int,
    scale: float,
    CAUSAL: tl.constexpr,
    BLOCKED: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    """Compute the attention of TILE queries of one head.

    It writes `out` (B, n, H, d) and `lse` (B, H, n), which is infinite where a query has no key or is
    padding, and NaN where its output is NaN.
    """
    row, start = locate(length, TILE)
    batch, head = row // heads, row % heads
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    index += batch * sets * num_global
    if gate is not None:
        gate += batch * length
    if padding is not None:
        padding += batch * length

    at, end, inside, real, first, last, queries = query_tile(
        query, padding, start, query_token, length, window, CAUSAL, BLOCKED, DIM, WIDTH, TILE
    )
    peak = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    mixed = tl.zeros((TILE, WIDTH), tl.float32)
    spoiled = tl.where(wild_rows(queries), 1, 0)

    band_end = last_key(end - 1, length, window, CAUSAL, BLOCKED) + 1
    for low in range(first_key(start, window, CAUSAL, BLOCKED), band_end, TILE):
        key_at, key_real, keys, logit, seen = window_logits(
            queries, key, padding, low, band_end, first, last, key_token, scale, DIM, WIDTH, TILE
        )
        values = load_rows(value, key_at, value_token, key_real, DIM, WIDTH)
        mixed, peak, total, spoiled = accumulate(logit, seen, wild_rows(keys), values, mixed, peak, total, spoiled)

    query_set = set_of_globals(at, chunk, CAUSAL)[:, None]
    slot_end = (set_of_globals(end - 1, chunk, CAUSAL) + 1) * num_global
    for low in range(set_of_globals(start, chunk, CAUSAL) * num_global, slot_end, SLOTS):
        key_at, key_real, keys, logit, seen, wild = global_logits(
            queries, key, gate, index, padding, query_set, low, slot_end, first, last, key_token, num_global, scale, DIM, WIDTH, SLOTS
        )
        values = load_rows(value, key_at, value_token, key_real, DIM, WIDTH)
        mixed, peak, total, spoiled = accumulate(logit, seen, wild | wild_rows(keys), values, mixed, peak, total, spoiled)

    total = tl.where(spoiled > 0, float("nan"), total)
    divisor = tl.where(total == 0, 1.0, total)
    mixed = tl.where(real[:, None], mixed / divisor[:, None], 0.0)
    store_rows(out + (batch * length * heads + head) * DIM, at, heads * DIM, inside, mixed, DIM, WIDTH)
    no_key = (total == 0) | (real == 0)
    tl.store(lse + row * length + at, tl.where(no_key, float("inf"), peak + tl.log2(divisor)), mask=inside)


@triton.jit(do_not_specialize=("length", "heads", "window", "chunk", "num_global", "sets"))
def query_gradient(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    gate: tl.tensor,
    index: tl.tensor,
    padding: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    out_grad: tl.tensor,
    delta: tl.tensor,
    query_grad: tl.tensor,
    query_batch: int,
    query_token: int,
    query_head: int,
    key_batch: int,
    key_token: int,
    key_head: int,
    value_batch: int,
    value_token: int,
    value_head: int,
    length: int,
    heads: int,
    window: int,
    chunk: int,
    num_global: int,
    sets: int,
    scale: float,
    CAUSAL: tl.constexpr,
    BLOCKED: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    """Compute the gradient of TILE queries of one head.

    It writes `query_grad` (B, n, H, d) and `delta` (B, H, n), the sum of `out` times its gradient, which the
    other gradient kernels read.
    """
    row, start = locate(length, TILE)
    batch, head = row // heads, row % heads
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    index += batch * sets * num_global
    offset = (batch * length * heads + head) * DIM
    if gate is not None:
        gate += batch * length
    if padding is not None:
        padding += batch * length

    at, end, inside, real, first, last, queries = query_tile(
        query, padding, start, query_token, length, window, CAUSAL, BLOCKED, DIM, WIDTH, TILE
    )
    out_grads = load_rows(out_grad + offset, at, heads * DIM, real, DIM, WIDTH)
    outs = load_rows(out + offset, at, heads * DIM, real, DIM, WIDTH)
    row_lse = tl.load(lse + row * length + at, mask=inside, other=float("inf"))
    row_delta = tl.where(row_lse < float("inf"), tl.sum(outs.to(tl.float32) * out_grads.to(tl.float32), 1), 0.0)
    tl.store(delta + row * length + at, row_delta, mask=inside)
    row_lse, row_delta = row_lse[:, None], row_delta[:, None]
    grad = tl.zeros((TILE, WIDTH), tl.float32)

    band_end = last_key(end - 1, length, window, CAUSAL, BLOCKED) + 1
    for low in range(first_key(start, window, CAUSAL, BLOCKED), band_end, TILE):
        key_at, key_real, keys, logit, seen = window_logits(
            queries, key, padding, low, band_end, first, last, key_token, scale, DIM, WIDTH, TILE
        )
        values = load_rows(value, key_at, value_token, key_real, DIM, WIDTH)
        grad = add_query_gradient(grad, logit, seen, keys, values, out_grads, row_lse, row_delta)

    query_set = set_of_globals(at, chunk, CAUSAL)[:, None]
    slot_end = (set_of_globals(end - 1, chunk, CAUSAL) + 1) * num_global
    for low in range(set_of_globals(start, chunk, CAUSAL) * num_global, slot_end, SLOTS):
        key_at, key_real, keys, logit, seen, _ = global_logits(
            queries, key, gate, index, padding, query_set, low, slot_end, first, last, key_token, num_global, scale, DIM, WIDTH, SLOTS
        )
        values = load_rows(value, key_at, value_token, key_real, DIM, WIDTH)
        grad = add_query_gradient(grad, logit, seen, keys, values, out_grads, row_lse, row_delta)

    # The gradient of base-2 logits is converted to that of the natural logits.
    store_rows(query_grad + offset, at, heads * DIM, inside, grad * (scale * LN2), DIM, WIDTH)
