"""The backend `native`: a vectorized C++ kernel for float32 on CPUs (kernels/).

It is called by ctypes as a custom torch operator. The library is compiled when the package is installed, if
there is a compiler. Without it the other backends are used, and `balancer doctor` reports it. The library
contains versions of the kernel for AVX-512, AVX2 and the compiler's baseline, and the best one for the
processor is used. The kernel uses torch's number of threads; every sum is computed by one thread, so results
do not depend on that number.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from balancer.models.attention.layout import Layout
from balancer.models.attention.transforms import active, differentiable, fold, second_order, split
from balancer.native_library import allowed_version, load_library

MOST_CHANNELS = 256
"""Maximum number of channels per head."""
STEM = "_native_attention"
MOST_SELECTED = 64
"""Maximum number of global nodes that `select` is fast for."""
INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")
_VERSIONS = ("portable", "avx2", "avx512")
"""`INSTRUCTION_SETS` by the names of `BALANCER_INSTRUCTIONS`."""

_Strides = ctypes.c_int64 * 3


class _Problem(ctypes.Structure):
    """Mirror of the struct `Problem` in kernels/attention.cpp, field by field."""

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
    """Load the library, or return the reason why it can't be used here."""
    return load_library(Path(__file__).parent, STEM, _declare)


def _declare(library: ctypes.CDLL, name: str) -> str | None:
    """Return the reason if the library's `Problem` differs from `_Problem`."""
    library.balancer_attention_layout.restype = ctypes.c_int64
    library.balancer_attention_select.restype = ctypes.c_int32
    same = library.balancer_attention_layout() == ctypes.sizeof(_Problem)
    return None if same else f"{name} is from another version: install balancer again"


# Loaded on import, which takes less than a millisecond: a function traced by torch must not search for files.
_LIBRARY, _ABSENCE = _load()


def absence() -> str | None:
    """Return the reason why the kernel can't be used here, or None if it can."""
    return _ABSENCE


@functools.cache
def instruction_set() -> int | None:
    """Return the index in `INSTRUCTION_SETS` of the set that is used, or None without the library.

    Raises:
        InputError: `BALANCER_INSTRUCTIONS` names an unknown set.
        UnsupportedError: The processor does not have the set it names.
    """
    return None if _LIBRARY is None else allowed_version(_VERSIONS, int(_LIBRARY.balancer_attention_isa()))


def refuses(query: Tensor, layout: Layout) -> str | None:  # noqa: ARG001 (interface of backends)
    """Return the reason why this backend can't be used here, or None if it can."""
    if query.device.type != "cpu":
        return f"it needs tensors on a CPU, given {query.device.type}"
    if query.dtype != torch.float32:
        return f"it needs float32, given {query.dtype}"
    if query.shape[-1] > MOST_CHANNELS:
        return f"it takes at most {MOST_CHANNELS} channels per head, given {query.shape[-1]}"
    return absence()


def run(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None, index: Tensor, padding: Tensor | None, layout: Layout) -> Tensor:
    """Compute sparse attention; see `balancer.models.attention.backends` for the arguments and the result."""
    gate = None if gate is None else gate.float()
    attend = _transformed if active() else _forward
    out, _ = attend(query, key, value, gate, index, padding, layout.window, layout.chunk, layout.causal, layout.mode == "block")
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
    """Compute the output (B, n, H, d) and the binary logarithm of the softmax's denominator (B, H, n).

    The latter is infinite for a query without any key, and NaN for one whose output is NaN.
    """
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
    """Compute the gradients of query, key and value (B, n, H, d), and of the gate (B, n).

    The last is empty without a gate.
    """
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


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, window, chunk, causal, block = inputs
    ctx.save_for_backward(*tensors, *output)  # type: ignore[arg-type]
    ctx.layout = (window, chunk, causal, block)  # type: ignore[attr-defined]


def _differentiate(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, gate, index, padding, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]
    dq, dk, dv, dgate = _backward(grad, query, key, value, gate, index, padding, out, lse, *ctx.layout)  # type: ignore[attr-defined]
    return dq, dk, dv, None if gate is None else dgate, None, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _refuse(*_given: object) -> None:
    raise second_order("native")


_backward.register_autograd(_refuse)


_transformed = differentiable("native", _forward, _backward)


@_forward.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> Any:
    return split(info.batch_size, _forward(*fold(info.batch_size, in_dims[:6], given[:6]), *given[6:]))


@_backward.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> Any:
    return split(info.batch_size, _backward(*fold(info.batch_size, in_dims[:9], given[:9]), *given[9:]))


@torch.library.custom_op("balancer::select_globals_native", mutates_args=(), device_types="cpu")
def select(score: Tensor, padding: Tensor | None, num_global: int, chunk: int, causal: bool) -> Tensor:
    """Select the global nodes of float32 scores; see `balancer.models.attention.selection`."""
    if _LIBRARY is None:
        raise RuntimeError(f"the native attention kernel can't be used: {_ABSENCE}")
    batch, length = score.shape
    index = torch.empty(batch, max(1, -(-length // chunk)) if causal else 1, num_global, dtype=torch.int64)
    score, padding = score.contiguous(), None if padding is None else padding.contiguous()
    addresses = (x if x is None else ctypes.c_void_p(x.data_ptr()) for x in (score, padding))
    sizes = (ctypes.c_int64(size) for size in (batch, length, chunk, num_global, causal))
    if _LIBRARY.balancer_attention_select(*addresses, *sizes, ctypes.c_void_p(index.data_ptr())):
        raise MemoryError("the selection of global nodes needs more memory than is available")
    return index


@select.register_fake
def _(score: Tensor, _padding: Tensor | None, num_global: int, chunk: int, causal: bool) -> Tensor:
    batch, length = score.shape
    return score.new_empty(batch, torch.sym_max(1, -(-length // chunk)) if causal else 1, num_global, dtype=torch.int64)


@select.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> Any:
    found, dims = split(info.batch_size, [select(*fold(info.batch_size, in_dims[:2], given[:2]), *given[2:])])
    return found[0], dims[0]


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
    """Fill the output tensors. Without `grad` this is a forward pass, else a backward pass."""
    library = _LIBRARY
    if library is None:
        raise RuntimeError(f"the native attention kernel can't be used: {_ABSENCE}")
    # All strides are allowed, except that the channels must be contiguous.
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    index = index.contiguous()
    gate, padding = (None if x is None else x.contiguous() for x in (gate, padding))
    batch, length, heads, channels = query.shape

    def address(x: Tensor | None) -> int | None:
        return None if x is None or not x.numel() else x.data_ptr()

    problem = _Problem(
        *(address(x) for x in (query, key, value)),
        *(_Strides(*x.stride()[:3]) for x in (query, key, value)),
        *(batch, length, heads, channels),
        address(index),
        *index.shape[1:],
        *(address(gate), address(padding)),
        *(window, chunk, causal, block),
        *(address(x) for x in (out, lse, grad, dq, dk, dv, dgate)),
        1 / math.sqrt(channels),
        torch.get_num_threads(),
        instruction_set() if isa is None else isa,
    )
    if library.balancer_attention_run(ctypes.byref(problem)):
        raise MemoryError(f"sparse attention of {tuple(query.shape)} needs more memory than is available; give smaller batches")
