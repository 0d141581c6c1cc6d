"""Times and memory on a GPU, whose functions are replaced here, and what becomes of calls that fail."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.lib import gpu_timing
from benchmarks.lib.timing import Call


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A device on which a clock ticks half a second at each event; the names of what was called."""
    called: list[str] = []
    ticks = itertools.count()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = 500.0 * next(ticks)

        def elapsed_time(self, end: Event) -> float:
            return end.time - self.time

    memory = iter([2**20, 2**22, 2**20, 2**22])
    replaced: dict[str, Any] = {
        "synchronize": lambda: called.append("synchronize"),
        "empty_cache": lambda: called.append("empty_cache"),
        "reset_peak_memory_stats": lambda: called.append("reset"),
        "memory_allocated": lambda: next(memory),
        "max_memory_allocated": lambda: next(memory),
        "current_stream": mock.MagicMock(),
        "Stream": mock.MagicMock(),
        "stream": lambda _: nullcontext(),
        "graph": lambda _: nullcontext(),
        "CUDAGraph": lambda: mock.Mock(replay=lambda: called.append("replay")),
        "Event": Event,
    }
    for name, value in replaced.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, value)
    return called


def test_times_are_those_between_two_events(device: list[str]) -> None:
    made: list[str] = []
    assert gpu_timing.event_seconds(lambda: made.append("x"), 5) == 0.1
    assert (len(made), device) == (5, ["synchronize"] * 2)
    found = gpu_timing.times({"dense": lambda: None, "other": lambda: None}, [0.01, 0.001], 0.0, "cuda")
    assert found["milliseconds"] == {"dense": 100.0, "other": 100.0}, "five computations of .01 s take .05 s"
    assert found["times_faster"] == {"other": 1.0}
    assert gpu_timing.times({}, [], 0.0, "cuda") == {}


def test_peak_memory_is_what_a_call_adds(device: list[str]) -> None:
    assert gpu_timing.peak_mib(lambda: None, "cuda") == 3.0
    assert "reset" in device
    assert gpu_timing.peak_mib(lambda: None, "cpu") is None


def test_calls_that_fail_are_left_out(device: list[str]) -> None:
    def no_memory() -> Call:
        raise torch.OutOfMemoryError("CUDA out of memory.\nDetails")

    def fails_when_called() -> Call:
        return lambda: 1 / 0

    found = gpu_timing.ready({"good": lambda: lambda: None, "large": no_memory, "wrong": fails_when_called}, "cuda")
    assert list(found.calls) == list(found.first_seconds) == list(found.warm_seconds) == ["good"]
    assert found.reasons == {"large": "OutOfMemoryError: CUDA out of memory.", "wrong": "ZeroDivisionError: division by zero"}
    assert device.count("empty_cache") == 2


def test_calls_become_graphs(device: list[str]) -> None:
    captured, reasons = gpu_timing.graphs({"good": lambda: None, "waits": lambda: 1 / 0})
    assert list(captured) == ["good"]
    assert reasons == {"waits": "ZeroDivisionError: division by zero"}
    captured["good"]()
    assert device.count("replay") == 2
