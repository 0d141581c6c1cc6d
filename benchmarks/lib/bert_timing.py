"""BERT-base's shape in INT8: bytes, cosine, rows alone and in a batch, and latency beside the contenders."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from balancer.models.quantization import apply_precision, native, save_quantized, uniform_plan
from balancer.native_library import VARIABLE
from benchmarks.lib.checks import claim
from benchmarks.lib.contenders import Calls, absent, onednn, onnx_calls, openvino_calls, torchao_calls
from benchmarks.lib.instructions import LIMITS
from benchmarks.lib.quantization_models import bert, bert_ids
from benchmarks.lib.timing import interleaved

TOKENS = 128
OURS = "all INT8"
RIVALS = ("ONNX Runtime INT8, dynamic", "torchao INT8", "OpenVINO INT8, static")


def restrict(instructions: str) -> None:
    """Restrict our kernels, and torch, to an instruction set; for processes that are started after this.

    ONNX Runtime and OpenVINO can't be restricted.
    """
    os.environ.update({VARIABLE: instructions, **LIMITS.get(instructions, {})})


def disk(model: nn.Module, folder: Path) -> int:
    """Bytes of a float model as a safetensors file in ``folder``."""
    save_file({name: value.contiguous().clone() for name, value in model.state_dict().items()}, folder / "full.safetensors")
    return (folder / "full.safetensors").stat().st_size


def cosine(first: Tensor, second: Tensor) -> float:
    """Mean cosine between two outputs (B, 1, d)."""
    return float(torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1)).mean())


def bert_quality() -> dict[str, Any]:
    """Share of float32's bytes on disk, cosine of the outputs, and share of rows that are the same alone."""
    model = bert()
    plan = uniform_plan(model, "int8")
    int8, applied = apply_precision(model, plan)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        full = disk(model, folder)
        save_quantized(int8, applied, folder, plan=plan)
        share = (folder / "model.quantized.safetensors").stat().st_size / full
        ids = bert_ids(20, TOKENS, seed=1)
        outputs = int8(ids)
        alone = sum(torch.equal(int8(ids[i : i + 1])[0], outputs[i]) for i in range(len(ids))) / len(ids)
        return {"disk": share, "cosine": cosine(model(ids), outputs), "same_alone": alone}


def bert_timed(threads: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of every contender with this number of threads, as medians of runs in turns.

    One thread's time is that of the processor, which other programs on the machine change least. If our
    kernels are restricted to a smaller instruction set, contenders that can't be restricted are left out, and
    BF16 without AVX-512.
    """
    forced = os.environ.get(VARIABLE, "")
    torch.set_num_threads(threads)
    model, ids = bert(), bert_ids(1, TOKENS)
    int8, _ = apply_precision(model, uniform_plan(model, "int8"))
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        calls: Calls = {"torch FP32": lambda: model(ids), OURS: lambda: int8(ids)}
        if forced in ("", "avx512", "avx512vnni"):
            hybrid, _ = apply_precision(model, uniform_plan(model, "int8", keep=("attention",)))
            bf16 = bert().to(torch.bfloat16)
            calls |= {"torch BF16": lambda: bf16(ids), "attention BF16, rest INT8": lambda: hybrid(ids)}
        packed = onednn(model, TOKENS)
        calls["oneDNN FP32"] = lambda: packed(ids)
        rivals: tuple[tuple[str, str, Callable[[], Calls]], ...] = (
            ("ONNX Runtime", "onnxruntime", lambda: onnx_calls(model, ids, folder, threads)),
            ("torchao", "torchao", lambda: torchao_calls(bert(), ids)),
            ("OpenVINO", "openvino", lambda: openvino_calls(ids, folder, threads)),
        )
        for rival, package, make in rivals:
            reason = absent(package)
            if forced:
                reason = "it can't be restricted to the instruction set of this run"
            if reason is None:
                try:
                    calls |= make()
                except Exception as error:  # noqa: BLE001 - the failure of a contender is recorded, the others are measured
                    reason = f"{type(error).__name__}: {error}"[:300]
            if reason is not None:
                skipped[rival] = reason
        seconds = interleaved(calls, 0.0, least=repeats, clock=processor_seconds if threads == 1 else None)
        ms = {call: 1000 * statistics.median(each) for call, each in seconds.items()}
        return {"ms": ms, "skipped": skipped, "instructions": native.instruction_set()}


def processor_seconds(call: Callable[[], object]) -> float:
    """Time that the processor spends on one call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def bert_ratios(found: dict[str, Any]) -> dict[str, Any]:
    """Latencies of :func:`bert_timed` relative to torch's float32 and to the best float32."""
    ms = found["ms"]
    best = min(ms[name] for name in ms if name.endswith("FP32"))
    return {
        "of_torch": {name: value / ms["torch FP32"] for name, value in ms.items()},
        "of_best": {name: value / best for name, value in ms.items()},
        **{key: value for key, value in found.items() if key != "ms"},
    }


def bert_claims(found: dict[str, Any], forced: str | None = None) -> list[dict[str, Any]]:
    """Check the claims on BERT's shape, measured with all instructions or with a restricted set."""
    one = found["threads"]["1"]
    used = one.get("instructions") or "torch's kernels"
    limit = 0.30 if used.endswith("vnni") else 0.45
    shape = "BERT's shape, all INT8" + (f", {forced}" if forced else "")
    checked = [
        claim(f"{shape}: weights on disk, of float32", found["disk"], 0.30, above=False),
        claim(f"{shape}: latency, of torch float32", one["of_torch"][OURS], limit, above=False),
        claim(f"{shape}: cosine of the answers", found["cosine"], 0.998),
        claim(f"{shape}: share of rows that are the same alone and in a batch", found.get("same_alone"), 1.0),
    ]
    if forced is None:
        checked.append(claim(f"{shape}: latency, of the best float32", one["of_best"][OURS], 0.58, above=False))
        for rival in RIVALS:
            other = one["of_torch"].get(rival)
            figure = None if other is None else one["of_torch"][OURS] / other
            checked.append(claim(f"{shape}: latency, of {rival}", figure, 1.0, above=False))
    return checked
