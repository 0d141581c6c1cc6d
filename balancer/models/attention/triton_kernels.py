"""The Triton kernels over tiles of queries: attention, and the gradient of the queries.

A tile sees one interval of keys, its band, and then the global slots of its chunks. Sets of global nodes lie behind one another in memory, so
the slots of all chunks that a tile touches are an interval too, gathered some at a time; a slot counts for the queries of its own chunk. So tiles
and chunks need not nest, and any window and chunk will do.

Imported only where Triton is needed. `TRITON_INTERPRET=1`, set before that, makes the kernels plain Python over CPU tensors.
"""

# Triton ships no types: a decorated kernel is untyped to mypy.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from balancer.models.attention.triton_tiles import LN2, are_real, first_key, fold, last_key, load_rows, own_set, store_rows, weigh


# Lengths change from batch to batch; specialized, each new kind of number would compile the kernel anew.
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
    """Attention of TILE queries of one head: `out` (B, n, H, d), and `lse` (B, H, n), infinite where a query sees nothing or is padding."""
    tiles = tl.cdiv(length, TILE)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    start = tl.program_id(0) % tiles * TILE
    batch, head = row // heads, row % heads
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    index += batch * sets * num_global
    if gate is not None:
        gate += batch * length
    if padding is not None:
        padding += batch * length

    at = start + tl.arange(0, TILE)
    end = tl.minimum(start + TILE, length)
    inside = at < length
    real = are_real(padding, at, inside)
    first = first_key(at, window, CAUSAL, BLOCKED)[:, None]
    last = last_key(at, length, window, CAUSAL, BLOCKED)[:, None]
    asking = load_rows(query, at, query_token, real, DIM, WIDTH)
    peak = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    mixed = tl.zeros((TILE, WIDTH), tl.float32)

    band_end = last_key(end - 1, length, window, CAUSAL, BLOCKED) + 1
    for low in range(first_key(start, window, CAUSAL, BLOCKED), band_end, TILE):
        key_at = low + tl.arange(0, TILE)
        key_real = are_real(padding, key_at, key_at < band_end)
        seen = (key_at[None, :] >= first) & (key_at[None, :] <= last) & key_real[None, :]
        keys = load_rows(key, key_at, key_token, key_real, DIM, WIDTH)
        logit = tl.dot(asking, tl.trans(keys), input_precision="ieee") * scale
        logit = tl.where(seen, logit, float("-inf"))
        mixed, peak, total = fold(logit, load_rows(value, key_at, value_token, key_real, DIM, WIDTH), mixed, peak, total)

    own = own_set(at, chunk, CAUSAL)[:, None]
    slot_end = (own_set(end - 1, chunk, CAUSAL) + 1) * num_global
    for low in range(own_set(start, chunk, CAUSAL) * num_global, slot_end, SLOTS):
        slot = low + tl.arange(0, SLOTS)
        key_at = tl.load(index + slot, mask=slot < slot_end, other=-1)
        key_real = are_real(padding, key_at, key_at >= 0)
        # A global node inside the window has been counted there.
        seen = (own == (slot // num_global)[None, :]) & ((key_at[None, :] < first) | (key_at[None, :] > last)) & key_real[None, :]
        keys = load_rows(key, key_at, key_token, key_real, DIM, WIDTH)
        logit = tl.dot(asking, tl.trans(keys), input_precision="ieee") * scale
        if gate is not None:
            logit += tl.load(gate + key_at, mask=key_real, other=0.0)[None, :]
        logit = tl.where(seen, logit, float("-inf"))
        mixed, peak, total = fold(logit, load_rows(value, key_at, value_token, key_real, DIM, WIDTH), mixed, peak, total)

    divisor = tl.where(total == 0, 1.0, total)
    mixed = tl.where(real[:, None], mixed / divisor[:, None], 0.0)
    store_rows(out + (batch * length * heads + head) * DIM, at, heads * DIM, inside, mixed, DIM, WIDTH)
    nothing = (total == 0) | (real == 0)
    tl.store(lse + row * length + at, tl.where(nothing, float("inf"), peak + tl.log2(divisor)), mask=inside)


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
    """`query_grad` (B, n, H, d) of TILE queries, and `delta` (B, H, n): the sum of out times its gradient, which the other two need."""
    tiles = tl.cdiv(length, TILE)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    start = tl.program_id(0) % tiles * TILE
    batch, head = row // heads, row % heads
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    index += batch * sets * num_global
    here = (batch * length * heads + head) * DIM
    if gate is not None:
        gate += batch * length
    if padding is not None:
        padding += batch * length

    at = start + tl.arange(0, TILE)
    end = tl.minimum(start + TILE, length)
    inside = at < length
    real = are_real(padding, at, inside)
    first = first_key(at, window, CAUSAL, BLOCKED)[:, None]
    last = last_key(at, length, window, CAUSAL, BLOCKED)[:, None]
    asking = load_rows(query, at, query_token, real, DIM, WIDTH)
    rising = load_rows(out_grad + here, at, heads * DIM, real, DIM, WIDTH)
    settled = load_rows(out + here, at, heads * DIM, real, DIM, WIDTH)
    inner = tl.sum(settled.to(tl.float32) * rising.to(tl.float32), 1)
    tl.store(delta + row * length + at, inner, mask=inside)
    level = tl.load(lse + row * length + at, mask=inside, other=float("inf"))[:, None]
    inner = inner[:, None]
    grad = tl.zeros((TILE, WIDTH), tl.float32)

    band_end = last_key(end - 1, length, window, CAUSAL, BLOCKED) + 1
    for low in range(first_key(start, window, CAUSAL, BLOCKED), band_end, TILE):
        key_at = low + tl.arange(0, TILE)
        key_real = are_real(padding, key_at, key_at < band_end)
        seen = (key_at[None, :] >= first) & (key_at[None, :] <= last) & key_real[None, :]
        keys = load_rows(key, key_at, key_token, key_real, DIM, WIDTH)
        logit = tl.dot(asking, tl.trans(keys), input_precision="ieee") * scale
        values = load_rows(value, key_at, value_token, key_real, DIM, WIDTH)
        flow = tl.dot(rising, tl.trans(values), input_precision="ieee")
        _, push = weigh(logit, level, seen, flow, inner)
        grad = tl.dot(push.to(keys.dtype), keys, grad, input_precision="ieee")

    own = own_set(at, chunk, CAUSAL)[:, None]
    slot_end = (own_set(end - 1, chunk, CAUSAL) + 1) * num_global
    for low in range(own_set(start, chunk, CAUSAL) * num_global, slot_end, SLOTS):
        slot = low + tl.arange(0, SLOTS)
        key_at = tl.load(index + slot, mask=slot < slot_end, other=-1)
        key_real = are_real(padding, key_at, key_at >= 0)
        seen = (own == (slot // num_global)[None, :]) & ((key_at[None, :] < first) | (key_at[None, :] > last)) & key_real[None, :]
        keys = load_rows(key, key_at, key_token, key_real, DIM, WIDTH)
        logit = tl.dot(asking, tl.trans(keys), input_precision="ieee") * scale
        if gate is not None:
            logit += tl.load(gate + key_at, mask=key_real, other=0.0)[None, :]
        values = load_rows(value, key_at, value_token, key_real, DIM, WIDTH)
        flow = tl.dot(rising, tl.trans(values), input_precision="ieee")
        _, push = weigh(logit, level, seen, flow, inner)
        grad = tl.dot(push.to(keys.dtype), keys, grad, input_precision="ieee")

    # From base 2 back to the scale of the logits themselves.
    store_rows(query_grad + here, at, heads * DIM, inside, grad * (scale * LN2), DIM, WIDTH)
