"""When a training may stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.sampling.stopping import Stopping


def test_finished_stays_true_when_a_later_epoch_is_better() -> None:
    stopping = Stopping(20, patience=2)
    seen = []
    for figure in (0.5, 0.4, 0.3, 0.9, 0.95):
        stopping.update(figure)
        seen.append(stopping.finished)
    assert seen == [False, False, True, True, True]
    assert (stopping.best_epoch, stopping.improved) == (4, True)  # a loop that goes on may still keep the best
    again = Stopping(20, patience=2)
    again.load_state_dict(stopping.state_dict())
    assert again.finished and again.notes(stopping.state_dict()) == []
    again.load_state_dict(Stopping(20, patience=2).state_dict())
    assert not again.finished


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=12), st.integers(1, 4))
def test_finished_is_the_first_time_that_the_patience_was_used_up(figures: list[float], patience: int) -> None:
    stopping, waited, best, finished = Stopping(10, patience), 0, 0.0, False
    for number, figure in enumerate(figures, 1):
        stopping.update(figure)
        waited, best = (0, figure) if figure > best else (waited + 1, best)
        finished = finished or waited >= patience or number >= 10
        assert stopping.finished == finished


@pytest.mark.parametrize(("state", "expected"), [({}, 0), ({"patience": 3}, 0), ({"patience": 5}, 1)])
def test_another_patience_of_a_state_is_noted(state: dict[str, int], expected: int) -> None:
    notes = Stopping(20, patience=3).notes(state)
    assert len(notes) == expected
    assert all("patience 5" in note and "has 3" in note for note in notes)
