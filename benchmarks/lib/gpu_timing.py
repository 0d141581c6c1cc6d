"""Times by CUDA events and peak memory on a GPU; on the CPU, for dry runs, the usual clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.lib.gpu_part import reason_of
from benchmarks.lib.timing import Call, compared, interleaved, seconds

MOST, AIM = 20, 0.05
"""Computations between two events at most, and the seconds that the slowest contender's should take.

A single short computation can't be timed.
"""


@dataclass
class Ready:
    """Calls that work and are warmed up, and why the others don't."""

    calls: dict[str, Call] = field(default_factory=dict)
    first_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of the first run, in which kernels are compiled."""
    warm_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of the third run."""
    reasons: dict[str, str] = field(default_factory=dict)


def ready(makers: Mapping[str, Callable[[], Call]], device: str) -> Ready:
    """Make each call and run it three times; one that fails, e.g. for lack of memory, is left out."""
    found = Ready()
    for name, make in makers.items():
        try:
            call = make()
            first, _, warm = (seconds(partial(waited, call, device)) for _ in range(3))
        except Exception as problem:  # noqa: BLE001  # one contender's failure must not stop the others; it is recorded
            found.reasons[name] = reason_of(problem)
            release(device)
        else:
            found.calls[name], found.first_seconds[name], found.warm_seconds[name] = call, first, warm
    return found


def waited(call: Call, device: str) -> None:
    """Make a call and wait until the device has finished it."""
    call()
    if device == "cuda":
        torch.cuda.synchronize()


def release(device: str) -> None:
    """Give cached memory back to the device, unless an error has left it in no state to do so."""
    if device == "cuda":
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def times(calls: Mapping[str, Call], warm_seconds: Iterable[float], budget: float, device: str) -> dict[str, Any]:
    """Times in turns as in ``benchmarks.lib.timing``; on CUDA by events around several computations.

    Args:
        calls: what to time, by name.
        warm_seconds: about how long they take.
        budget: seconds for all rounds together.
        device: ``cuda`` or ``cpu``.
    """
    if not calls:
        return {}
    repeats = int(np.clip(AIM / max(warm_seconds), 1, MOST)) if device == "cuda" else 1
    clock = partial(event_seconds, repeats=repeats) if device == "cuda" else seconds
    return compared(interleaved(calls, budget, clock=clock, repeats=repeats))


def event_seconds(call: Call, repeats: int) -> float:
    """Seconds of one computation, as the mean of ``repeats`` between two CUDA events."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / repeats


def peak_mib(call: Call, device: str) -> float | None:
    """MiB that a computation allocates at most, beyond what was allocated before it; None on the CPU."""
    if device != "cuda":
        call()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before) / 2**20


def graphs(calls: Mapping[str, Call]) -> tuple[dict[str, Call], dict[str, str]]:
    """Each call as a CUDA graph to replay, and why others can't be: one that waits for the device can't."""
    captured: dict[str, Call] = {}
    reasons = {}
    for name, call in calls.items():
        try:
            graph = torch.cuda.CUDAGraph()
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
            reasons[name] = reason_of(problem)
        else:
            captured[name] = graph.replay
    return captured, reasons
