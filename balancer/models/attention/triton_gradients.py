"""Triton kernels over slots and over tiles of keys: the gradients of keys, values and gate, without atomics.

A global node receives gradients from distant queries. `slot_gradient` sums them for each slot and group of
queries (a chunk, or a segment if not causal) into a buffer. `key_gradient` sums the gradients from the band
of its keys, and adds the slots that hold these keys, in sorted order. Every sum is computed by one program in
a fixed order, so results are bit-reproducible.
"""

# Triton has no type stubs: a decorated kernel is untyped for mypy.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import triton
import triton.language as tl

from balancer.models.attention.triton_tiles import (
    LN2,
    add_key_gradients,
    are_real,
    cleared,
    first_key,
    first_query,
    last_key,
    last_query,
    load_rows,
    locate,
    store_rows,
)


# Lengths differ between batches; specialization would compile the kernel again for some of them.
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
    """Sum the gradients that the global slots of each group receive from its queries.

    It writes (B, H, slots, d) for key (unscaled) and value, and (B, H, slots) for the gate. `slot_key` (B,
    slots) are the positions of the keys; each `group` of consecutive queries has `num_global` slots.
    """
    row, slot_start = locate(slots, SLOTS)
    batch, head = row // heads, row % heads
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    out_grad += (batch * length * heads + head) * DIM
    lse += row * length
    delta += row * length
    if gate is not None:
        gate += batch * length
    if padding is not None:
        padding += batch * length

    slot = slot_start + tl.arange(0, SLOTS)
    inside = slot < slots
    key_at = tl.load(slot_key + batch * slots + slot, mask=inside, other=-1)
    key_real = are_real(padding, key_at, key_at >= 0)
    keys = cleared(load_rows(key, key_at, key_token, key_real, DIM, WIDTH))
    values = cleared(load_rows(value, key_at, value_token, key_real, DIM, WIDTH))
    bias = tl.zeros((SLOTS,), tl.float32)
    if gate is not None:
        bias = tl.load(gate + key_at, mask=key_real, other=0.0)
    slot_group = (slot // num_global)[:, None]
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
        seen = (slot_group == (at // group)[None, :]) & ((key_at[:, None] < first) | (key_at[:, None] > last)) & key_real[:, None]
        key_grad, value_grad, logit_grad = add_key_gradients(
            key_grad,
            value_grad,
            keys,
            values,
            bias,
            seen,
            query,
            out_grad,
            lse,
            delta,
            at,
            real,
            query_token,
            heads * DIM,
            scale,
            DIM,
            WIDTH,
        )
        gate_grad += tl.sum(logit_grad, 1)

    target = row * slots + slot
    store_rows(slot_key_grad, target, DIM, inside, key_grad, DIM, WIDTH)
    store_rows(slot_value_grad, target, DIM, inside, value_grad, DIM, WIDTH)
    tl.store(slot_gate_grad + target, gate_grad, mask=inside)


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
    """Compute the gradients of TILE keys, from the queries near them and from the slots that hold them.

    It writes `key_grad` and `value_grad` (B, n, H, d) and `gate_grad` (B, H, n). `sorted_slot` (B, slots) are
    the slots in the order of their keys, `sorted_key` (B, slots) these keys, and `begin` (B, n + 1) the index
    of the first slot of each key. Without slots, `begin` is None and `gate_grad` is not written.
    """
    row, start = locate(length, TILE)
    batch, head = row // heads, row % heads
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    offset = (batch * length * heads + head) * DIM
    out_grad += offset
    lse += row * length
    delta += row * length
    if padding is not None:
        padding += batch * length

    key_at = start + tl.arange(0, TILE)
    key_end = tl.minimum(start + TILE, length)
    inside = key_at < length
    key_real = are_real(padding, key_at, inside)
    first = first_query(key_at, window, CAUSAL, BLOCKED)[:, None]
    last = last_query(key_at, length, window, CAUSAL, BLOCKED)[:, None]
    keys = cleared(load_rows(key, key_at, key_token, key_real, DIM, WIDTH))
    values = cleared(load_rows(value, key_at, value_token, key_real, DIM, WIDTH))
    to_key = tl.zeros((TILE, WIDTH), tl.float32)
    to_value = tl.zeros((TILE, WIDTH), tl.float32)

    end = last_query(key_end - 1, length, window, CAUSAL, BLOCKED) + 1
    for low in range(first_query(start, window, CAUSAL, BLOCKED), end, TILE):
        at = low + tl.arange(0, TILE)
        real = are_real(padding, at, at < end)
        seen = (at[None, :] >= first) & (at[None, :] <= last) & key_real[:, None]
        to_key, to_value, _ = add_key_gradients(
            to_key, to_value, keys, values, None, seen, query, out_grad, lse, delta, at, real, query_token, heads * DIM, scale, DIM, WIDTH
        )

    if begin is not None:
        begin += batch * (length + 1)
        to_gate = tl.zeros((TILE,), tl.float32)
        rank_end = tl.load(begin + key_end)
        for low in range(tl.load(begin + start), rank_end, SLOTS):
            rank = batch * slots + low + tl.arange(0, SLOTS)
            valid = low + tl.arange(0, SLOTS) < rank_end
            slot = row * slots + tl.load(sorted_slot + rank, mask=valid, other=0)
            of_key = key_at[:, None] == tl.load(sorted_key + rank, mask=valid, other=-1)[None, :]
            # The product with this matrix of ones and zeros adds to each key the gradients of its slots.
            one_hot = of_key.to(tl.float32)
            to_key = tl.dot(one_hot, load_rows(slot_key_grad, slot, DIM, valid, DIM, WIDTH), to_key, input_precision="ieee")
            to_value = tl.dot(one_hot, load_rows(slot_value_grad, slot, DIM, valid, DIM, WIDTH), to_value, input_precision="ieee")
            amount = tl.load(slot_gate_grad + slot, mask=valid, other=0.0)
            to_gate += tl.sum(tl.where(of_key, amount[None, :], 0.0), 1)
        tl.store(gate_grad + row * length + key_at, to_gate, mask=inside)

    store_rows(key_grad + offset, key_at, heads * DIM, inside, to_key * (scale * LN2), DIM, WIDTH)
    store_rows(value_grad + offset, key_at, heads * DIM, inside, to_value, DIM, WIDTH)
