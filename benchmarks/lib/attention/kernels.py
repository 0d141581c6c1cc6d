"""Sparse attention against torch's dense attention on a CPU: speed, growth with the length, memory.

A time is the median of rounds in which every contender runs once (see ``benchmarks.lib.timing``), in seconds
of the processor. The choice of the global nodes is part of what is timed. All contenders get the same inputs
of shape (B, n, H, d), as a model's linear layers give them.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from balancer.errors import UnsupportedError
from balancer.models.attention import native, sparse_attention
from benchmarks.lib.checks import claim
from benchmarks.lib.timing import PASSES, Call, compared, in_words, interleaved

CONTENDERS = {f"{backend} {mode}": (backend, mode) for backend in ("torch", "native") for mode in ("block", "sliding")}
GROWTH_FROM = 1024
_OF_TORCH = (("torch block", 512, "forward", 2.0), ("torch block", 2048, "forward", 5.0))
CLAIMS = {
    "avx512": (
        *_OF_TORCH,
        ("native sliding", 512, "forward", 5.0),
        ("native sliding", 2048, "forward", 12.0),
        ("native sliding", 8192, "forward", 40.0),
        ("native sliding", 512, "forward_backward", 7.0),
        ("native sliding", 2048, "forward_backward", 17.0),
        ("native sliding", 8192, "forward_backward", 50.0),
    ),
    "avx2": (
        *_OF_TORCH,
        ("native sliding", 512, "forward", 4.0),
        ("native sliding", 2048, "forward", 10.0),
        ("native sliding", 8192, "forward", 35.0),
    ),
    "portable": _OF_TORCH,
}
"""Claims on causal attention, by the instruction set of the native kernel.

Contender, tokens, passes, at least how many times faster than dense attention with the same instructions.
"""
GROWTH_CLAIM = 1.1
"""Claim on causal attention: the time grows at most as the length to this power."""


@dataclass(frozen=True)
class Setting:
    """Sizes and seed of the inputs; the same for all contenders."""

    batch: int = 8
    """Sequences, B."""
    heads: int = 4
    """Heads, H."""
    width: int = 32
    """Channels of a head, d."""
    window: int = 64
    """Keys in a window."""
    num_global: int = 8
    """Global nodes."""
    seed: int = 0
    """Seed of the inputs."""

    def inputs(self, length: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor, Tensor]:
        """Leaves query, key and value and a gradient of the output, (B, n, H, d) each, and scores (B, n)."""
        generator = torch.Generator().manual_seed(self.seed + length)
        shape = (self.batch, length, self.heads, self.width)
        *leaves, gradient = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4))
        score = torch.randn(shape[:2], generator=generator).to(device)
        return [leaf.requires_grad_() for leaf in leaves], gradient, score


def dense(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Torch's fused attention over query, key and value (B, n, H, d)."""
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=causal)
    return mixed.transpose(1, 2)


def sparse(name: str, setting: Setting, leaves: list[Tensor], score: Tensor, *, causal: bool) -> Tensor:
    """Sparse attention by ``BACKEND MODE`` over query, key and value (B, n, H, d) with scores (B, n)."""
    query, key, value = leaves
    backend, mode = name.split(" ")
    return sparse_attention(
        query,
        key,
        value,
        score,
        window=setting.window,
        num_global=setting.num_global,
        causal=causal,
        mode=mode,  # type: ignore[arg-type]  # block or sliding
        backend=backend,
    )


