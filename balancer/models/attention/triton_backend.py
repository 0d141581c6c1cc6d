"""The backend `triton`: sparse attention on CUDA, as custom torch operators.

There are one forward kernel and three backward kernels. Only the log-sum-exp of each query is saved for the
backward pass; no tensor has n squared elements. Gradients of global nodes are summed in sorted order, without
atomics, so results are bit-reproducible. The modules `triton_kernels.py` and `triton_gradients.py` describe
how the kernels divide the work. The operators (`balancer::sparse_attention_triton`) are opaque to
`torch.compile` and autograd.

Float32 is computed in float32, not in TF32, so it does not use the tensor cores; this backend is meant for
float16 and bfloat16. Tile sizes come from a fixed table, determined by what the compiler fits into registers;
there is no auto-tuning.

For small n most of the time is spent on launching kernels. No pass synchronizes with the device or copies to
the host, so callers can record CUDA graphs (`torch.cuda.graph`, or `torch.compile(mode="reduce-overhead")`)
to avoid it.

This module imports Triton only when it is used. To run the kernels without CUDA, set TRITON_INTERPRET=1 in
the environment before Triton and this module are imported. They then run, slowly, on CPU tensors.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from balancer.models.attention.layout import Layout
from balancer.models.attention.transforms import active, differentiable, fold, second_order, split

INSTALLED = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
"""Whether kernels are interpreted; like Triton, this module reads the variable on import."""
WIDEST = 128
"""Maximum d: a row of a head is stored completely in registers and shared memory."""
_LARGEST_TILE = {2: (64, 32), 4: (32, 16)}
"""Tile sizes by bytes per element, for up to 64 channels and for more.

They are limited by the registers of a program with four warps.
"""
SEGMENT = 256
"""Number of queries whose gradients one program sums if not causal.

All queries then share one set of global nodes.
"""


def refuses(query: Tensor, _layout: Layout) -> str | None:
    """Return the reason why this backend can't be used for `query` (B, n, H, d), or None if it can."""
    if not INSTALLED:
        return "Triton is not installed"
    if query.device.type != "cuda" and not INTERPRETED:
        return f"query is on {query.device}, but Triton needs cuda"
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"query is {query.dtype}, but its kernels take float32, float16 and bfloat16"
    if query.dtype == torch.bfloat16 and INTERPRETED:
        return "query is torch.bfloat16, which Triton's interpreter (TRITON_INTERPRET) does not support"
    if query.shape[-1] > WIDEST:
        return f"heads have {query.shape[-1]} channels, but its kernels take at most {WIDEST}"
    return None


def run(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout) -> Tensor:
    """Compute sparse attention; see `balancer.models.attention.backends` for the arguments and the result."""
    attend = _transformed if active() else torch.ops.balancer.sparse_attention_triton
    out: Tensor = attend(
        query,
        key,
        value,
        None if gate is None else gate.float(),
        index,
        padding,
        layout.window,
        layout.chunk,
        layout.causal,
        layout.mode == "block",
    )[0]
    return out


