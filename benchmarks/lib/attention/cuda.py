"""Sparse attention on CUDA in bfloat16: times by CUDA events, peak memory, errors against float64.

Dense attention is torch's flash attention; no other kernel may replace it. FlexAttention with a sliding
window of the same width, compiled again for each length, is measured as well. It has no global nodes, so it
does less work. Forward passes are timed a second time as replayed CUDA graphs: at a few thousand tokens,
launching the small kernels that choose the global nodes may cost more than running them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.lib.attention.kernels import Setting, attention_call, dense, passing, sparse
from benchmarks.lib.checks import claim
from benchmarks.lib.timing import PASSES, Call, compared, in_words, interleaved

CONTENDERS = tuple(f"{backend} {mode}" for backend in ("torch", "triton") for mode in ("block", "sliding"))
FLEX = "flex window"
CLAIMS = ((2048, 3.2), (8192, 10.0))
"""Claims: tokens, and times faster than flash attention at least; causal, heads of 32 channels."""
CHECK_LENGTH = 512
BETWEEN = 20
"""Computations between two events: a single one is too short to be timed."""


def kernels(lengths: Iterable[int], widths: Iterable[int], *, budget: float, limit: float = math.inf) -> dict[str, Any]:
    """Measure the part ``kernels`` on CUDA, causal and bidirectional.

    Args:
        lengths: numbers of tokens.
        widths: channels of a head.
        budget: seconds for one combination of length, width, direction and kind of passes.
        limit: seconds after which no further combination is started.

    Returns:
        The part as it is recorded: device, setting, cells, errors, failures, claims and seconds.
    """
    started, left_out = time.monotonic(), 0
    found: dict[str, list[dict[str, Any]]] = {"cells": [], "errors": [], "failed": []}
    for width in widths:
        setting = replace(Setting(), width=width)
        tried = {name: _sparse(name, setting, CHECK_LENGTH, True, "forward_backward") for name in CONTENDERS}
        able, reasons = _usable(tried)
        found["failed"] += [{"width": width, "contender": name, "reason": reason} for name, reason in reasons.items()]
        found["errors"] += [error(name, setting, causal) for name in able for causal in (True, False)]
        for length, causal, passes in product(lengths, (True, False), PASSES):
            if time.monotonic() - started > limit:
                left_out += 1
                continue
            cell, failed = _cell(list(able), setting, length, causal, passes, budget)
            found["cells"].append(cell)
            found["failed"] += failed
            print(cell, flush=True)
            torch.cuda.empty_cache()
    return {
        "device": torch.cuda.get_device_name(),
        "setting": asdict(Setting()) | {"width": list(widths), "dtype": "bfloat16"},
        **found,
        "left_out": left_out,
        "claims": claims(found["cells"]),
        "seconds": round(time.monotonic() - started),
    }


def _cell(
    able: list[str], setting: Setting, length: int, causal: bool, passes: str, budget: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Times, peak memory and, for forward passes, times of replayed graphs; and a list of what failed."""
    about = {"tokens": length, "width": setting.width, "causal": causal, "passes": passes}
    calls = {"dense": _flash(setting, length, causal, passes)}
    calls |= {name: _sparse(name, setting, length, causal, passes) for name in able}
    calls[FLEX] = _flex(setting, length, causal, passes)
    usable, reasons = _usable(calls)
    cell: dict[str, Any] = about | _event_times(usable, budget) | {"peak_mib": {name: _peak(call) for name, call in usable.items()}}
    if passes == "forward":
        graphs, uncaptured = _captured(usable)
        reasons |= {f"{name}, as a graph": reason for name, reason in uncaptured.items()}
        cell["as_graph"] = _event_times(graphs, budget)
    return cell, [about | {"contender": name, "reason": reason} for name, reason in reasons.items()]


