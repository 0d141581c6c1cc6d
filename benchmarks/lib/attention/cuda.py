"""Sparse attention on CUDA: times by CUDA events, peak memory, errors against float64.

Dense attention is torch's flash attention; no other kernel may replace it. In float32, which flash attention
does not have, it is torch's memory-efficient attention. FlexAttention with a sliding window of the same
width, compiled again for each length, is measured as well. It has no global nodes, so it does less work.
Forward passes at up to 8,192 tokens are timed a second time as replayed CUDA graphs: there, launching the
small kernels that choose the global nodes may cost more than running them.

A dry run does the same on the CPU with FlexAttention uncompiled; its figures mean nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from benchmarks.lib.attention.kernels import Setting, attention_call, dense, passing, sparse
from benchmarks.lib.checks import claim
from benchmarks.lib.gpu_part import reason_of
from benchmarks.lib.gpu_timing import graphs, peak_mib, ready, release, times
from benchmarks.lib.timing import PASSES, Call, in_words

CONTENDERS = tuple(f"{backend} {mode}" for backend in ("torch", "triton") for mode in ("block", "sliding"))
FLEX = "flex window"
CLAIMS = ((2048, 3.2), (8192, 10.0))
"""Claims: tokens, and times faster than flash attention at least; causal, heads of 32 channels."""
CHECK_LENGTH = 512
AS_GRAPH = 8192
"""Tokens up to which forward passes are timed as CUDA graphs too."""
FLEX_BLOCK = 128
"""Queries, and keys, of a block of FlexAttention's mask."""


@dataclass(frozen=True)
class Combination:
    """What one cell measures."""

    tokens: int
    causal: bool
    passes: str
    """``forward`` or ``forward_backward``."""
    width: int = 32
    """Channels of a head."""
    dtype: str = "bfloat16"
    flex: bool = True
    """Whether FlexAttention is measured too; it is compiled for each combination, which takes long."""


@dataclass(frozen=True)
class Run:
    """Settings that all cells of a run share."""

    setting: Setting = field(default_factory=Setting)
    device: str = "cuda"
    budget: float = 1.0
    """Seconds for timing the contenders of one cell."""
    limit: float = math.inf
    """Seconds after which nothing further is started."""
    keep: Callable[[dict[str, Any]], None] = lambda _: None
    """Gets the part as it is recorded after every cell."""


def kernels(lengths: Iterable[int], widths: Iterable[int], *, budget: float, limit: float = math.inf) -> dict[str, Any]:
    """Measure the part ``kernels`` on CUDA in bfloat16, causal and bidirectional.

    Args:
        lengths: numbers of tokens.
        widths: channels of a head.
        budget: seconds for one combination of length, width, direction and kind of passes.
        limit: seconds after which no further combination is started.

    Returns:
        The part as it is recorded: see :func:`measure`.
    """
    chosen = [
        Combination(length, causal, passes, width) for width, length, causal, passes in product(widths, lengths, (True, False), PASSES)
    ]
    return measure(chosen, Run(budget=budget, limit=limit))


