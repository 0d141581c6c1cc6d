"""The backend `native`: a vectorised C++ kernel for float32 on CPUs (kernels/), called by ctypes and known to torch as an operator.

The library is built when the package is installed, where there is a compiler; without it everything else works, and `balancer doctor` says so. It holds the
kernel for AVX-512, AVX2 and the compiler's baseline and takes the best the machine has. Threads are torch's number of threads, but no thread ever
shares a sum, so results do not depend on it.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor

from balancer.models.attention.layout import Layout
from balancer.models.native_library import cant_load, load_library

MOST_CHANNELS = 256
"""Channels of a head that the kernel is meant for."""
STEM = "_native_attention"
INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")

_Strides = ctypes.c_int64 * 3


class _Problem(ctypes.Structure):
    """`Problem` in kernels/attention.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((name, _Strides) for name in ("query_stride", "key_stride", "value_stride")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "heads", "channels")),
        ("index", ctypes.c_void_p),
        ("chunks", ctypes.c_int64),
        ("num_global", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("gate", "padding")),
        *((name, ctypes.c_int64) for name in ("window", "chunk", "causal", "block")),
        *((name, ctypes.c_void_p) for name in ("out", "lse", "grad", "dq", "dk", "dv", "dgate")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("threads", "isa")),
    )


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    library, name = load_library(Path(__file__).parent, STEM)
    if library is None:
        return None, name
    try:
        library.balancer_attention_layout.restype = ctypes.c_int64
        size = library.balancer_attention_layout()
    except AttributeError as error:
        return None, cant_load(name, error)
    if size != ctypes.sizeof(_Problem):
        return None, f"{name} is of another version: install balancer again"
    return library, None


# Loaded at once, which takes less than a millisecond: a function that torch traces must not find files first.
_LIBRARY, _ABSENCE = _load()


def absence() -> str | None:
    """Why the kernel can't be used here, or None."""
    return _ABSENCE


def instruction_set() -> int | None:
    """Index in `INSTRUCTION_SETS` of the best one here; None without the library."""
    return None if _LIBRARY is None else int(_LIBRARY.balancer_attention_isa())


def refuses(query: Tensor, layout: Layout) -> str | None:  # noqa: ARG001 (a backend's interface)
    """Why this backend can't work here, or None."""
    if query.device.type != "cpu":
        return f"it computes on CPUs, the tensors are on {query.device.type}"
    if query.dtype != torch.float32:
        return f"it computes in float32, the tensors are {query.dtype}"
    if query.shape[-1] > MOST_CHANNELS:
        return f"it takes up to {MOST_CHANNELS} channels a head, given {query.shape[-1]}"
    return absence()


def run(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout) -> Tensor:
    """Arguments and result as `balancer.models.attention.backends` has them."""
    gate = None if gate is None else gate.float()
    out, _ = _forward(query, key, value, gate, index, padding, layout.window, layout.chunk, layout.causal, layout.mode == "block")
    mixed: Tensor = out
    return mixed


@torch.library.custom_op("balancer::sparse_attention_native", mutates_args=(), device_types="cpu")
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
    """Output (B, n, H, d) and the log of the softmax's sum, (B, H, n)."""
    batch, length, heads, _ = query.shape
    out, lse = torch.empty(query.shape), torch.empty(batch, heads, length)
    _call(query, key, value, gate, index, padding, window, chunk, causal, block, out, lse)
    return out, lse


@_forward.register_fake
def _(query: Tensor, *_others: object) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty(batch, heads, length)


@torch.library.custom_op("balancer::sparse_attention_native_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor,
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
    """Gradients of query, key and value (B, n, H, d), and of the gate (B, n), empty where there is none."""
    batch, length, heads, _ = query.shape
    dq, dk, dv = (torch.empty(query.shape) for _ in range(3))
    dgate = torch.zeros((batch, heads, length) if gate is not None else (0, 0, 0))
    _call(query, key, value, gate, index, padding, window, chunk, causal, block, out, lse, grad.contiguous(), dq, dk, dv, dgate)
    return dq, dk, dv, dgate.sum(1)


@_backward.register_fake
def _(
    _grad: Tensor, query: Tensor, _key: Tensor, _value: Tensor, gate: Tensor | None, *_others: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dgate = query.new_empty(query.shape[:2] if gate is not None else (0, 0))
    return query.new_empty(query.shape), query.new_empty(query.shape), query.new_empty(query.shape), dgate


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, window, chunk, causal, block = inputs
    ctx.save_for_backward(*tensors, *output)  # type: ignore[arg-type]
    ctx.knobs = (window, chunk, causal, block)  # type: ignore[attr-defined]


def _differentiate(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, gate, index, padding, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]
    dq, dk, dv, dgate = _backward(grad, query, key, value, gate, index, padding, out, lse, *ctx.knobs)  # type: ignore[attr-defined]
    return dq, dk, dv, None if gate is None else dgate, None, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _call(
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
    out: Tensor,
    lse: Tensor,
    grad: Tensor | None = None,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
    dgate: Tensor | None = None,
    *,
    isa: int | None = None,
) -> None:
    """Fill the output tensors; a forward pass where `grad` is None."""
    library = _LIBRARY
    if library is None:
        raise RuntimeError(f"the native attention kernel is not there: {_ABSENCE}")
    # Any strides will do but that of the channels.
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    index = index.contiguous()
    gate, padding = (None if x is None else x.contiguous() for x in (gate, padding))
    batch, length, heads, channels = query.shape

    def at(x: Tensor | None) -> int | None:
        return None if x is None or not x.numel() else x.data_ptr()

    problem = _Problem(
        *(at(x) for x in (query, key, value)),
        *(_Strides(*x.stride()[:3]) for x in (query, key, value)),
        *(batch, length, heads, channels),
        at(index),
        *index.shape[1:],
        *(at(gate), at(padding)),
        *(window, chunk, causal, block),
        *(at(x) for x in (out, lse, grad, dq, dk, dv, dgate)),
        1 / math.sqrt(channels),
        torch.get_num_threads(),
        int(library.balancer_attention_isa()) if isa is None else isa,
    )
    if library.balancer_attention_run(ctypes.byref(problem)):
        raise MemoryError(f"sparse attention of {tuple(query.shape)} needs more memory than there is; give smaller batches")