@dataclass(frozen=True)
class _Plan:
    """Division of one call into programs."""

    window: int
    chunk: int
    tile: int
    """Number of queries, or keys, per program."""
    slots: int
    """Number of global slots loaded at a time."""
    width: int
    """d, padded to a size that `tl.dot` supports."""

    @classmethod
    def of(cls, query: Tensor, index: Tensor, window: int, chunk: int, causal: bool) -> _Plan:
        """Choose the sizes from a fixed table, so that equal shapes and dtypes always give equal results."""
        length, dim = query.shape[1], query.shape[-1]
        # Larger values would not change the result; limiting them keeps sums of positions within 32 bits.
        window, chunk = min(window, 2 * length), min(chunk, length)
        width = max(16, _power_of_two(dim))
        tile = min(_LARGEST_TILE[query.element_size()][width > 64], max(16, _power_of_two(min(window, length))))
        # Maximum number of chunks of a tile, including a partial one at each end.
        touched = -(-(tile - 1) // chunk) + (1 if tile % chunk and chunk % tile else 0) if causal else 1
        slots = min(tile, 32, max(16, _power_of_two(index.shape[-1] * touched)))
        return cls(window, chunk, tile, slots, width)

    def options(self) -> dict[str, int]:
        """Return the keyword arguments of every launch."""
        sizes = {"WIDTH": self.width, "TILE": self.tile, "SLOTS": self.slots}
        # Fusing is set explicitly, because Triton plans to change its default and warns if it is not set.
        return {**sizes, "num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least `number`."""
    return 1 << max(0, number - 1).bit_length()


def _rows_dense(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors with contiguous channels; other strides are not changed."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _base_two(gate: Tensor | None) -> Tensor | None:
    return None if gate is None else (gate * math.log2(math.e)).contiguous()


def _bytes(padding: Tensor | None) -> Tensor | None:
    return None if padding is None else padding.contiguous().view(torch.uint8)


def _launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    kernel[(programs,)](*arguments, **options)


@torch.library.custom_op(
    "balancer::sparse_attention_triton",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? gate, Tensor index, Tensor? padding, int window, int chunk, bool causal, bool block)"
    " -> (Tensor, Tensor)",
)
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor | None,
    index: Tensor,
    padding: Tensor | None,
    window: int,
    chunk: int,
    causal: bool,
    block: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the attention (B, n, H, d) and each query's log2 of the sum of exponentials (B, H, n) float32.

    The latter is infinite for a query without any key, and NaN for one whose output is NaN.
    """
    from balancer.models.attention import triton_kernels

    batch, length, heads, dim = query.shape
    if not query.numel():
        return query.new_empty(query.shape), torch.empty(batch, heads, length, device=query.device)
    plan = _Plan.of(query, index, window, chunk, causal)
    query, key, value = _rows_dense(query, key, value)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty(batch, heads, length, dtype=torch.float32, device=query.device)
    with torch.cuda.device_of(query):
        _launch(
            triton_kernels.forward,
            batch * heads * -(-length // plan.tile),
            *(query, key, value, _base_two(gate), index.contiguous(), _bytes(padding), out, lse, *_strides(query, key, value)),
            *(length, heads, plan.window, plan.chunk, index.shape[-1], index.shape[1], dim**-0.5 * math.log2(math.e)),
            CAUSAL=causal,
            BLOCKED=block,
            DIM=dim,
            **plan.options(),
        )
    return out, lse


@torch.library.custom_op(
    "balancer::sparse_attention_triton_backward",
    mutates_args=(),
    schema="(Tensor out_grad, Tensor query, Tensor key, Tensor value, Tensor? gate, Tensor index, Tensor? padding, Tensor out, Tensor lse, int window,"
    " int chunk, bool causal, bool block) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    out_grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor | None,
    index: Tensor,
    padding: Tensor | None,
    out: Tensor,
    lse: Tensor,
    window: int,
    chunk: int,
    causal: bool,
    block: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of query, key, value (B, n, H, d), and of the gate (B, n) float32.

    The last is empty without a gate.
    """
    from balancer.models.attention import triton_gradients, triton_kernels

    batch, length, heads, dim = query.shape
    if not query.numel():
        return torch.empty_like(out), torch.empty_like(out), torch.empty_like(out), lse.new_zeros((0,) if gate is None else gate.shape)
    count = index.shape[-1]
    plan = _Plan.of(query, index, window, chunk, causal)
    query, key, value = _rows_dense(query, key, value)
    out_grad, gate, padding = out_grad.contiguous(), _base_two(gate), _bytes(padding)
    query_grad, key_grad, value_grad = (torch.empty_like(out) for _ in range(3))
    delta = torch.empty_like(lse)
    gate_by_head = torch.empty_like(lse) if count else None
    common: dict[str, Any] = {"CAUSAL": causal, "BLOCKED": block, "DIM": dim, "scale": dim**-0.5 * math.log2(math.e), **plan.options()}
    strides = _strides(query, key, value)
    tiles = batch * heads * -(-length // plan.tile)
    with torch.cuda.device_of(query):
        _launch(
            triton_kernels.query_gradient,
            tiles,
            *(query, key, value, gate, index.contiguous(), padding, out, lse, out_grad, delta, query_grad, *strides),
            *(length, heads, plan.window, plan.chunk, count, index.shape[1]),
            **common,
        )
        by_slot: list[Tensor | None] = [None] * 3
        by_key: list[Tensor | None] = [None] * 3
        slots = 0
        if count:
            group = plan.chunk if causal else SEGMENT
            slot_key = index.expand(-1, -(-length // group), -1).reshape(batch, -1)
            slots = slot_key.shape[1]
            sums = lse.new_empty(2, batch, heads, slots, dim)
            by_slot = [sums[0], sums[1], lse.new_empty(batch, heads, slots)]
            _launch(
                triton_gradients.slot_gradient,
                batch * heads * -(-slots // plan.slots),
                *(query, key, value, gate, slot_key, padding, lse, out_grad, delta, *by_slot, *strides),
                *(length, heads, plan.window, count, slots, group),
                **common,
            )
            sorted_key, sorted_slot = slot_key.sort(stable=True)
            positions = torch.arange(length + 1, device=index.device).expand(batch, -1).contiguous()
            by_key = [sorted_key, sorted_slot, torch.searchsorted(sorted_key, positions)]
        _launch(
            triton_gradients.key_gradient,
            tiles,
            *(query, key, value, padding, lse, out_grad, delta, *by_slot, *by_key, key_grad, value_grad, gate_by_head, *strides),
            *(length, heads, plan.window, slots),
            **{**common, "SLOTS": 16},  # fewer, because these float32 products share the registers with the tile of keys
        )
    if gate is None:
        return query_grad, key_grad, value_grad, lse.new_empty(0)
    return query_grad, key_grad, value_grad, lse.new_zeros(batch, length) if gate_by_head is None else gate_by_head.sum(1)


@_forward.register_fake
def _forward_fake(query: Tensor, *_others: Any) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((batch, heads, length), dtype=torch.float32)


@_backward.register_fake
def _backward_fake(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gate, out, lse = given[4], given[7], given[8]
    first, second, third = (torch.empty_like(out) for _ in range(3))
    return first, second, third, lse.new_empty((0,) if gate is None else gate.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Save inputs and outputs for the backward pass."""
    *tensors, ctx.window, ctx.chunk, ctx.causal, ctx.block = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, out_grad: Tensor, _lse_grad: Tensor | None) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    grads = torch.ops.balancer.sparse_attention_triton_backward(out_grad, *saved, ctx.window, ctx.chunk, ctx.causal, ctx.block)
    return (*grads[:3], None if saved[3] is None else grads[3], *[None] * 6)


_forward.register_autograd(_differentiate, setup_context=_save)


def _refuse(*_given: Any) -> None:
    raise second_order("triton")


_backward.register_autograd(_refuse)


_transformed = differentiable("triton", _forward, _backward)


@_forward.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> Any:
    return split(info.batch_size, _forward(*fold(info.batch_size, in_dims[:6], given[:6]), *given[6:]))


@_backward.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> Any:
    return split(info.batch_size, _backward(*fold(info.batch_size, in_dims[:9], given[:9]), *given[9:]))
