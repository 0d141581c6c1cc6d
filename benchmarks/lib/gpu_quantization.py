"""Part ``quantization`` of ``benchmarks/gpu.sh``: INT8 and FP8 against bfloat16 and float32 on a GPU.

The models are BERT-base's shape, with 128 tokens, and our classifier with d 256 and 512 transactions; their
weights are random. Float32 is without TF32. The attention of an INT8 model is in float32; under autocast,
which is measured too, it is in bfloat16.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from balancer.models.quantization import apply_precision, uniform_plan
from benchmarks.lib.gpu_fp8 import in_fp8
from benchmarks.lib.gpu_part import Part, main
from benchmarks.lib.gpu_timing import peak_mib, ready, release, times
from benchmarks.lib.quantization_models import bert, bert_ids, classifier, windows
from benchmarks.lib.timing import Call

TINY_BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
BUDGET = 2.0
"""Seconds for timing the contenders of one model and number of rows."""
FP32, BF16 = "FP32", "BF16"
ON_CUDA_ONLY = ("torch FP8", "bitsandbytes INT8")


@dataclass(frozen=True)
class Shape:
    """A model and its input."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[str], Any]
    """Input on a device."""
    pure_bf16: bool
    """Whether the model accepts bfloat16 weights; else its bfloat16 is that of autocast."""


def shapes(*, dry: bool) -> list[Shape]:
    """The models, each with few and with many rows."""
    found = []
    for rows in (2,) if dry else (1, 32):
        tokens, (width, layers, history) = (8, (32, 1, 16)) if dry else (128, (256, 6, 512))
        ids = bert_ids(rows, tokens)
        name = f"BERT-base's shape, {tokens} tokens, {rows} rows"
        found.append(Shape(name, partial(bert, **(TINY_BERT if dry else {})), ids.to, True))
        name = f"classifier, d {width}, {history} transactions, {rows} rows"
        found.append(Shape(name, partial(classifier, width, layers, history), windows(rows, history).to, False))
    return found


def contenders(shape: Shape, model: nn.Module, layers: dict[str, dict[str, int]]) -> dict[str, tuple[Callable[[], nn.Module], bool]]:
    """How to make each contender from the float32 model, and whether it runs under bfloat16 autocast.

    Each quantized contender that is made enters its number of layers by actual precision into ``layers``.
    """

    def planned(name: str, *, backend: str = "torch", keep: tuple[str, ...] = ()) -> nn.Module:
        quantized, applied = apply_precision(model, uniform_plan(model, "int8", keep=keep), backend=backend)  # type: ignore[arg-type]
        layers[name] = dict(Counter(f"{row.got} {row.backend}" for row in applied.rows))
        return quantized

    return {
        FP32: (lambda: model, False),
        BF16: (lambda: copy.deepcopy(model).bfloat16() if shape.pure_bf16 else model, not shape.pure_bf16),
        "torch INT8": (partial(planned, "torch INT8"), False),
        "torch INT8, autocast": (partial(planned, "torch INT8, autocast"), True),
        "torch INT8, attention BF16": (partial(planned, "torch INT8, attention BF16", keep=("attention",)), False),
        "bitsandbytes INT8": (partial(planned, "bitsandbytes INT8", backend="bitsandbytes"), False),
        "torch FP8": (lambda: in_fp8(model), True),
    }


def measure(part: Part) -> None:
    """Measure every model, and keep each as soon as it is there."""
    cells: list[dict[str, Any]] = []
    for shape in shapes(dry=part.dry):
        cell = part.attempt(shape.name, partial(measured, part, shape))
        release(part.device)
        if cell is not None:
            cells.append(cell)
            part.keep(headline(cells), cells=cells)


def measured(part: Part, shape: Shape) -> dict[str, Any]:
    """Times, ratios, cosines, bytes and peak memory of the contenders on one model and input."""
    model, inputs = shape.make().eval().to(part.device), shape.inputs(part.device)
    models: dict[str, nn.Module] = {}
    layers: dict[str, dict[str, int]] = {}

    def maker(name: str, make: Callable[[], nn.Module], autocast: bool) -> Call:
        models[name] = make().eval()
        return partial(_forward, models[name], inputs, part.device if autocast else None)

    with torch.no_grad():
        found = ready({name: partial(maker, name, *how) for name, how in contenders(shape, model, layers).items()}, part.device)
        for name, reason in found.reasons.items():
            part.fail(f"{shape.name}: {name}", reason, needs_cuda=name in ON_CUDA_ONLY)
        timed = times(found.calls, found.warm_seconds.values(), 0.0 if part.dry else BUDGET, part.device)
        plain = _forward(model, inputs, None)
        cell: dict[str, Any] = {"model": shape.name, "rounds": timed["rounds"], "milliseconds": timed["milliseconds"]}
        for key, base in (("of_fp32", FP32), ("of_bf16", BF16)):
            if base in found.calls:
                cell[key] = ratios(timed["milliseconds"], base)
        others = {name: _result(call) for name, call in found.calls.items() if name != FP32}
        cell["cosine"] = {name: cosine(plain, other) for name, other in others.items()}
        cell["largest_difference"] = {name: float((plain - other).abs().max()) for name, other in others.items()}
        cell["bytes"] = {name: size(models[name]) for name in found.calls}
        cell["peak_mib"] = {name: peak_mib(call, part.device) for name, call in found.calls.items()}
        cell["layers"] = {name: layers[name] for name in found.calls if name in layers}
        cell["first_seconds"] = found.first_seconds
    return cell


def _forward(model: nn.Module, inputs: Any, autocast: str | None) -> Tensor:
    """Result of the model, under bfloat16 autocast of a device unless it is None."""
    context: AbstractContextManager[object] = nullcontext() if autocast is None else torch.autocast(autocast, dtype=torch.bfloat16)
    with context:
        result: Tensor = model(inputs)
    return result


def _result(call: Call) -> Tensor:
    result = call()
    assert isinstance(result, Tensor)
    return result


def ratios(milliseconds: Mapping[str, float], base: str) -> dict[str, float]:
    """Times as ratios to the time of ``base``."""
    return {name: value / milliseconds[base] for name, value in milliseconds.items() if name != base}


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine between two results as vectors; the classifier's consists of one logit of each row."""
    return float(torch.nn.functional.cosine_similarity(first.double().flatten(), second.double().flatten(), dim=0))


def size(model: nn.Module) -> int:
    """Bytes of the parameters and buffers that a model stores; a shared one counts once."""
    tensors = {value.data_ptr(): value for value in model.state_dict().values() if isinstance(value, Tensor)}
    return sum(value.numel() * value.element_size() for value in tensors.values())


def headline(cells: list[dict[str, Any]]) -> str:
    """The fastest INT8 or FP8 of the model that was measured last, with its ratios."""
    cell = cells[-1]
    low = {name: value for name, value in cell["milliseconds"].items() if name not in (FP32, BF16)}
    if not low or not {"of_fp32", "of_bf16"} <= cell.keys():
        return f"{len(cells)} models"
    best = min(low, key=lambda name: low[name])
    return f"{len(cells)} models; {cell['model']}: {best} {cell['of_fp32'][best]:.2f} of FP32, {cell['of_bf16'][best]:.2f} of BF16"


if __name__ == "__main__":
    sys.exit(main("quantization", measure, __doc__))
