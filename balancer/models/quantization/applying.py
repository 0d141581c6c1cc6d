"""Apply a precision plan to a copy of the model, and report the result for each layer.

A precision that the machine does not support is replaced by the next higher one that it does, and the report
gives the reason. With ``strict`` this is an error instead.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from balancer.errors import InputError, UnsupportedError
from balancer.models.quantization.layers import Precision, find_layers
from balancer.models.quantization.plan import PrecisionPlan
from balancer.models.quantization.shared_memory import copied
from balancer.models.quantization.swapping import convert_layer, cpu_supports, with_module

Backend = Literal["auto", "torch", "bitsandbytes"]
BACKENDS = ("auto", "torch", "bitsandbytes")


@dataclass(frozen=True)
class AppliedRow:
    """Planned and actual precision of one layer."""

    layer: str
    kind: str
    wanted: str
    got: str
    backend: str
    reason: str
    """Why the actual precision ``got`` differs from the planned one, ``wanted``.

    Also what else should be known about the layer; empty if there is nothing.
    """
    bytes_before: int
    bytes_after: int
    tied: tuple[str, ...] = ()
    dtype: str = "float32"
    """Dtype of the layer in the full-precision model, in which it returns its results."""
    views: tuple[str, ...] = ()
    """Attributes of modules that are views of the weight, which no file contains."""


@dataclass(frozen=True)
class Applied:
    """Report of :func:`apply_precision`."""

    rows: list[AppliedRow]
    backend: str

    @property
    def bytes_before(self) -> int:
        """Bytes of all layers as they are in the full-precision model."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of all layers in their actual precisions."""
        return sum(row.bytes_after for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        rows = [asdict(row) | {"tied": list(row.tied), "views": list(row.views)} for row in self.rows]
        return {"backend": self.backend, "bytes_before": self.bytes_before, "bytes_after": self.bytes_after, "rows": rows}


def apply_precision(model: nn.Module, plan: PrecisionPlan, backend: Backend = "auto", *, strict: bool = False) -> tuple[nn.Module, Applied]:
    """Copy ``model``, in evaluation mode, with every layer in its planned precision.

    Args:
        model: the full-precision model; it is not changed.
        plan: result of :func:`plan_precision` or :func:`uniform_plan` for this model.
        backend: ``torch``: torch's kernels; ``bitsandbytes``: its Linear8bitLt for INT8 linear layers;
            ``auto``: torch.
        strict: raise an error if a layer can't have its planned precision, instead of using the next higher
            one.

    Returns:
        The quantized model, and the report of each layer.

    Raises:
        InputError: The plan is for another model, the backend is unknown, or a layer can't be replaced
            without a change of what it computes; the message names it and the remedy.
        UnsupportedError: With ``strict``, this machine lacks a precision.

    >>> from balancer.models.quantization import uniform_plan
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> quantized, applied = apply_precision(model, uniform_plan(model, "int8"))
    >>> applied.bytes_before, applied.bytes_after
    (780, 328)
    """
    if backend not in BACKENDS:
        raise InputError(
            f"unknown backend {backend!r}; known backends are {', '.join(BACKENDS)}; for onnxruntime use export_onnx and quantize_onnx"
        )
    plan.check(model)
    layers = find_layers(model)
    for layer in layers:
        if layer.device.type == "meta":
            raise InputError(f"{layer.name or 'the model'} is on the device meta and has no values: load its weights, then quantize it")
    chosen = "torch" if backend == "auto" else backend
    stored = dict(model.named_parameters(remove_duplicate=False)).keys() | dict(model.named_buffers(remove_duplicate=False)).keys()
    quantized = copied(model).eval().requires_grad_(False)
    # The layers are those of the model: in its copy, weights of parametrized layers need not be shared.
    rows = []
    for layer in [found.of(quantized) for found in layers]:
        wanted = plan.precision[layer.name]
        got, reason = supported_precision(wanted, layer.device)
        if reason and strict:
            raise UnsupportedError(
                f"{layer.name} is planned in {wanted}: {reason}; use strict=False to get {got}, or plan without {wanted}"
            )
        used = "torch"
        if chosen == "bitsandbytes" and got == "int8":
            from balancer.models.quantization.bitsandbytes_backend import int8_linears_of, obstacle

            missing = obstacle(layer)
            modules = convert_layer(quantized, layer, got) if missing else int8_linears_of(quantized, layer)
            used = "torch" if missing else "bitsandbytes"
            reason = "; ".join(filter(None, (reason, missing if layer.kind == "linear" else "")))
        else:
            modules = convert_layer(quantized, layer, got)
        for name, module in modules.items():
            quantized = with_module(quantized, name, module)
        reason = "; ".join(filter(None, (reason, layer.note(got))))
        dtype = str(layer.dtype).removeprefix("torch.")
        rows.append(
            AppliedRow(
                layer.name,
                layer.kind,
                wanted,
                got,
                used,
                reason,
                layer.bytes_now,
                layer.bytes(got),
                layer.tied,
                dtype,
                tuple(set(layer.outside) - stored),
            )
        )
    return quantized, Applied(rows, chosen)


def supported_precision(wanted: Precision, device: torch.device) -> tuple[Precision, str]:
    """Return the precision to use on a device, and why it differs from ``wanted`` (empty if it does not)."""
    if cpu_supports(wanted, device):
        return wanted, ""
    if wanted == "fp16":
        fallback: Precision = "bf16" if cpu_supports("bf16", device) else "fp32"
        return fallback, f"float16 is slower than float32 on a CPU: {fallback} is used"
    return "fp32", "this CPU has no bfloat16 (AVX512-BF16) instructions: fp32 is used"
