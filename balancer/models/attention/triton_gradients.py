"""The Triton kernels over slots and over tiles of keys: the gradients of keys, values and gate, without an atomic.

What reaches a global node comes from queries anywhere. `slot_gradient` sums it per slot and group of queries (a chunk, or a segment where
nothing is causal) into a buffer; `key_gradient` adds to the band of its keys the slots that hold them, in sorted order. Every sum has one owner
and one order, so results repeat to the bit.
"""

# Triton ships no types: a decorated kernel is untyped to mypy.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from balancer.models.attention.triton_tiles import LN2, are_real, first_key, first_query, last_key, last_query, load_rows, store_rows, weigh


# Lengths change from batch to batch; specialized, each new kind of number would compile the kernel anew.
@triton.jit(do_not_specialize=("length", "heads", "window", "num_global", "slots", "group"))
def slot_gradient(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    gate: tl.tensor,
    slot_key: tl.tensor,
    padding: tl.tensor,
    lse: tl.tensor,
    out_grad: tl.tensor,
    delta: tl.tensor,
    slot_key_grad: tl.tensor,
    slot_value_grad: tl.tensor,
    slot_gate_grad: tl.tensor,
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
    num_global: int,
    slots: int,
    group: int,
    scale: float,
    CAUSAL: tl.constexpr,
    BLOCKED: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    """What the queries of a group send to its global slots: (B, H, slots, d) for key (unscaled) and value, (B, H, slots) for the gate.

    `slot_key` (B, slots) holds their positions; slots are `num_global` for each `group` of queries in a row.
    """
    tiles = tl.cdiv(slots, SLOTS)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    slot_start = tl.program_id(0) % tiles * SLOTS
    batch, head = row // heads, row % heads
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    out_grad += (batch * length * heads + head) * DIM
    if gate is not None:
        gate += batch * length
    if padding is not None:
        padding += batch * length

    slot = slot_start + tl.arange(0, SLOTS)
    inside = slot < slots
    key_at = tl.load(slot_key + batch * slots + slot, mask=inside, other=-1)
    key_real = are_real(padding, key_at, key_at >= 0)
    keys = load_rows(key, key_at, key_token, key_real, DIM, WIDTH)
    values = load_rows(value, key_at, value_token, key_real, DIM, WIDTH)
    worth = tl.zeros((SLOTS,), tl.float32)
    if gate is not None:
        worth = tl.load(gate + key_at, mask=key_real, other=0.0)
    own = (slot // num_global)[:, None]
    key_grad = tl.zeros((SLOTS, WIDTH), tl.float32)
    value_grad = tl.zeros((SLOTS, WIDTH), tl.float32)
    gate_grad = tl.zeros((SLOTS,), tl.float32)

    last_group = (tl.minimum(slot_start + SLOTS, slots) - 1) // num_global
    end = tl.minimum((last_group + 1) * group, length)
    for low in range(slot_start // num_global * group, end, TILE):
        at = low + tl.arange(0, TILE)
        real = are_real(padding, at, at < end)
        first = first_key(at, window, CAUSAL, BLOCKED)[None, :]
        last = last_key(at, length, window, CAUSAL, BLOCKED)[None, :]
        seen = (own == (at // group)[None, :]) & ((key_at[:, None] < first) | (key_at[:, None] > last)) & key_real[:, None]
        asking = load_rows(query, at, query_token, real, DIM, WIDTH)
        rising = load_rows(out_grad, at, heads * DIM, real, DIM, WIDTH)
        level = tl.load(lse + row * length + at, mask=real, other=float("inf"))[None, :]
        inner = tl.load(delta + row * length + at, mask=real, other=0.0)[None, :]
        logit = tl.dot(keys, tl.trans(asking), input_precision="ieee") * scale + worth[:, None]
        flow = tl.dot(values, tl.trans(rising), input_precision="ieee")
        weight, push = weigh(logit, level, seen, flow, inner)
        value_grad = tl.dot(weight.to(rising.dtype), rising, value_grad, input_precision="ieee")
        key_grad = tl.dot(push.to(asking.dtype), asking, key_grad, input_precision="ieee")
        gate_grad += tl.sum(push, 1)

    place = row * slots + slot
    store_rows(slot_key_grad, place, DIM, inside, key_grad, DIM, WIDTH)
    store_rows(slot_value_grad, place, DIM, inside, value_grad, DIM, WIDTH)
    tl.store(slot_gate_grad + place, gate_grad, mask=inside)


@triton.jit(do_not_specialize=("length", "heads", "window", "slots"))
def key_gradient(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    padding: tl.tensor,
    lse: tl.tensor,
    out_grad: tl.tensor,
    delta: tl.tensor,
    slot_key_grad: tl.tensor,
    slot_value_grad: tl.tensor,
    slot_gate_grad: tl.tensor,
    sorted_key: tl.tensor,
    sorted_slot: tl.tensor,
    begin: tl.tensor,
    key_grad: tl.tensor,
    value_grad: tl.tensor,
    gate_grad: tl.tensor,
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
    slots: int,
    scale: float,
    CAUSAL: tl.constexpr,
    BLOCKED: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    SLOTS: tl.constexpr,
) -> None:
    """`key_grad`, `value_grad` (B, n, H, d) of TILE keys, from the band and from the slots that hold them; `gate_grad` (B, H, n) likewise.

    `sorted_slot` (B, slots) are the slots in the order of their keys, `sorted_key` these keys, and `begin` (B, n + 1) where each key's begin.
    Without slots, `begin` is None, and nothing is written to `gate_grad`.
    """
    tiles = tl.cdiv(length, TILE)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    start = tl.program_id(0) % tiles * TILE
    batch, head = row // heads, row % heads
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    here = (batch * length * heads + head) * DIM
    if padding is not None:
        padding += batch * length

    key_at = start + tl.arange(0, TILE)
    key_end = tl.minimum(start + TILE, length)
    inside = key_at < length
    key_real = are_real(padding, key_at, inside)
    first = first_query(key_at, window, CAUSAL, BLOCKED)[:, None]
    last = last_query(key_at, length, window, CAUSAL, BLOCKED)[:, None]
    keys = load_rows(key, key_at, key_token, key_real, DIM, WIDTH)
    values = load_rows(value, key_at, value_token, key_real, DIM, WIDTH)
    to_key = tl.zeros((TILE, WIDTH), tl.float32)
    to_value = tl.zeros((TILE, WIDTH), tl.float32)

    end = last_query(key_end - 1, length, window, CAUSAL, BLOCKED) + 1
    for low in range(first_query(start, window, CAUSAL, BLOCKED), end, TILE):
        at = low + tl.arange(0, TILE)
        real = are_real(padding, at, at < end)
        seen = (at[None, :] >= first) & (at[None, :] <= last) & key_real[:, None]
        asking = load_rows(query, at, query_token, real, DIM, WIDTH)
        rising = load_rows(out_grad + here, at, heads * DIM, real, DIM, WIDTH)
        level = tl.load(lse + row * length + at, mask=real, other=float("inf"))[None, :]
        inner = tl.load(delta + row * length + at, mask=real, other=0.0)[None, :]
        logit = tl.dot(keys, tl.trans(asking), input_precision="ieee") * scale
        flow = tl.dot(values, tl.trans(rising), input_precision="ieee")
        weight, push = weigh(logit, level, seen, flow, inner)
        to_value = tl.dot(weight.to(rising.dtype), rising, to_value, input_precision="ieee")
        to_key = tl.dot(push.to(asking.dtype), asking, to_key, input_precision="ieee")

    if begin is not None:
        begin += batch * (length + 1)
        to_gate = tl.zeros((TILE,), tl.float32)
        rank_end = tl.load(begin + key_end)
        for low in range(tl.load(begin + start), rank_end, SLOTS):
            rank = batch * slots + low + tl.arange(0, SLOTS)
            held = low + tl.arange(0, SLOTS) < rank_end
            place = row * slots + tl.load(sorted_slot + rank, mask=held, other=0)
            mine = key_at[:, None] == tl.load(sorted_key + rank, mask=held, other=-1)[None, :]
            # Rows of ones and zeros: the product adds to each key what its own slots hold.
            pick = mine.to(tl.float32)
            to_key = tl.dot(pick, load_rows(slot_key_grad, place, DIM, held, DIM, WIDTH), to_key, input_precision="ieee")
            to_value = tl.dot(pick, load_rows(slot_value_grad, place, DIM, held, DIM, WIDTH), to_value, input_precision="ieee")
            amount = tl.load(slot_gate_grad + place, mask=held, other=0.0)
            to_gate += tl.sum(tl.where(mine, amount[None, :], 0.0), 1)
        tl.store(gate_grad + row * length + key_at, to_gate, mask=inside)

    store_rows(key_grad + here, key_at, heads * DIM, inside, to_key * (scale * LN2), DIM, WIDTH)
    store_rows(value_grad + here, key_at, heads * DIM, inside, to_value, DIM, WIDTH)
