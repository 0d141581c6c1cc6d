"""The operator of `flex_attention`: a vectorized C++ kernel for float32 on CPUs (kernels/flex.cpp).

It is called by ctypes as a custom torch operator with a gradient and a rule for `vmap`. The library is
compiled when the package is installed, if there is a compiler. It contains versions of the kernel for
AVX-512, AVX2 and the compiler's baseline, and the best one for the processor is used. The kernel uses torch's
number of threads; every sum is computed in a fixed order, so results do not depend on that number.

Only blocks of keys that a block of queries sees are visited. A tile of 64 queries and 64 keys is held at a
time: no matrix of all queries and keys exists, forward or backward.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from balancer.errors import UnsupportedError
from balancer.native_library import allowed_version, load_library

STEM = "_native_flex"
INSTRUCTION_SETS = ("portable", "avx2", "avx512")
"""Versions of the kernel by their names in `balancer.native_library`; the variable BALANCER_INSTRUCTIONS
restricts them.
"""

_Strides = ctypes.c_int64 * 3


class _Problem(ctypes.Structure):
    """Mirror of the struct `Problem` in kernels/flex.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "out", "grad", "mixed", "dq", "dk", "dv")),
        *((f"{name}_stride", _Strides) for name in ("query", "key", "value", "out", "grad", "dq", "dk", "dv")),
        *((name, ctypes.c_void_p) for name in ("lse", "grad_lse")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "key_heads", "queries", "keys", "channels", "value_channels")),
        ("plan", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("threads", "isa")),
    )


def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Load the library, or return the reason why it can't be used here."""
    return load_library(Path(__file__).parent, STEM, _declare)


def _declare(library: ctypes.CDLL, name: str) -> str | None:
    """Return the reason if the library's `Problem` differs from `_Problem`."""
    library.balancer_flex_layout.restype = ctypes.c_int64
    same = library.balancer_flex_layout() == ctypes.sizeof(_Problem)
    return None if same else f"{name} is from another version: install balancer again"


# Loaded on import, which takes less than a millisecond: a function traced by torch must not search for files.
_LIBRARY, _ABSENCE = _load()


def absence() -> str | None:
    """Return the reason why the kernel can't be used here, or None if it can."""
    return _ABSENCE


@functools.cache
def instruction_set() -> int | None:
    """Return the index in `INSTRUCTION_SETS` of the version that is used, or None without the library."""
    return None if _LIBRARY is None else allowed_version(INSTRUCTION_SETS, int(_LIBRARY.balancer_flex_isa()))


