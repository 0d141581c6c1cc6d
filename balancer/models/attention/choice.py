"""Which backend `auto` takes: the fastest for the length at hand, by a table measured on this machine at first use and kept.

What is fastest depends on processor, threads and library, and crosses over somewhere between 64 and 1,000 tokens, so it is measured and not guessed. The
table lies in the user's cache folder, so that one machine gives one choice, run after run; close results are decided by a fixed order, so that noise
does not flip them.
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

LENGTHS = (64, 128, 256, 512, 1024, 2048)
"""Tokens at which backends are measured; for longer sequences the last times are carried on."""
ORDER = ("native", "triton", "torch", "dense")
"""Who is taken where times are close, and where nothing can be measured."""
CLOSE = 1.1
"""Times within this factor count as equal."""
HOPELESS = 2.0
"""A backend this much slower than the best is not measured at greater lengths, if it grows no slower than the best."""
VARIABLE = "BALANCER_ATTENTION_BACKEND"
VERSION = 2


@dataclass(frozen=True)
class Choice:
    """What `auto` takes, and why."""

    name: str
    """Name of the backend."""
    reason: str
    """In words."""
    milliseconds: dict[str, dict[str, float]]
    """Measured, by length and backend; empty where nothing was measured."""


def explain_choice(query: Tensor, layout: Layout, *, num_global: int = 8) -> Choice:
    """What `auto` takes for a query (B, n, H, d), and why.

    Raises:
        InputError: The environment names a backend that is unknown or can't work here.
    """
    settled = _settled(query, layout)
    if settled is not None:
        return Choice(*settled, {})
    table = _table(query, layout, num_global)
    at, times = _times(table, query.shape[1])
    told = ", ".join(f"{other} {own:.2f} ms" for other, own in sorted(times.items(), key=lambda pair: pair[1]))
    further = f", carried on to {query.shape[1]}" if query.shape[1] > LENGTHS[-1] else ""
    return Choice(_first(times), f"measured here at {at} tokens{further}: {told}", table)


def choose(query: Tensor, layout: Layout, num_global: int) -> str:
    """The name of the backend that `auto` takes; `explain_choice` without the words, for it is asked at every call."""
    settled = _settled(query, layout)
    return settled[0] if settled is not None else _first(_times(_table(query, layout, num_global), query.shape[1])[1])


def cache_folder() -> Path:
    """Where tables are kept: `$XDG_CACHE_HOME/balancer`, or `~/.cache/balancer`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "balancer"


def _forced(name: str, query: Tensor, layout: Layout) -> str:
    if name not in BACKENDS:
        raise InputError(f"{VARIABLE} names the unknown backend '{name}'; known are {', '.join(BACKENDS)}")
    reason = BACKENDS[name].refuses(query, layout)
    if reason is not None:
        raise UnsupportedError(f"{VARIABLE} names the backend '{name}', which can't be used: {reason}; unset it")
    return name


Table = dict[str, dict[str, float]]
_TABLES: dict[tuple[Any, ...], Table] = {}
_LOCK = threading.Lock()


def _settled(query: Tensor, layout: Layout) -> tuple[str, str] | None:
    """A choice that needs no measurement, and its reason."""
    forced = os.environ.get(VARIABLE)
    if forced:
        return _forced(forced, query, layout), f"{VARIABLE} names it"
    length = query.shape[1]
    if covers(layout, length):
        return "dense", f"{length} tokens fit in a window of {layout.window}: dense attention is the same thing"
    if torch.compiler.is_compiling():
        # What has been measured nowhere is not taken unmeasured.
        name = next(name for name in _able(query, layout) if name != "triton")
        return name, "nothing is measured while torch traces; this is the usual order"
    return None


def _able(query: Tensor, layout: Layout) -> list[str]:
    """Who can be taken, in order."""
    able = [name for name in ORDER if BACKENDS[name].refuses(query, layout) is None]
    return [name for name in able if not (name == "triton" and query.device.type == "cpu")]  # there it is an interpreter


def _times(table: Table, length: int) -> tuple[int, dict[str, float]]:
    """The measured length that is nearest in proportion, and the times there; beyond the last one, dense attention grows by the square."""
    at = min(LENGTHS, key=lambda known: abs(math.log(known / length)))
    further = max(1.0, length / LENGTHS[-1])
    return at, {name: own * (further**2 if name == "dense" else further) for name, own in table[str(at)].items()}


def _first(times: dict[str, float]) -> str:
    best = min(times.values())
    return next(name for name in ORDER if times.get(name, math.inf) <= CLOSE * best)


def _table(query: Tensor, layout: Layout, num_global: int) -> Table:
    """Milliseconds by length and backend, from memory, from the cache file, or measured now."""
    able = _able(query, layout)
    channels = next((size for size in (16, 32, 64, 128) if query.shape[-1] <= size), query.shape[-1])
    gradients = torch.is_grad_enabled() and query.requires_grad
    quick = (query.device, query.dtype, channels, gradients, layout, num_global, torch.get_num_threads(), *able)
    with _LOCK:  # threads that measured at the same time would slow one another, and could settle on different ones
        if quick not in _TABLES:
            key: dict[str, Any] = {
                "version": VERSION,
                "balancer": __version__,
                "processor": processor(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "device": torch.cuda.get_device_name(query.device) if query.device.type == "cuda" else query.device.type,
                "dtype": str(query.dtype),
                "channels": channels,
                "backends": able,
                "layout": [layout.window, layout.chunk, layout.causal, layout.mode, num_global],
                "gradients": gradients,
            }
            digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
            path = cache_folder() / f"attention-{digest}.json"
            _TABLES[quick] = _read(path, key) or _measured(path, key, query, layout, num_global, able)
        return _TABLES[quick]


def _read(path: Path, key: dict[str, Any]) -> Table | None:
    """What the file holds for `key`; None where it is absent, damaged or another's: then it is measured anew."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        table: Table = content["milliseconds"]
        fine = content["key"] == key and all(table[str(length)] and min(table[str(length)].values()) > 0 for length in LENGTHS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return table if fine else None


def _measured(path: Path, key: dict[str, Any], query: Tensor, layout: Layout, num_global: int, able: list[str]) -> Table:
    table: Table = {}
    left = list(able)
    for length in LENGTHS:
        times = {name: _milliseconds(name, length, key, query, layout, num_global) for name in left}
        table[str(length)] = times
        # From dense downwards costs grow linearly, so who is far behind stays behind; sparse ones may yet overtake dense.
        best = min(times.values())
        left = [
            name for name in left if times[name] <= HOPELESS * best or (name != "dense" and min(times, key=times.__getitem__) == "dense")
        ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"key": key, "milliseconds": table})
    except (OSError, UnwritableFileError) as error:
        warnings.warn(
            f"{path} can't be written ({error}): each process measures the attention backends again; let XDG_CACHE_HOME name another folder",
            stacklevel=2,
        )
    return table


def _milliseconds(name: str, length: int, key: dict[str, Any], like: Tensor, layout: Layout, num_global: int) -> float:
    """Fastest of three runs on two heads."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(key["gradients"]):
        sizes = (1, length, 2, key["channels"])
        query, keys, value = (torch.randn(sizes, dtype=like.dtype, device=like.device, requires_grad=key["gradients"]) for _ in range(3))
        score = torch.randn(1, length, device=like.device)
        gate = torch.zeros(1, length, device=like.device, requires_grad=key["gradients"])
        times = []
        for _ in range(4):  # the first pays for set-up
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
    """The processor's model, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine()
    )
