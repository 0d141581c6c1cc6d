"""Apply a precision plan to a copy of the model, and report the result for each layer.

A precision that the machine does not support is replaced by the next higher one that it does, and the report
gives the reason. With ``strict`` this is an error instead.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from balancer.errors import InputError, UnsupportedError
from balancer.models.quantization.layers import Precision, find_layers
from balancer.models.quantization.plan import PrecisionPlan
from balancer.models.quantization.swapping import convert_layer, cpu_supports, set_module

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
    """Why the actual precision ``got`` differs from the planned one, ``wanted``; empty if it does not."""
    bytes_before: int
    bytes_after: int
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Applied:
    """Report of :func:`apply_precision`."""

    rows: list[AppliedRow]
    backend: str

    @property
    def bytes_before(self) -> int:
        """Bytes of all layers in float32."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of all layers in their actual precisions."""
        return sum(row.bytes_after for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        rows = [asdict(row) | {"tied": list(row.tied)} for row in self.rows]
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
        InputError: The plan is for another model, or the backend is unknown.
        UnsupportedError: With ``strict``, this machine lacks a precision.
    """
    if backend not in BACKENDS:
        raise InputError(
            f"unknown backend {backend!r}; known backends are {', '.join(BACKENDS)}; for onnxruntime use export_onnx and quantize_onnx"
        )
    plan.check(model)
    chosen = "torch" if backend == "auto" else backend
    quantized = copy.deepcopy(model).eval().requires_grad_(False)
    rows = []
    for layer in find_layers(quantized):
        wanted = plan.precision[layer.name]
        got, reason = supported_precision(wanted, layer.rows.device)
        if reason and strict:
            raise UnsupportedError(
                f"{layer.name} is planned in {wanted}: {reason}; use strict=False to get {got}, or plan without {wanted}"
            )
        used, modules = "torch", {}
        if chosen == "bitsandbytes" and got == "int8" and layer.kind == "linear":
            from balancer.models.quantization.bitsandbytes_backend import int8_linear_of

            modules, used = dict.fromkeys(layer.module_names, int8_linear_of(layer)), "bitsandbytes"
        else:
            modules = convert_layer(quantized, layer, got)
        for name, module in modules.items():
            set_module(quantized, name, module)
        rows.append(AppliedRow(layer.name, layer.kind, wanted, got, used, reason, layer.bytes("fp32"), layer.bytes(got), layer.tied))
    return quantized, Applied(rows, chosen)


def supported_precision(wanted: Precision, device: torch.device) -> tuple[Precision, str]:
    """Return the precision to use on a device, and why it differs from ``wanted`` (empty if it does not)."""
    if cpu_supports(wanted, device):
        return wanted, ""
    if wanted == "fp16":
        fallback: Precision = "bf16" if cpu_supports("bf16", device) else "fp32"
        return fallback, f"float16 is slower than float32 on a CPU: {fallback} is used"
    if wanted == "int8" and cpu_supports("bf16", device):
        return "bf16", "this CPU has no INT8 instructions (VNNI): bf16 is used"
    missing = "INT8 (VNNI)" if wanted == "int8" else "bfloat16 (AVX512-BF16)"
    return "fp32", f"this CPU has no {missing} instructions: fp32 is used"
