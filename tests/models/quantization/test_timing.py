"""Times of calls on a machine that other processes use too."""

from __future__ import annotations

import itertools

import pytest

from balancer.models.quantization import sensitivities


def test_calls_are_timed_in_turns_whose_order_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(sensitivities.time, "perf_counter", lambda: float(next(clock)))
    made: list[str] = []
    sensitivities.timed({name: lambda name=name: made.append(name) for name in "ab"}, repeats=2)  # type: ignore[misc]
    assert "".join(made) == "abbaabba"


@pytest.mark.parametrize(("take", "ms"), [({}, 9.0), ({"take": min}, 2.0)])
def test_the_fastest_call_is_that_without_interruptions(monkeypatch: pytest.MonkeyPatch, take: dict[str, object], ms: float) -> None:
    seconds = [1.0, 1.0, 0.009, 0.002, 0.02]  # two warm-up runs, then an interrupted one, one that is not, and one that is
    clock = iter([instant for each in seconds for instant in (0.0, each)])
    monkeypatch.setattr(sensitivities.time, "perf_counter", lambda: next(clock))
    assert sensitivities.timed({"call": lambda: None}, repeats=3, **take)["call"] == pytest.approx(ms)  # type: ignore[arg-type]
