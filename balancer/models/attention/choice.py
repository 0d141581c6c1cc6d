"""Choice of a backend for `auto`: the fastest one, from times measured on this machine at first use.

Which backend is fastest depends on processor, threads and library, and changes somewhere between 64 and 1,000
tokens, so it is measured. The table is stored in the user's cache folder, so that all runs on one machine use
the same backend. Close times are decided by a fixed order, so that noise does not change the choice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from balancer import __version__
from balancer.errors import InputError, UnsupportedError, UnwritableFileError
from balancer.files import write_json
from balancer.models.attention.backends import BACKENDS
from balancer.models.attention.layout import Layout
from balancer.models.attention.masked import covers
from balancer.models.attention.selection import select_globals
from balancer.models.attention.transforms import active

LENGTHS = (64, 128, 256, 512, 1024, 2048)
"""Numbers of tokens at which backends are measured; times of longer sequences are extrapolated."""
ORDER = ("native", "triton", "torch", "dense")
"""Preference among backends with close times, and where nothing can be measured."""
CLOSE = 1.1
"""Times within this factor count as equal."""
HOPELESS = 2.0
"""A backend slower than the best by this factor is not measured at greater lengths.

An exception is made if the best is `dense`, because its cost grows fastest.
"""
VARIABLE = "BALANCER_ATTENTION_BACKEND"
"""Environment variable with the name of the backend to use."""
VERSION = 2


@dataclass(frozen=True)
class Choice:
    """Backend chosen by `auto`, and the reason."""

    name: str
    """Name of the backend."""
    reason: str
    """Reason as text."""
    milliseconds: dict[str, dict[str, float]]
    """Measured times, by length and backend; empty if nothing was measured."""


def explain_choice(query: Tensor, layout: Layout, *, num_global: int = 8) -> Choice:
    """Choose the backend of `auto` for a query (B, n, H, d), with the reason.

    Args:
        query: query of the attention.
        layout: windows and chunks.
        num_global: number of global nodes.

    Raises:
        InputError: The environment variable names an unknown backend.
        UnsupportedError: The environment variable names a backend that can't be used here.
    """
    fixed = _choose_without_measuring(query, layout)
    if fixed is not None:
        return Choice(*fixed, {})
    table = _table(query, layout, num_global)
    measured_at, times = _times(table, query.shape[1])
    listed = ", ".join(f"{name} {ms:.2f} ms" for name, ms in sorted(times.items(), key=lambda pair: pair[1]))
    extrapolated = f", extrapolated to {query.shape[1]}" if query.shape[1] > LENGTHS[-1] else ""
    return Choice(_fastest(times), f"measured here at {measured_at} tokens{extrapolated}: {listed}", table)


def choose(query: Tensor, layout: Layout, num_global: int) -> str:
    """Choose the backend of `auto`, without the reason, because it is called for every attention."""
    fixed = _choose_without_measuring(query, layout)
    return fixed[0] if fixed is not None else _fastest(_times(_table(query, layout, num_global), query.shape[1])[1])


def check_variable(query: Tensor | None = None, layout: Layout | None = None) -> None:
    """Check the backend that the environment variable names, before anything is computed or written.

    Args:
        query: (B, n, H, d) query as the attention will have it; None: only the name is checked.
        layout: windows and chunks; None: the default.

    Raises:
        InputError: It names an unknown backend.
        UnsupportedError: It names a backend that can't be used for `query` here.
    """
    forced = os.environ.get(VARIABLE)
    if not forced:
        return
    if query is not None:
        _forced(forced, query, layout or Layout())
    elif forced not in BACKENDS:
        raise _unknown(forced)


def cache_folder() -> Path:
    """Folder of the tables: `$XDG_CACHE_HOME/balancer`, or `~/.cache/balancer`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "balancer"


def _unknown(name: str) -> InputError:
    return InputError(f"{VARIABLE} names the unknown backend '{name}'; known backends are {', '.join(BACKENDS)}")


def _forced(name: str, query: Tensor, layout: Layout) -> str:
    if name not in BACKENDS:
        raise _unknown(name)
    reason = BACKENDS[name].refuses(query, layout)
    if reason is not None:
        raise UnsupportedError(f"{VARIABLE} names the backend '{name}', which can't be used: {reason}; unset it")
    return name


Table = dict[str, dict[str, float]]
_TABLES: dict[tuple[Any, ...], Table] = {}
_LOCK = threading.Lock()


def _choose_without_measuring(query: Tensor, layout: Layout) -> tuple[str, str] | None:
    """Return a backend and the reason if no measurement is needed, else None."""
    forced = os.environ.get(VARIABLE)
    if forced:
        return _forced(forced, query, layout), f"{VARIABLE} names it"
    length = query.shape[1]
    if covers(layout, length):
        return "dense", f"{length} tokens fit in a window of {layout.window}: dense attention is equivalent"
    if torch.compiler.is_compiling():
        # Without a measurement `triton` is not used.
        name = next(name for name in _usable(query, layout) if name != "triton")
        return name, "nothing is measured while torch compiles; this is the first in the usual order"
    if active():
        return _usable(query, layout)[0], "nothing is measured inside a transform of torch.func; this is the first in the usual order"
    return None


