"""Calls that are timed in turns; the times themselves are not tested."""

from __future__ import annotations

from benchmarks.lib import timing


def test_calls_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    times = timing.interleaved({name: lambda name=name: order.append(name) for name in ("a", "b")}, 0.0, least=2)
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_rounds_fill_the_budget() -> None:
    def half_a_second(call: timing.Call) -> float:
        call()
        return 0.5

    calls = {"a": lambda: None, "b": lambda: None}
    assert len(timing.interleaved(calls, 7.0, clock=half_a_second)["a"]) == 7
    assert len(timing.interleaved(calls, 70.0, clock=half_a_second, repeats=10)["a"]) == 7
    assert len(timing.interleaved({"a": lambda: None}, 1e9, most=9, clock=half_a_second)["a"]) == 9


def test_times_faster_is_the_median_of_the_rounds_own_ratios() -> None:
    # The machine is slowed tenfold in one round: a ratio within the round doesn't see it.
    found = timing.compared({"dense": [4.0, 40.0, 8.0], "x": [1.0, 10.0, 4.0]})
    assert found["times_faster"] == {"x": 4.0}
    assert found["milliseconds"] == {"dense": 8000.0, "x": 4000.0}
    assert "times_faster" not in timing.compared({"x": [1.0]})
