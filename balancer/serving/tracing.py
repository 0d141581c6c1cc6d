"""Spans of a request: where its time goes, for OpenTelemetry.

What is special: nothing of OpenTelemetry is imported and nothing is recorded until `begin` is called, which
`balancer.serving.http.telemetry` does where an endpoint is configured. Spans are recorded when they have
ended, with their times, so that the thread that scores needs no context of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Parent = Any
"""What a span belongs to: a context of OpenTelemetry; None where nothing is recorded."""
Recorder = Callable[[str, Parent, int, int], None]
"""Records a span by its name, its parent, and its begin and end in nanoseconds since 1970."""

PARENTS: ContextVar[Sequence[Parent]] = ContextVar("balancer_parents", default=())
"""The spans of the requests that the running code works for: one, or those of a batch."""
_recorder: Recorder | None = None


def begin(recorder: Recorder | None) -> None:
    """Record spans from now on; None: record none."""
    global _recorder
    _recorder = recorder


def parents() -> Sequence[Parent]:
    """The spans of the running requests; none where nothing is recorded."""
    return () if _recorder is None else PARENTS.get()


def record(name: str, seconds: float, of: Sequence[Parent] | None = None) -> None:
    """Record a span that ends now.

    Args:
        name: Its name.
        seconds: How long it took.
        of: What it belongs to; None: the running requests.
    """
    if _recorder is None:
        return
    end = time.time_ns()
    for parent in PARENTS.get() if of is None else of:
        _recorder(name, parent, end - round(1e9 * seconds), end)


@contextmanager
def working_for(of: Sequence[Parent]) -> Iterator[None]:
    """Let the spans inside belong to these requests."""
    token = PARENTS.set(of)
    try:
        yield
    finally:
        PARENTS.reset(token)
