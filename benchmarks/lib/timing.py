"""Time calls in turns.

All calls run once in each round, one after another. What slows the machine down slows all of them, so the
ratio of two times within a round is reliable even where the times are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Call = Callable[[], object]
PASSES = ("forward", "forward_backward")
"""Kinds of passes that are timed."""


def interleaved(
    calls: Mapping[str, Call],
    budget: float,
    *,
    least: int = 3,
    most: int = 31,
    clock: Callable[[Call], float] | None = None,
    repeats: int = 1,
) -> dict[str, list[float]]:
    """Seconds of every call in every round.

    Args:
        calls: what to time, by name.
        budget: seconds for all rounds together.
        least: rounds that are made in any case.
        most: rounds that are made at most.
        clock: measures one call; by default the wall-clock time of a single computation.
        repeats: computations that ``clock`` makes for one measurement.

    Returns:
        Seconds by name, one per round. A first round warms up and is not counted.
    """
    measure = clock or seconds
    cost = sum(measure(call) for call in calls.values()) * repeats
    rounds = int(np.clip(budget / max(cost, 1e-9), least, most))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(measure(call))
    return times


def seconds(call: Call) -> float:
    """Wall-clock time of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def compared(times: Mapping[str, list[float]]) -> dict[str, Any]:
    """Number of rounds and median milliseconds by call.

    If ``dense`` is among the calls, also ``times_faster``: how many times faster than ``dense`` each other
    call is, as the median of the ratios within the rounds.
    """
    found: dict[str, Any] = {
        "rounds": len(next(iter(times.values()))),
        "milliseconds": {name: 1000 * float(np.median(values)) for name, values in times.items()},
    }
    if "dense" in times:
        base = np.array(times["dense"])
        found["times_faster"] = {name: float(np.median(base / np.array(values))) for name, values in times.items() if name != "dense"}
    return found


def in_words(passes: str) -> str:
    """Name of a kind of passes for a sentence or a heading."""
    return passes.replace("_", " + ")