def _usable(query: Tensor, layout: Layout) -> list[str]:
    """Return the backends that can be used here, in order of preference."""
    usable = [name for name in ORDER if BACKENDS[name].refuses(query, layout) is None]
    return [name for name in usable if not (name == "triton" and query.device.type == "cpu")]  # on a CPU it is interpreted


def _times(table: Table, length: int) -> tuple[int, dict[str, float]]:
    """Return the measured length with the nearest logarithm, and the times at that length.

    Beyond the longest length the times are extrapolated: quadratically for dense attention, linearly for the
    others.
    """
    nearest = min(LENGTHS, key=lambda measured: abs(math.log(measured / length)))
    factor = max(1.0, length / LENGTHS[-1])
    return nearest, {name: ms * (factor**2 if name == "dense" else factor) for name, ms in table[str(nearest)].items()}


def _fastest(times: dict[str, float]) -> str:
    """Return the first backend in `ORDER` whose time is close to the best."""
    best = min(times.values())
    return next(name for name in ORDER if times.get(name, math.inf) <= CLOSE * best)


def _table(query: Tensor, layout: Layout, num_global: int) -> Table:
    """Return milliseconds by length and backend, from memory, from the cache file, or measured now."""
    usable = _usable(query, layout)
    channels = next((size for size in (16, 32, 64, 128) if query.shape[-1] <= size), query.shape[-1])
    gradients = torch.is_grad_enabled() and query.requires_grad
    memory_key = (query.device, query.dtype, channels, gradients, layout, num_global, torch.get_num_threads(), *usable)
    with _LOCK:  # threads that measure at the same time would slow each other and could choose different backends
        if memory_key not in _TABLES:
            key: dict[str, Any] = {
                "version": VERSION,
                "balancer": __version__,
                "processor": processor(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "device": torch.cuda.get_device_name(query.device) if query.device.type == "cuda" else query.device.type,
                "dtype": str(query.dtype),
                "channels": channels,
                "backends": usable,
                "layout": [layout.window, layout.chunk, layout.causal, layout.mode, num_global],
                "gradients": gradients,
            }
            digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
            path = cache_folder() / f"attention-{digest}.json"
            _TABLES[memory_key] = _read(path, key) or _measure(path, key, query, layout, num_global, usable)
        return _TABLES[memory_key]


def _read(path: Path, key: dict[str, Any]) -> Table | None:
    """Read the table for `key` from a file; None if the file is missing, damaged or for another key."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        table: Table = content["milliseconds"]
        valid = content["key"] == key and all(table[str(length)] and min(table[str(length)].values()) > 0 for length in LENGTHS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return table if valid else None


def _measure(path: Path, key: dict[str, Any], query: Tensor, layout: Layout, num_global: int, usable: list[str]) -> Table:
    """Measure the usable backends at every length and store the table."""
    table: Table = {}
    remaining = list(usable)
    for length in LENGTHS:
        times = {name: _milliseconds(name, length, key, query, layout, num_global) for name in remaining}
        table[str(length)] = times
        # The cost of sparse backends grows linearly, so a much slower one remains slower than a sparse one.
        # It may still become faster than dense attention, whose cost grows quadratically.
        best = min(times.values())
        dense_is_best = min(times, key=times.__getitem__) == "dense"
        remaining = [name for name in remaining if times[name] <= HOPELESS * best or (name != "dense" and dense_is_best)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "milliseconds": table})
    except (OSError, UnwritableFileError) as error:
        warnings.warn(
            f"{path} can't be written ({error}): each process measures the attention backends again; set XDG_CACHE_HOME to another folder",
            stacklevel=2,
        )
    return table


def _milliseconds(name: str, length: int, key: dict[str, Any], like: Tensor, layout: Layout, num_global: int) -> float:
    """Measure a backend: the fastest of three runs on two heads."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(key["gradients"]):
        sizes = (1, length, 2, key["channels"])
        query, keys, value = (torch.randn(sizes, dtype=like.dtype, device=like.device, requires_grad=key["gradients"]) for _ in range(3))
        score = torch.randn(1, length, device=like.device)
        gate = torch.zeros(1, length, device=like.device, requires_grad=key["gradients"])
        times = []
        for _ in range(4):  # the first run includes the set-up
            started = time.perf_counter()
            index = select_globals(score, num_global, causal=layout.causal, chunk=layout.chunk)
            out = BACKENDS[name].run(query, keys, value, gate, index, None, layout)
            if key["gradients"]:
                out.sum().backward()
            if like.device.type == "cuda":
                torch.cuda.synchronize(like.device)
            times.append(time.perf_counter() - started)
    return 1000 * min(times[1:])


def processor() -> str:
    """Name of the processor model, read from /proc/cpuinfo if possible."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine()
    )