def measure(combinations: Iterable[Combination], run: Run) -> dict[str, Any]:
    """Measure cells one after another, then the errors of every contender.

    A contender that failed is not tried again with the same width, dtype and kind of passes, unless it was
    for lack of memory.

    Returns:
        The part as it is recorded: device, setting, cells, errors, failures, claims and seconds.
    """
    started, chosen = time.monotonic(), list(combinations)
    given_up: set[tuple[str, ...]] = set()
    part: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if run.device == "cuda" else run.device,
        "setting": asdict(run.setting) | {"width": sorted({each.width for each in chosen})},
        "cells": [],
        "errors": [],
        "failed": [],
        "left_out": 0,
    }

    def keep() -> None:
        part["claims"], part["seconds"] = claims(part["cells"]), round(time.monotonic() - started)
        run.keep(part)

    for each in chosen:
        if time.monotonic() - started > run.limit:
            part["left_out"] += 1
            continue
        kind = (str(each.width), each.dtype, each.passes)
        cell, reasons = _cell(each, run, [name for name in (*CONTENDERS, FLEX) if (name, *kind) not in given_up])
        given_up |= {(name, *kind) for name, reason in reasons.items() if "OutOfMemory" not in reason}
        part["cells"].append(cell)
        part["failed"] += [asdict(each) | {"contender": name, "reason": reason} for name, reason in reasons.items()]
        print(cell, flush=True)
        release(run.device)
        keep()
    for (width, dtype), name, causal in product(sorted({(each.width, each.dtype) for each in chosen}), CONTENDERS, (True, False)):
        if any((name, str(width), dtype, passes) in given_up for passes in PASSES):
            continue
        if time.monotonic() - started > run.limit:
            part["left_out"] += 1
            continue
        setting = replace(run.setting, width=width)
        try:
            part["errors"].append(error(name, setting, causal, device=run.device, dtype=getattr(torch, dtype)))
        except Exception as problem:  # noqa: BLE001  # one contender's failure must not stop the others; it is recorded
            about = {"tokens": CHECK_LENGTH, "width": width, "dtype": dtype, "causal": causal}
            part["failed"].append(about | {"contender": f"{name}, error", "reason": reason_of(problem)})
    keep()
    return part


