"""Linear layers in low precision, on torch's kernels.

A row's result never depends on the other rows of the batch. INT8 activations have a separate scale for each
row, sums of INT8 products are exact integers, and a float32 linear layer multiplies its rows in groups of
sixteen, because torch uses different kernels for few and for many rows. NaN in one row does not affect other
rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balancer.errors import InputError
from balancer.models.quantization import native
from balancer.models.quantization.replacement import Weighted
from balancer.models.quantization.rounding import DTYPES, LARGEST, TINY, quantize_rows
from balancer.models.quantization.tables import Int8Embedding, LowEmbedding, TableEncoder

__all__ = [
    "DTYPES",
    "LARGEST",
    "Int8Embedding",
    "Int8Linear",
    "LowEmbedding",
    "LowLinear",
    "RowwiseLinear",
    "TableEncoder",
    "int8_linear",
    "quantize_rows",
    "rowwise_linear",
]

ROWS = 16
"""The number of float32 rows is padded to a multiple of this."""
_ONE_KERNEL = torch.cpu._is_avx512_supported()
"""Whether one product of all rows is enough, because every multiple of ``ROWS`` is multiplied by the same
kernel.

With AVX2 on Intel processors it is not: MKL multiplies rows in groups of six, and it has other kernels for
the rows that are left over and for small products. The share of a thread changes the kernel, too.
"""
_INTEGER_PRODUCTS = torch.cpu._is_vnni_supported()
"""Whether torch has fast INT8 products on this processor."""
_EXACT = 2**24 // LARGEST**2
"""Number of products of INT8 numbers whose sum is exact in float32."""
_LINE = 16
"""Number of float32 values in a cache line."""
_CUDA_ROWS = 32
"""Minimum number of rows for torch's INT8 product on CUDA, which requires more than 16."""


@torch.library.custom_op("balancer::int8_linear", mutates_args=())
def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by an INT8 weight, after rounding each row of ``x`` to INT8 by its largest magnitude.

    A row with an infinite value or NaN gives NaN.

    Args:
        x: (..., K).
        weight: int8 (N, K).
        scale: (N,) float32.
        bias: (N,) or None.

    Returns:
        (..., N) in the dtype of ``x``.
    """
    if not x.numel() or not weight.numel():
        return _without_products(x, len(weight), bias).to(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).float()
    step = (rows.abs().amax(1, keepdim=True) / LARGEST).clamp_(min=TINY)
    whole = (rows / step).round_().to(torch.int8)
    step = step.where(step.isfinite(), torch.nan)
    out = (_multiply_integers(whole, weight) * step).mul_(scale)
    if bias is not None:
        out += bias
    return out.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def _multiply_integers(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply int8 (R, K) by int8 (N, K); returns exact int32 (R, N)."""
    if rows.shape[1] == 1:  # torch's kernel does not write the result in this case
        return rows.int() * weight.int().t()
    if rows.is_cuda and len(rows) < _CUDA_ROWS:
        return torch._int_mm(F.pad(rows, (0, 0, 0, _CUDA_ROWS - len(rows))), weight.t())[: len(rows)]
    if not rows.is_cpu or _INTEGER_PRODUCTS:
        return torch._int_mm(rows, weight.t())
    # Elsewhere torch's integer product is many times slower than the one of float32, whose sums are exact
    # below 2 ** 24. A sum of this many products stays below that in any order.
    sums = rows.new_zeros(len(rows), len(weight), dtype=torch.int32)
    with _as_given(rows.device):
        for start in range(0, rows.shape[1], _EXACT):
            part = slice(start, start + _EXACT)
            sums += torch.mm(rows[:, part].float(), weight[:, part].float().t()).int()
    return sums


@int8_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001 - signature of the operator
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _keep_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - signature of torch
    ctx.save_for_backward(inputs[1], inputs[2])


def _input_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    """Gradient of :func:`int8_linear` for its input, as if the input were not rounded."""
    weight, scale = ctx.saved_tensors
    return ((gradient.float() * scale) @ weight.float()).to(gradient.dtype), None, None, None


int8_linear.register_autograd(_input_gradient, setup_context=_keep_weight)


def _without_products(x: Tensor, channels: int, bias: Tensor | None) -> Tensor:
    """Return the bias as (..., N) float32: the result for ``x`` (..., K) where no number is multiplied."""
    out = x.new_zeros(*x.shape[:-1], channels, dtype=torch.float32)
    return out if bias is None else out + bias


def checked_dtype(x: Tensor, channels: int) -> torch.dtype:
    """Check the input of a linear layer, and return the dtype that a layer of torch would return.

    Raises:
        InputError: It has another number of channels, or is not floating point.
    """
    if not x.is_floating_point():
        raise InputError(f"a quantized linear layer takes floating-point numbers, given {x.dtype}: convert the input, e.g. by .float()")
    if not x.ndim or x.shape[-1] != channels:
        raise InputError(f"the layer takes inputs of shape (..., {channels}), given {tuple(x.shape)}: give the channels of the full model")
    device = x.device.type
    return torch.get_autocast_dtype(device) if x.dtype != torch.float64 and torch.is_autocast_enabled(device) else x.dtype


def _as_given(device: torch.device) -> AbstractContextManager[object]:
    """Context in which torch's products keep the dtype of what they are given, also under autocast."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


class _Linear(Weighted):
    """A linear layer in low precision."""

    stored_bias: Tensor | None
    renamed = MappingProxyType({"stored": "weight", "stored_bias": "bias"})

    def __init__(self, stored: Tensor, scale: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)
        self.register_buffer("stored_bias", None if bias is None else bias.detach())
        self.out_features, self.in_features = stored.shape

    @property
    def bias(self) -> Tensor | None:
        """The bias (N,) in the dtype of the replaced layer, or None."""
        return None if self.stored_bias is None else self.stored_bias.to(self.full_dtype)

    def extra_repr(self) -> str:
        """Describe the layer in its ``repr``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, stored={self.stored.dtype}, bias={self.stored_bias is not None}"


