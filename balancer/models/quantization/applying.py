"""A plan put into effect: a copy of the model with its layers in other precisions, and a table of what each layer wanted and got, and why.

Special: nothing happens silently. What a machine can't do is done in the next higher precision that it can, and the table says so; ``strict`` makes an error of it.
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
from balancer.models.quantization.swapping import cpu_supports, low_precision, put

Backend = Literal["auto", "torch", "bitsandbytes"]
BACKENDS = ("auto", "torch", "bitsandbytes")


@dataclass(frozen=True)
class AppliedRow:
    """One layer."""

    layer: str
    kind: str
    wanted: str
    got: str
    backend: str
    reason: str
    """Why it got something else than it wanted; empty where it did not."""
    bytes_before: int
    bytes_after: int
    tied: tuple[str, ...] = ()


@dataclass(frozen=True)
class Applied:
    """What :func:`apply_precision` did."""

    rows: list[AppliedRow]
    backend: str

    @property
    def bytes_before(self) -> int:
        """Bytes of all layers in float32."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of all layers now."""
        return sum(row.bytes_after for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        rows = [asdict(row) | {"tied": list(row.tied)} for row in self.rows]
        return {"backend": self.backend, "bytes_before": self.bytes_before, "bytes_after": self.bytes_after, "rows": rows}


def apply_precision(model: nn.Module, plan: PrecisionPlan, backend: Backend = "auto", *, strict: bool = False) -> tuple[nn.Module, Applied]:
    """A copy of ``model`` in evaluation mode with every layer in its planned precision.

    Args:
        model: the full model; it is left as it was.
        plan: of :func:`plan_precision` or :func:`uniform_plan`, for this model.
        backend: ``torch``: torch's own kernels; ``bitsandbytes``: its Linear8bitLt for INT8 linears, on CUDA, or on a CPU when asked for by name; ``auto``: torch.
        strict: raise where a layer can't have what it wants, instead of giving it the next higher precision.

    Raises:
        InputError: a plan for another model, an unknown backend, or with ``strict`` a precision that this machine lacks.
    """
    if backend not in BACKENDS:
        raise InputError(
            f"unknown backend {backend!r}; known are {', '.join(BACKENDS)} (onnxruntime exports a file: export_onnx, quantize_onnx)"
        )
    plan.check(model)
    chosen = "torch" if backend == "auto" else backend
    quantized = copy.deepcopy(model).eval().requires_grad_(False)
    rows = []
    for layer in find_layers(quantized):
        wanted = plan.precision[layer.name]
        got, reason = available(wanted, layer.rows.device)
        if reason and strict:
            raise UnsupportedError(f"{layer.name} wants {wanted}: {reason}; leave strict out to take {got}, or plan without it")
        used, modules = "torch", {}
        if chosen == "bitsandbytes" and got == "int8" and layer.kind == "linear":
            from balancer.models.quantization.bitsandbytes_backend import int8_linear_of

            made = int8_linear_of(layer)
            modules, used = dict.fromkeys(layer.places, made), "bitsandbytes"
        else:
            modules = low_precision(quantized, layer, got)
        for place, module in modules.items():
            put(quantized, place, module)
        rows.append(AppliedRow(layer.name, layer.kind, wanted, got, used, reason, layer.bytes("fp32"), layer.bytes(got), layer.tied))
    return quantized, Applied(rows, chosen)


def available(wanted: Precision, device: torch.device) -> tuple[Precision, str]:
    """The precision that a layer gets on a device, and why it is another one."""
    if cpu_supports(wanted, device):
        return wanted, ""
    if wanted == "fp16":
        fallback: Precision = "bf16" if cpu_supports("bf16", device) else "fp32"
        return fallback, f"float16 is slower than float32 on a CPU: {fallback}"
    if wanted == "int8" and cpu_supports("bf16", device):
        return "bf16", "this CPU has no INT8 instructions (VNNI): bf16"
    missing = "INT8 (VNNI)" if wanted == "int8" else "bfloat16 (AVX512-BF16)"
    return "fp32", f"this CPU has no {missing} instructions: fp32"
