"""Sparse attention against torch's dense one on a CPU: contenders that take turns, growth with length, memory of a process; measures for attention.py.

A time is the median of rounds in which all contenders run once, one after another, so what slows the machine slows them alike; "times faster" is the median of
the rounds' own ratios. The choice of global nodes is part of what is timed; the inputs are (B, n, H, d), as the linears of a model give them, for all.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from balancer.errors import InputError
from balancer.models.attention import sparse_attention

PASSES = ("forward", "forward_backward")
CONTENDERS = {f"{backend} {mode}": (backend, mode) for backend in ("torch", "native") for mode in ("block", "sliding")}
GROWTH_FROM = 1024
CLAIMS = (
    ("torch block", 512, "forward", 2.0),
    ("torch block", 2048, "forward", 5.0),
    ("native sliding", 512, "forward", 5.0),
    ("native sliding", 2048, "forward", 11.0),
    ("native sliding", 8192, "forward", 40.0),
    ("native sliding", 512, "forward_backward", 7.0),
    ("native sliding", 2048, "forward_backward", 17.0),
)
"""Causal: contender, tokens, passes, wanted times faster than dense."""
GROWTH_CLAIM = 1.1
"""Causal: wanted exponent of the time by length, at most."""
Call = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What is attended to; the same for all contenders."""

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
    """Of the inputs."""

    def inputs(self, length: int, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor, Tensor]:
        """Query, key and value (B, n, H, d) that ask for gradients, a gradient of the output, and scores (B, n)."""
        own = torch.Generator().manual_seed(self.seed + length)
        shape = (self.batch, length, self.heads, self.width)
        *leaves, gradient = (torch.randn(shape, generator=own).to(device, dtype) for _ in range(4))
        score = torch.randn(shape[:2], generator=own).to(device)
        return [leaf.requires_grad_() for leaf in leaves], gradient, score


def dense(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """Torch's fused attention over (B, n, H, d)."""
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=causal)
    return mixed.transpose(1, 2)