def run(query: Tensor, key: Tensor, value: Tensor, plan: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Compute attention with a block mask.

    Args:
        query: float32 (B, H, n, E) on a CPU.
        key: (B, Hk, m, E); Hk divides H.
        value: (B, Hk, m, Ev).
        plan: of the block mask, see `balancer.models.attention.flex_plan`; None if every query sees every
            key.
        scale: factor of the logits.

    Returns:
        The output (B, H, n, Ev), zeros for a query that sees no key, and the logarithm of the softmax's
        denominator (B, H, n), -inf for such a query.
    """
    if not torch.compiler.is_compiling() and any(unpack_dual(x).tangent is not None for x in (query, key, value)):
        _refuse_forward_mode()
    operator: Any = _Transformed.apply if _is_transformed() else _forward
    out, lse = operator(query, key, value, plan, scale)
    return out, lse


def _is_transformed() -> bool:
    """Return whether a transformation of `torch.func` is active, such as `vmap` or `grad`."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


@torch.library.custom_op("balancer::flex_attention", mutates_args=(), device_types="cpu")
def _forward(query: Tensor, key: Tensor, value: Tensor, plan: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """See `run`."""
    out, lse = _like(query, value.shape[-1]), query.new_empty(query.shape[:3])
    _call(query, key, value, plan, scale, lse, mixed=out)
    return out, lse


@_forward.register_fake
def _(query: Tensor, _key: Tensor, value: Tensor, _plan: Tensor | None, _scale: float) -> tuple[Tensor, Tensor]:
    return _like(query, value.shape[-1]), query.new_empty(query.shape[:3])


@torch.library.custom_op("balancer::flex_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor,
    grad_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of query, key and value from those of the output and of its `lse`."""
    slopes = [_like(x, x.shape[-1]) for x in (query, key, value)]
    _call(query, key, value, plan, scale, lse.contiguous(), out=out, grad=grad, grad_lse=grad_lse.contiguous(), slopes=slopes)
    return slopes[0], slopes[1], slopes[2]


@_backward.register_fake
def _(_grad: Tensor, _grad_lse: Tensor, query: Tensor, key: Tensor, value: Tensor, *_others: object) -> tuple[Tensor, Tensor, Tensor]:
    return _like(query, query.shape[-1]), _like(key, key.shape[-1]), _like(value, value.shape[-1])


def _save(
    ctx: torch.autograd.function.FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, float],
    output: tuple[Tensor, Tensor],
) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors, *output)  # type: ignore[arg-type]
    ctx.scale = scale  # type: ignore[attr-defined]


def _differentiate(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, plan, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]
    backward: Any = _TransformedBackward.apply if _is_transformed() else _backward
    slopes = backward(grad, grad_lse, query, key, value, plan, out, lse, ctx.scale)  # type: ignore[attr-defined]
    return *slopes, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def _refuse_second(*_arguments: object) -> NoReturn:
    raise UnsupportedError(
        "flex_attention has no second derivative: use score_mod=lambda score, b, h, q, k: score, which computes with torch operations"
    )


_backward.register_autograd(_refuse_second)


def _refuse_forward_mode() -> NoReturn:
    raise UnsupportedError("flex_attention has no derivatives in forward mode: use torch.func.grad, vjp or jacrev")


class _Transformed(torch.autograd.Function):
    """The operator inside a transformation of `torch.func`, which does not accept `register_autograd`."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, plan: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = _forward(query, key, value, plan, scale)
        return out, lse

    setup_context = staticmethod(_save)
    backward = staticmethod(_differentiate)

    @staticmethod
    def jvp(_ctx: Any, *_tangents: Any) -> NoReturn:
        _refuse_forward_mode()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        *tensors, plan, scale = inputs
        operator: Any = _Transformed.apply
        outputs = operator(*_folded(tensors, in_dims, info.batch_size), plan, scale)
        return _unfolded(outputs, info.batch_size)


class _TransformedBackward(torch.autograd.Function):
    """The gradients inside a transformation of `torch.func`."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = _backward(*inputs)
        return dq, dk, dv

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is saved: there is no second derivative."""

    @staticmethod
    def backward(_ctx: Any, *_grads: Any) -> NoReturn:
        _refuse_second()

    @staticmethod
    def jvp(_ctx: Any, *_tangents: Any) -> NoReturn:
        _refuse_forward_mode()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        *first, plan, out, lse, scale = inputs
        folded = _folded([*first, out, lse], (*in_dims[:5], *in_dims[6:8]), info.batch_size)
        operator: Any = _TransformedBackward.apply
        outputs = operator(*folded[:5], plan, *folded[5:], scale)
        return _unfolded(outputs, info.batch_size)


_forward.register_vmap(_Transformed.vmap)
_backward.register_vmap(_TransformedBackward.vmap)


def _folded(tensors: list[Tensor], in_dims: tuple[int | None, ...], size: int) -> list[Tensor]:
    """Make the mapped dimension part of the batch, in front, so that a plan for each entry still fits."""
    dims = in_dims[: len(tensors)]
    moved = [x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, dims, strict=True)]
    return [x.flatten(0, 1) for x in moved]


def _unfolded(outputs: tuple[Tensor, ...], size: int) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return tuple(x.unflatten(0, (size, x.shape[0] // max(size, 1))) for x in outputs), (0,) * len(outputs)


def _like(x: Tensor, channels: int) -> Tensor:
    """Return an empty tensor (B, H, n, channels) in the memory order of `x` (B, H, n, E).

    Projections give heads next to each other, (B, n, H, E) in memory; what follows reads the result in that
    order.
    """
    batch, heads, length, _ = x.shape
    if x.stride(1) < x.stride(2):
        return x.new_empty(batch, length, heads, channels).transpose(1, 2)
    return x.new_empty(batch, heads, length, channels)


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: Tensor | None,
    scale: float,
    lse: Tensor,
    *,
    mixed: Tensor | None = None,
    out: Tensor | None = None,
    grad: Tensor | None = None,
    grad_lse: Tensor | None = None,
    slopes: list[Tensor] | None = None,
    isa: int | None = None,
) -> None:
    """Fill `mixed` and `lse`, or with `out` and `grad` the three `slopes`."""
    library = _LIBRARY
    if library is None:
        raise UnsupportedError(f"the kernel of flex_attention can't be used: {_ABSENCE}")
    if not query.numel():
        for x in slopes or ():
            x.zero_()
        return
    # All strides are allowed, except that the channels must be contiguous.
    query, key, value = (_readable(x) for x in (query, key, value))
    grad = None if grad is None else _readable(grad)
    dq, dk, dv = slopes or (None, None, None)
    result = mixed if out is None else _readable(out)
    batch, heads, queries, channels = query.shape
    _, key_heads, keys, value_channels = value.shape

    def address(x: Tensor | None) -> int | None:
        return None if x is None or not x.numel() else x.data_ptr()

    def strides(x: Tensor | None) -> ctypes.Array[ctypes.c_int64]:
        return _Strides(*(0, 0, 0) if x is None else x.stride()[:3])

    problem = _Problem(
        *(address(x) for x in (query, key, value, result, grad, mixed, dq, dk, dv)),
        *(strides(x) for x in (query, key, value, result, grad, dq, dk, dv)),
        *(address(x) for x in (lse, grad_lse)),
        *(batch, heads, key_heads, queries, keys, channels, value_channels),
        address(plan),
        scale,
        torch.get_num_threads(),
        instruction_set() if isa is None else isa,
    )
    if library.balancer_flex_run(ctypes.byref(problem)):
        raise MemoryError(f"flex_attention of {tuple(query.shape)} needs more memory than is available; give smaller batches")


def _readable(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
