"""What the backends have in common for the transforms of `torch.func` and for derivatives of higher order.

`vmap` makes its dimension a part of the batch. The fused kernels have neither second derivatives nor
forward-mode derivatives; both are refused with the name of the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.nn.attention import SDPBackend, sdpa_kernel

from balancer.errors import UnsupportedError


def fold(size: int, in_dims: Sequence[int | None], given: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Make the dimension of a `vmap` over `size` calls a part of the batch.

    Args:
        size: number of calls.
        in_dims: the dimension of each tensor; None if all calls share the tensor.
        given: tensors; of the calls (B, ...).

    Returns:
        Tensors (size * B, ...).
    """
    return [
        None if x is None else (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
        for x, dim in zip(given, in_dims, strict=True)
    ]


def split(size: int, found: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Undo :func:`fold` for the results (size * B, ...) of an operator.

    Returns:
        Results (size, B, ...) and their dimensions, as `vmap` expects them.
    """
    return tuple(x.unflatten(0, (size, len(x) // size)) if len(x) else x.expand(size, *x.shape) for x in found), (0,) * len(found)


def active() -> bool:
    """Whether this runs inside a transform of `torch.func`."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def plain_kernels() -> AbstractContextManager[None]:
    """Inside a transform of `torch.func`, let torch's attention consist of plain operators.

    `vmap` computes its fused kernel call by call, and a mask that needs a gradient looks like any other.
    """
    return sdpa_kernel(SDPBackend.MATH) if active() else nullcontext()


def differentiable(
    backend: str, forward: Callable[..., tuple[Tensor, ...]], backward: Callable[..., tuple[Tensor, ...]]
) -> Callable[..., tuple[Tensor, ...]]:
    """Combine two custom operators to a function that `torch.func` can differentiate.

    Torch differentiates custom operators with a formula in eager mode and when it compiles, but not inside a
    transform of `torch.func`.

    Args:
        backend: name for errors.
        forward: takes query, key, value, gate, index, padding (six tensors or None) and options; returns the
            output and statistics.
        backward: takes the gradient of the output, the six tensors, the two results and the options; returns
            the gradients of query, key, value and gate.
    """

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(*given: Any) -> tuple[Tensor, ...]:
            return backward(*given)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            pass

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
            folded = fold(info.batch_size, in_dims[:9], given[:9])
            return split(info.batch_size, Gradient.apply(*folded, *given[9:]))  # type: ignore[no-untyped-call]

        @staticmethod
        def backward(_ctx: Any, *_grads: Tensor) -> None:
            raise second_order(backend)

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(*given: Any) -> tuple[Tensor, ...]:
            return forward(*given)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.save_for_backward(*inputs[:6], *output)
            ctx.options = inputs[6:]
            ctx.mark_non_differentiable(output[1])

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *given: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
            folded = fold(info.batch_size, in_dims[:6], given[:6])
            return split(info.batch_size, Attend.apply(*folded, *given[6:]))  # type: ignore[no-untyped-call]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            saved = ctx.saved_tensors
            found = Gradient.apply(grads[0], *saved, *ctx.options)  # type: ignore[no-untyped-call]
            return (*found[:3], None if saved[3] is None else found[3], *[None] * (2 + len(ctx.options)))

    def attend(*given: Any) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = Attend.apply(*given)  # type: ignore[no-untyped-call]
        return found

    return attend


def refuse_tangents(backend: str, *given: Tensor | None) -> None:
    """Refuse forward-mode derivatives (`torch.func.jvp`).

    Raises:
        UnsupportedError: One of the tensors has a tangent.
    """
    if torch.compiler.is_compiling():
        return
    if any(x is not None and unpack_dual(x).tangent is not None for x in given):
        raise UnsupportedError(f"backend '{backend}' has no forward-mode derivatives (jvp); use backend='reference'")


def first_order(backend: str, x: Tensor) -> Tensor:
    """Return `x`; a second derivative with respect to it is refused with the name of the backend."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
        return x
    same: Tensor = _FirstOrder.apply(x, backend)  # type: ignore[no-untyped-call]
    return same


class _FirstOrder(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, backend: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.backend = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Gradient.apply(grads[0], ctx.backend), None  # type: ignore[no-untyped-call]


class _Gradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, backend: str) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.backend = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        raise second_order(ctx.backend)


def second_order(backend: str) -> UnsupportedError:
    """Return the error for a second derivative."""
    return UnsupportedError(f"backend '{backend}' has no second derivatives; use backend='reference'")
