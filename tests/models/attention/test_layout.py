"""Windows and chunks: each window against its definition, no token that no query can see, and errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.models.attention.layout import Layout

MODES = st.sampled_from(["sliding", "block"])


@given(length=st.integers(1, 40), window=st.integers(1, 50), causal=st.booleans(), mode=MODES)
def test_bounds_by_their_definition(length: int, window: int, causal: bool, mode: str) -> None:
    first, last = Layout(window, window, causal, mode).bounds(length)  # type: ignore[arg-type]
    assert first.dtype == last.dtype == torch.int64
    for t in range(length):
        if mode == "block":
            seen = [s for s in range(length) if s // window == t // window]
        elif causal:
            seen = [s for s in range(length) if t - s < window]
        else:
            seen = [s for s in range(length) if -(window // 2) <= s - t < window - window // 2]
        seen = [s for s in seen if s <= t or not causal]
        assert (int(first[t]), int(last[t])) == (min(seen), max(seen))


@given(length=st.integers(1, 40), window=st.integers(1, 20), part=st.integers(1, 20), mode=MODES)
def test_whatever_has_left_a_window_is_a_candidate(length: int, window: int, part: int, mode: str) -> None:
    layout = Layout(window, min(part, window), mode=mode)  # type: ignore[arg-type]
    first, _ = layout.bounds(length)
    at = torch.arange(length)
    if mode == "sliding" or window % layout.chunk == 0:
        assert (first <= at // layout.chunk * layout.chunk).all()
    assert layout.num_chunks(length) == len({t // layout.chunk for t in range(length)})


def test_one_set_for_all_where_nothing_is_causal() -> None:
    assert Layout(8, 2, causal=False).num_chunks(100) == 1


@pytest.mark.parametrize(
    ("given", "word"), [({"window": 0}, "window"), ({"chunk": 0}, "chunk"), ({"chunk": 65}, "chunk"), ({"mode": "ring"}, "mode")]
)
def test_what_is_refused(given: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Layout(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("knobs", "named"), [({"window": 8.5}, "window"), ({"window": 8, "chunk": 4.0}, "chunk")])
def test_parts_of_a_token_are_refused(knobs: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=f"{named} must be a whole number"):
        Layout(**knobs)  # type: ignore[arg-type]