def _cell(each: Combination, run: Run, names: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Times, first runs, peak memory and, for short forward passes, times of graphs; and what failed."""
    setting = replace(run.setting, width=each.width)
    makers: dict[str, Callable[[], Call]] = {"dense": partial(_dense, setting, each, run.device)}
    makers |= {name: partial(_sparse, name, setting, each, run.device) for name in names if name != FLEX}
    if each.flex and FLEX in names:
        makers[FLEX] = partial(_flex, setting, each, run.device)
    found = ready(makers, run.device)
    cell: dict[str, Any] = {key: value for key, value in asdict(each).items() if key != "flex"}
    cell |= times(found.calls, found.warm_seconds.values(), run.budget, run.device)
    cell["first_seconds"] = found.first_seconds
    cell["peak_mib"] = {name: peak_mib(call, run.device) for name, call in found.calls.items()}
    reasons = dict(found.reasons)
    if each.passes == "forward" and each.tokens <= AS_GRAPH:
        captured, uncaptured = graphs(found.calls)
        reasons |= {f"{name}, as a graph": reason for name, reason in uncaptured.items()}
        warm = [found.warm_seconds[name] for name in captured]
        cell["as_graph"] = times(captured, warm, run.budget, run.device)
    return cell, reasons


def claims(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the best contender that has windows and global nodes, without graphs, with flash attention."""
    found = []
    for passes in PASSES:
        for tokens, limit in CLAIMS:
            figures = [
                figure
                for cell in cells
                if (cell["tokens"], cell["width"], cell["causal"], cell["passes"]) == (tokens, 32, True, passes)
                and cell.get("dtype", "bfloat16") == "bfloat16"
                for name, figure in cell.get("times_faster", {}).items()
                if name != FLEX
            ]
            text = f"CUDA, causal, {in_words(passes)}, {tokens:,} tokens: at least {limit:g} times faster than flash attention"
            found.append(claim(text, max(figures, default=None), limit))
    return found


def _sparse(name: str, setting: Setting, each: Combination, device: str) -> Call:
    dtype = getattr(torch, each.dtype)
    return attention_call(name, setting, each.tokens, causal=each.causal, passes=each.passes, device=device, dtype=dtype)


def _dense(setting: Setting, each: Combination, device: str) -> Call:
    call = _sparse("dense", setting, each, device)
    efficient = each.dtype == "float32" and device == "cuda"
    kernel = SDPBackend.EFFICIENT_ATTENTION if efficient else SDPBackend.FLASH_ATTENTION

    def run() -> None:
        with sdpa_kernel(kernel):
            call()

    return run


def _flex(setting: Setting, each: Combination, device: str) -> Call:
    """A sliding window by FlexAttention, compiled at the first call."""
    leaves, gradient, _ = setting.inputs(each.tokens, device=device, dtype=getattr(torch, each.dtype))
    mask = window_mask(each.tokens, setting.window, causal=each.causal, device=device)
    attention: Callable[..., Tensor] = flex_attention
    if device == "cuda":
        torch.compiler.reset()  # a function that was compiled for too many lengths runs uncompiled
        attention = torch.compile(flex_attention, dynamic=False)

    # On a CPU it refuses tensors that need gradients even where none are computed.
    tensors = [leaf.detach() for leaf in leaves] if each.passes == "forward" else leaves

    def attend() -> Tensor:
        return attention(*(x.transpose(1, 2) for x in tensors), block_mask=mask).transpose(1, 2)

    return passing(attend, leaves, gradient, each.passes)


def window_mask(tokens: int, window: int, *, causal: bool, device: str) -> BlockMask:
    """Mask of a sliding window for FlexAttention; torch's own function would first make the dense mask.

    Args:
        tokens: number of tokens, a multiple of :data:`FLEX_BLOCK`.
        window: keys of a window; bidirectional windows are centred.
        causal: whether later keys are masked.
        device: where attention is computed.
    """
    before, after = (window - 1, 0) if causal else (window // 2, (window - 1) // 2)

    def inside(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query - key <= before) & (key - query <= after)

    rows = tokens // FLEX_BLOCK
    block = torch.arange(rows)
    first = (block * FLEX_BLOCK - before).clamp(min=0) // FLEX_BLOCK
    last = (block * FLEX_BLOCK + FLEX_BLOCK - 1 + after).clamp(max=tokens - 1) // FLEX_BLOCK
    count = last - first + 1
    index = (first[:, None] + torch.arange(rows)).remainder(rows)  # the first `count` of each row are read
    count, index = (each.to(device, torch.int32)[None, None].contiguous() for each in (count, index))
    return BlockMask.from_kv_blocks(count, index, BLOCK_SIZE=FLEX_BLOCK, mask_mod=inside)


def error(name: str, setting: Setting, causal: bool, *, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Largest error of the output and of the gradients, relative to the largest value of the exact result.

    The exact result is that of the reference in float64 on the same rounded inputs. The error of dense
    attention is given as well: it shows which part of the error is due to the precision alone.
    """
    small = replace(setting, batch=2)
    leaves, gradient, score = small.inputs(CHECK_LENGTH, device=device, dtype=dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    reference = f"reference {name.split(' ')[1]}"
    outputs: Mapping[str, tuple[str, str]] = {"sparse": (name, reference), "dense": ("dense", "dense")}
    found = {}
    for kind, contenders in outputs.items():
        rounded, truth = (
            dense(*tensors, causal=causal) if by == "dense" else sparse(by, small, tensors, score, causal=causal)
            for by, tensors in zip(contenders, (leaves, exact), strict=True)
        )
        found[kind] = _largest((rounded, leaves), (truth, exact), gradient)
    about = {"contender": name, "tokens": CHECK_LENGTH, "width": setting.width, "dtype": str(dtype).removeprefix("torch.")}
    return about | {"causal": causal, "relative_error": found}


def _largest(rounded: tuple[Tensor, list[Tensor]], exact: tuple[Tensor, list[Tensor]], gradient: Tensor) -> dict[str, float]:
    tensors = (rounded[0].detach(), *torch.autograd.grad(rounded[0], rounded[1], gradient))
    truths = (exact[0].detach(), *torch.autograd.grad(exact[0], exact[1], gradient.double()))
    return {
        part: float((tensor.double() - truth).abs().max() / truth.abs().max())
        for part, tensor, truth in zip(("output", "query", "key", "value"), tensors, truths, strict=True)
    }