def claims(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the best contender that has windows and global nodes, without graphs, with flash attention."""
    found = []
    for passes in PASSES:
        for tokens, limit in CLAIMS:
            figures = [
                figure
                for cell in cells
                if (cell["tokens"], cell["width"], cell["causal"], cell["passes"]) == (tokens, 32, True, passes)
                for name, figure in cell.get("times_faster", {}).items()
                if name != FLEX
            ]
            text = f"CUDA, causal, {in_words(passes)}, {tokens:,} tokens: at least {limit:g} times faster than flash attention"
            found.append(claim(text, max(figures, default=None), limit))
    return found


def _sparse(name: str, setting: Setting, length: int, causal: bool, passes: str) -> Call:
    return attention_call(name, setting, length, causal=causal, passes=passes, device="cuda", dtype=torch.bfloat16)


def _flash(setting: Setting, length: int, causal: bool, passes: str) -> Call:
    call = _sparse("dense", setting, length, causal, passes)

    def run() -> None:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            call()

    return run


def _flex(setting: Setting, length: int, causal: bool, passes: str) -> Call:
    """A sliding window by FlexAttention, compiled at the first call."""
    leaves, gradient, _ = setting.inputs(length, device="cuda", dtype=torch.bfloat16)
    prepared: list[Any] = []

    def inside(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        if causal:
            return (distance >= 0) & (distance < setting.window)
        return (distance <= setting.window // 2) & (distance >= -((setting.window - 1) // 2))

    def attend() -> Tensor:
        if not prepared:
            torch.compiler.reset()  # a function that was compiled for too many lengths runs uncompiled
            prepared.append(create_block_mask(inside, None, None, length, length, device="cuda"))
            prepared.append(torch.compile(flex_attention, dynamic=False))
        mask, compiled = prepared
        mixed: Tensor = compiled(*(x.transpose(1, 2) for x in leaves), block_mask=mask)
        return mixed.transpose(1, 2)

    return passing(attend, leaves, gradient, passes)


def _usable(calls: Mapping[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """The calls that work, warmed up, and why the others fail, e.g. too little memory."""
    usable, reasons = {}, {}
    for name, call in calls.items():
        try:
            for _ in range(3):
                call()
            torch.cuda.synchronize()
        except Exception as problem:  # noqa: BLE001  # one contender's failure must not stop the others; it is recorded
            reasons[name] = _first_line(problem)
        else:
            usable[name] = call
    return usable, reasons


def _captured(calls: Mapping[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """Each call as a CUDA graph to replay; a call that waits for the device can't be captured."""
    graphs: dict[str, Call] = {}
    reasons = {}
    for name, call in calls.items():
        graph = torch.cuda.CUDAGraph()
        try:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                call()
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph):
                call()
            graph.replay()
            torch.cuda.synchronize()
        except Exception as problem:  # noqa: BLE001  # as above
            reasons[name] = _first_line(problem)
        else:
            graphs[name] = graph.replay
    return graphs, reasons


def _first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}".splitlines()[0][:200]


def _event_times(calls: Mapping[str, Call], budget: float) -> dict[str, Any]:
    """Times in turns as in ``benchmarks.lib.timing``, but by CUDA events around several computations."""
    return compared(interleaved(calls, budget, clock=_event_seconds, repeats=BETWEEN)) if calls else {}


def _event_seconds(call: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(BETWEEN):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / BETWEEN


def _peak(call: Call) -> float:
    """MiB that a computation allocates at most, beyond what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before) / 2**20


def error(name: str, setting: Setting, causal: bool, *, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Largest error of the output and of the gradients, relative to the largest value of the exact result.

    The exact result is that of the reference in float64 on the same rounded inputs. The error of dense
    attention is given as well: it shows which part of the error is due to the precision alone.
    """
    small = replace(setting, batch=2)
    leaves, gradient, score = small.inputs(CHECK_LENGTH, device=device, dtype=dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    reference = f"reference {name.split(' ')[1]}"
    outputs = {"sparse": (name, reference), "dense": ("dense", "dense")}
    found = {}
    for kind, contenders in outputs.items():
        rounded, truth = (
            dense(*tensors, causal=causal) if by == "dense" else sparse(by, small, tensors, score, causal=causal)
            for by, tensors in zip(contenders, (leaves, exact), strict=True)
        )
        found[kind] = _largest((rounded, leaves), (truth, exact), gradient)
    return {"contender": name, "tokens": CHECK_LENGTH, "width": setting.width, "causal": causal, "relative_error": found}


def _largest(rounded: tuple[Tensor, list[Tensor]], exact: tuple[Tensor, list[Tensor]], gradient: Tensor) -> dict[str, float]:
    tensors = (rounded[0].detach(), *torch.autograd.grad(rounded[0], rounded[1], gradient))
    truths = (exact[0].detach(), *torch.autograd.grad(exact[0], exact[1], gradient.double()))
    return {
        part: float((tensor.double() - truth).abs().max() / truth.abs().max())
        for part, tensor, truth in zip(("output", "query", "key", "value"), tensors, truths, strict=True)
    }