def attention_call(
    name: str, setting: Setting, length: int, *, causal: bool, passes: str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Call:
    """One computation by ``dense`` or by ``BACKEND MODE``, inputs made beforehand."""
    leaves, gradient, score = setting.inputs(length, device=device, dtype=dtype)

    def attend() -> Tensor:
        query, key, value = leaves
        if name == "dense":
            return dense(query, key, value, causal=causal)
        backend, mode = name.split(" ")
        return sparse_attention(
            query,
            key,
            value,
            score,
            window=setting.window,
            num_global=setting.num_global,
            causal=causal,
            mode=mode,  # type: ignore[arg-type]  # of CONTENDERS
            backend=backend,
        )

    return passing(attend, leaves, gradient, passes)


def passing(attend: Callable[[], Tensor], leaves: list[Tensor], gradient: Tensor, passes: str) -> Call:
    """``attend`` without gradients, or with those of ``leaves`` for the ``gradient`` of its output."""

    def forward() -> None:
        with torch.no_grad():
            attend()

    def forward_backward() -> None:
        torch.autograd.grad(attend(), leaves, gradient)

    return forward if passes == "forward" else forward_backward


def refusals(names: Iterable[str], setting: Setting, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Which contenders can't work here, and why. What a backend builds at its first call is then built."""
    found = {}
    for name in names:
        try:
            for causal in (True, False):
                for passes in PASSES:
                    attention_call(name, setting, 2 * setting.window, causal=causal, passes=passes, device=device, dtype=dtype)()
        except InputError as error:
            found[name] = str(error)
    return found


def interleaved(calls: Mapping[str, Call], budget: float, *, least: int = 3, most: int = 31) -> dict[str, list[float]]:
    """Seconds of every call, round by round, as many rounds as go into ``budget`` seconds; a first round warms up and isn't counted."""
    cost = sum(_seconds(call) for call in calls.values())
    rounds = int(np.clip(budget / max(cost, 1e-9), least, most))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_seconds(call))
    return times


def _seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def compared(times: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians in milliseconds, and how many times faster than ``dense`` where it is among them."""
    own: dict[str, Any] = {
        "rounds": len(next(iter(times.values()))),
        "milliseconds": {name: 1000 * float(np.median(values)) for name, values in times.items()},
    }
    if "dense" in times:
        base = np.array(times["dense"])
        own["times_faster"] = {name: float(np.median(base / np.array(values))) for name, values in times.items() if name != "dense"}
    return own


def kernels(lengths: Iterable[int], growth_lengths: Iterable[int], memory_lengths: Iterable[int], *, budget: float) -> dict[str, Any]:
    """The part ``kernels``: every contender against dense at ``lengths``, without dense at ``growth_lengths``.

    Args:
        lengths: tokens.
        growth_lengths: tokens, longer, for the growth only.
        memory_lengths: tokens at which memory is measured.
        budget: seconds for one length, direction and kind of passes; three rounds are made in any case.
    """
    setting = Setting()
    torch.set_num_threads(1)
    started = time.monotonic()
    refused = refusals(CONTENDERS, setting)
    able = [name for name in CONTENDERS if name not in refused]
    cells = []
    for length in (*lengths, *growth_lengths):
        for causal in (True, False):
            for passes in PASSES:
                # Dense, both ways and with gradients, would take longer at 8192 tokens than all the rest.
                with_dense = length in tuple(lengths) and (causal or passes == "forward" or length <= 4096)
                names = ["dense", *able] if with_dense else able
                if not names:
                    continue
                calls = {name: attention_call(name, setting, length, causal=causal, passes=passes) for name in names}
                cells.append({"tokens": length, "causal": causal, "passes": passes} | compared(interleaved(calls, budget)))
                print(cells[-1], flush=True)
    found = growth(cells)
    return {
        "setting": asdict(setting) | {"threads": torch.get_num_threads(), "dtype": "float32"},
        "refused": refused,
        "cells": cells,
        "growth": found,
        "memory": [memory(["dense", *able], setting, length, passes) for length in memory_lengths for passes in PASSES],
        "claims": claims(cells, found),
        "seconds": round(time.monotonic() - started),
    }


def growth(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponent e of time ~ n ** e from 1024 tokens on, by least squares on logarithms, for every contender, direction and kind of passes."""
    found = []
    for causal in (True, False):
        for passes in PASSES:
            own = [cell for cell in cells if cell["causal"] == causal and cell["passes"] == passes and cell["tokens"] >= GROWTH_FROM]
            for name in dict.fromkeys(name for cell in own for name in cell["milliseconds"]):
                points = [(cell["tokens"], cell["milliseconds"][name]) for cell in own if name in cell["milliseconds"]]
                if len(points) < 2:
                    continue
                tokens, milliseconds = np.log(np.array(points, dtype=np.float64)).T
                exponent = float(np.polyfit(tokens, milliseconds, 1)[0])
                ends = [points[0][0], points[-1][0]]
                found.append({"contender": name, "causal": causal, "passes": passes, "tokens": ends, "exponent": exponent})
    return found


def claim(text: str, figure: float | None, limit: float, *, above: bool = True) -> dict[str, Any]:
    """A claim with its figure, and whether it is ``met``, ``not met`` or ``not measured``."""
    if figure is None:
        return {"claim": text, "holds": "not measured"}
    return {"claim": text, "figure": figure, "limit": limit, "holds": "met" if (figure >= limit) == above or figure == limit else "not met"}


def claims(cells: list[dict[str, Any]], exponents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the docstring of attention.py says, checked."""
    found = []
    for name, tokens, passes, limit in CLAIMS:
        own = [cell["times_faster"] for cell in cells if (cell["tokens"], cell["causal"], cell["passes"]) == (tokens, True, passes)]
        figure = own[0].get(name) if own else None
        found.append(claim(f"{name}, causal, {said(passes)}, {tokens:,} tokens: at least {limit:g} times faster than dense", figure, limit))
    for passes in PASSES:
        for name in CONTENDERS:
            slope = [each["exponent"] for each in exponents if (each["contender"], each["causal"], each["passes"]) == (name, True, passes)]
            text = f"{name}, causal, {said(passes)}: time grows at most as tokens ** {GROWTH_CLAIM}"
            found.append(claim(text, slope[0] if slope else None, GROWTH_CLAIM, above=False))
    return found


def said(passes: str) -> str:
    """A kind of passes in words."""
    return passes.replace("_", " + ")


def memory(names: Iterable[str], setting: Setting, length: int, passes: str) -> dict[str, Any]:
    """Growth of the resident set of a child process in one causal computation, MiB, by contender; the inputs are not counted."""
    found: dict[str, float | None] = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as child:
            found[name] = child.submit(partial(_peak, name, setting, length, passes)).result()
    return {"tokens": length, "causal": True, "passes": passes, "mib": found}


def _peak(name: str, setting: Setting, length: int, passes: str) -> float | None:
    """Run in the child; None where the system doesn't tell."""
    torch.set_num_threads(1)
    attention_call(name, setting, 2 * setting.window, causal=True, passes=passes)()
    call = attention_call(name, setting, length, causal=True, passes=passes)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> float:
    """A line of /proc/self/status in KiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return float(line.split()[1])