class Int8Linear(_Linear):
    """Linear layer with INT8 weights (a scale per channel) and INT8 activations (a scale per row)."""

    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(weight, scale, None if bias is None else bias.float(), dtype)
        self._packed: native.PackedLinear | None = None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Linear
        """Map (..., K) to (..., N), in the dtype of the replaced layer."""
        # The usual case first, by few calls: in small layers they take longer than the product.
        packed = self._packed
        if (
            packed is not None
            and not torch.compiler.is_compiling()
            and packed.takes(input, self._buffers)
            and not torch.is_autocast_enabled("cpu")
            and not (input.requires_grad and torch.is_grad_enabled())
        ):
            return packed.multiply(input)
        dtype = checked_dtype(input, self.in_features)
        if (
            torch.compiler.is_compiling()
            or not input.is_cpu
            or native.absence() is not None
            or not (input.numel() and self.out_features)
            or (input.requires_grad and torch.is_grad_enabled())
        ):
            out: Tensor = int8_linear(input, self.stored, self.scale, self.stored_bias)
            return out.to(dtype)
        if packed is None or not packed.is_of(self._buffers):
            packed = self._packed = native.PackedLinear(self.stored, self.scale, self.stored_bias)
        return packed.multiply(input.float()).to(input.dtype).to(dtype)

    def _load_from_state_dict(self, *given: Any) -> None:
        super()._load_from_state_dict(*given)
        self._packed = None

    def __getstate__(self) -> dict[str, Any]:
        """Copy the layer without its packed weight, which is computed again when needed."""
        return {**super().__getstate__(), "_packed": None}  # type: ignore[no-untyped-call]


class LowLinear(_Linear):
    """Linear layer in bfloat16 or float16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(weight, None, None if bias is None else bias.to(weight.dtype), dtype)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Linear
        """Map (..., K) to (..., N), in the dtype of the replaced layer."""
        dtype = checked_dtype(input, self.in_features)
        with _as_given(input.device):
            return F.linear(input.to(self.stored.dtype), self.stored, self.stored_bias).to(dtype)


class RowwiseLinear(_Linear):
    """Float32 linear layer whose result for a row does not depend on the number of rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(weight, None, None if bias is None else bias.float(), dtype)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of nn.Linear
        """Map (..., K) to (..., N), in the dtype of the replaced layer."""
        dtype = checked_dtype(input, self.in_features)
        if torch.compiler.is_compiling():  # a compiler may choose kernels by the number of rows
            out: Tensor = rowwise_linear(input.float(), self.stored, self.stored_bias)
            return out.to(dtype)
        with _as_given(input.device):
            return _multiply_rows(input.float(), self.stored, self.stored_bias).to(dtype)


@torch.library.custom_op("balancer::rowwise_linear", mutates_args=())
def rowwise_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply ``x`` (..., K) float32 by a weight (N, K), each row as if it were alone.

    Args:
        x: (..., K).
        weight: float32 (N, K).
        bias: (N,) float32 or None.

    Returns:
        (..., N) float32.
    """
    with _as_given(x.device):
        return _multiply_rows(x, weight, bias)


@rowwise_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001 - signature of the operator
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _keep_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - signature of torch
    ctx.save_for_backward(inputs[1])


def _rows_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    """Gradient of :func:`rowwise_linear` for its input."""
    (weight,) = ctx.saved_tensors
    return gradient @ weight, None, None


rowwise_linear.register_autograd(_rows_gradient, setup_context=_keep_rows)


def _multiply_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See :func:`rowwise_linear`."""
    if not x.numel() or not weight.numel():
        return _without_products(x, len(weight), bias)
    rows, weight = _aligned(x.reshape(-1, x.shape[-1]), weight)
    if not _ONE_KERNEL and x.is_cpu:
        return _multiply_groups(rows, weight, bias)[: len(rows)].view(*x.shape[:-1], len(weight))
    padding = -len(rows) % ROWS
    out = F.linear(F.pad(rows, (0, 0, 0, padding)) if padding else rows, weight, bias)
    return out[: len(rows)].view(*x.shape[:-1], len(weight))


def _aligned(rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Append channels of zeros to rows (R, K) and a weight (N, K), so that all rows begin on a cache line.

    With few outputs MKL adds the products of a row in an order that depends on where the row begins. With
    many it does not, and a copy of the weight would take time.
    """
    if not rows.is_cpu or len(weight) >= ROWS:
        return rows, weight
    padding = -rows.shape[1] % _LINE
    if padding:
        return F.pad(rows, (0, padding)), F.pad(weight, (0, padding))
    return (rows, weight) if rows.data_ptr() % (4 * _LINE) == 0 else (rows.clone(), weight)


def _multiply_groups(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply (R, K) as a batch of products of ``ROWS`` rows.

    There are at least two products, because torch multiplies a single one like any other matrix. Returns (R
    padded, N).
    """
    count = max(2, -(-len(rows) // ROWS))
    groups = F.pad(rows, (0, 0, 0, count * ROWS - len(rows))).view(count, ROWS, rows.shape[1])
    out = groups.bmm(weight.mT.expand(count, -1, -1)).flatten(0, 1)
    return out if bias is None else out + bias