def attention_call(
    name: str, setting: Setting, length: int, *, causal: bool, passes: str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Call:
    """A call of ``dense`` or ``BACKEND MODE`` over ``length`` tokens; the inputs are made beforehand."""
    leaves, gradient, score = setting.inputs(length, device=device, dtype=dtype)

    def attend() -> Tensor:
        return dense(*leaves, causal=causal) if name == "dense" else sparse(name, setting, leaves, score, causal=causal)

    return passing(attend, leaves, gradient, passes)


def passing(attend: Callable[[], Tensor], leaves: list[Tensor], gradient: Tensor, passes: str) -> Call:
    """A call of ``attend`` without gradients, or with those of ``leaves`` for the output's ``gradient``."""

    def forward() -> None:
        with torch.no_grad():
            attend()

    def forward_backward() -> None:
        torch.autograd.grad(attend(), leaves, gradient)

    return forward if passes == "forward" else forward_backward


def refusals(names: Iterable[str], setting: Setting, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Which contenders can't run on this machine, and why; compiles the backends that can."""
    found = {}
    for name in names:
        try:
            for causal in (True, False):
                for passes in PASSES:
                    attention_call(name, setting, 2 * setting.window, causal=causal, passes=passes, device=device, dtype=dtype)()
        except UnsupportedError as error:
            found[name] = str(error)
    return found


def instructions() -> str:
    """Name in :data:`CLAIMS` of the instruction set that the native kernel uses here."""
    return ("portable", "avx2", "avx512")[native.instruction_set() or 0]


def kernels(
    lengths: Iterable[int],
    growth_lengths: Sequence[int],
    memory_lengths: Iterable[int],
    *,
    budget: float,
    directions: Iterable[bool] = (True, False),
) -> dict[str, Any]:
    """Measure the part ``kernels``: every contender against dense attention.

    Args:
        lengths: numbers of tokens at which dense attention is timed too.
        growth_lengths: larger numbers of tokens, at which only the growth of the time is measured, without
            dense attention; without them no growth is computed.
        memory_lengths: numbers of tokens at which memory is measured.
        budget: seconds for one length, direction and kind of passes; three rounds are made in any case.
        directions: True for causal attention, False for bidirectional attention.

    Returns:
        The part as it is recorded: setting, instruction sets, refused contenders, cells, growth, memory,
            claims and seconds.
    """
    setting = Setting()
    torch.set_num_threads(1)
    started = time.monotonic()
    refused = refusals(CONTENDERS, setting)
    able = [name for name in CONTENDERS if name not in refused]
    cells = []
    for length in (*lengths, *growth_lengths):
        for causal in directions:
            for passes in PASSES:
                # Bidirectional dense attention with gradients takes very long at 8192 tokens.
                with_dense = length in tuple(lengths) and (causal or passes == "forward" or length <= 4096)
                names = ["dense", *able] if with_dense else able
                if not names:
                    continue
                calls = {name: attention_call(name, setting, length, causal=causal, passes=passes) for name in names}
                cells.append(
                    {"tokens": length, "causal": causal, "passes": passes} | compared(interleaved(calls, budget, clock=processor_seconds))
                )
                print(cells[-1], flush=True)
    found = growth(cells) if growth_lengths else []
    return {
        "setting": asdict(setting) | {"threads": torch.get_num_threads(), "dtype": "float32"},
        "instructions": instructions(),
        "torch_instructions": torch.backends.cpu.get_cpu_capability(),
        "refused": refused,
        "cells": cells,
        "growth": found,
        "memory": [memory(["dense", *able], setting, length, passes) for length in memory_lengths for passes in PASSES],
        "claims": claims(cells, found, instructions()),
        "seconds": round(time.monotonic() - started),
    }


def processor_seconds(call: Call) -> float:
    """Seconds that this process computes for one call; other processes of the machine do not count."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def growth(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponent e of time ~ n ** e for n >= 1024 tokens, by least squares on logarithms.

    There is one entry for every contender, direction and kind of passes.
    """
    found = []
    for causal in (True, False):
        for passes in PASSES:
            chosen = [cell for cell in cells if cell["causal"] == causal and cell["passes"] == passes and cell["tokens"] >= GROWTH_FROM]
            for name in dict.fromkeys(name for cell in chosen for name in cell["milliseconds"]):
                points = [(cell["tokens"], cell["milliseconds"][name]) for cell in chosen if name in cell["milliseconds"]]
                if len(points) < 2:
                    continue
                tokens, milliseconds = np.log(np.array(points, dtype=np.float64)).T
                exponent = float(np.polyfit(tokens, milliseconds, 1)[0])
                ends = [points[0][0], points[-1][0]]
                found.append({"contender": name, "causal": causal, "passes": passes, "tokens": ends, "exponent": exponent})
    return found


def claims(cells: list[dict[str, Any]], exponents: list[dict[str, Any]], instructions: str = "avx512") -> list[dict[str, Any]]:
    """Check the claims on speed and growth that the docstring of ``benchmarks.claims.attention`` states."""
    found = []
    for name, tokens, passes, limit in CLAIMS[instructions]:
        ratios = [cell["times_faster"] for cell in cells if (cell["tokens"], cell["causal"], cell["passes"]) == (tokens, True, passes)]
        figure = ratios[0].get(name) if ratios else None
        found.append(
            claim(f"{name}, causal, {in_words(passes)}, {tokens:,} tokens: at least {limit:g} times faster than dense", figure, limit)
        )
    for passes in PASSES:
        for name in CONTENDERS:
            slope = [each["exponent"] for each in exponents if (each["contender"], each["causal"], each["passes"]) == (name, True, passes)]
            text = f"{name}, causal, {in_words(passes)}: time grows at most as tokens ** {GROWTH_CLAIM}"
            found.append(claim(text, slope[0] if slope else None, GROWTH_CLAIM, above=False))
    return found


def memory(names: Iterable[str], setting: Setting, length: int, passes: str) -> dict[str, Any]:
    """Growth of the resident set of a child process in one causal computation, in MiB by contender.

    The inputs are not counted. A value is None where the operating system does not report it.
    """
    found: dict[str, float | None] = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as child:
            found[name] = child.submit(partial(_peak, name, setting, length, passes)).result()
    return {"tokens": length, "causal": True, "passes": passes, "mib": found}


def _peak(name: str, setting: Setting, length: int, passes: str) -> float | None:
    """Measure the growth in MiB in this process; None where the operating system does not report it."""
    torch.set_num_threads(1)
    attention_call(name, setting, 2 * setting.window, causal=True, passes=passes)()
    call = attention_call(name, setting, length, causal=True, passes=passes)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the recorded peak
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> float:
    """Value of a line of /proc/self/status, in KiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return float(line.split()[1])
