"""The running choice of global nodes against sorting each prefix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.models.attention.layout import Layout
from balancer.models.attention.selection import select_globals


@given(
    n=st.integers(1, 70), k=st.integers(0, 12), chunk=st.integers(1, 20), causal=st.booleans(), padded=st.booleans(), seed=st.integers(0, 9)
)
def test_equals_sorting_each_prefix(n: int, k: int, chunk: int, causal: bool, padded: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(2, n, generator=generator).round()  # many ties
    score[torch.rand(2, n, generator=generator) < 0.1] = torch.nan
    score[torch.rand(2, n, generator=generator) < 0.1] = -torch.inf
    score[torch.rand(2, n, generator=generator) < 0.1] = torch.inf
    padding = torch.rand(2, n, generator=generator) < 0.3 if padded else None
    chosen = select_globals(score, k, causal=causal, chunk=chunk, padding=padding)
    chunks = -(-n // chunk) if causal else 1
    assert chosen.shape == (2, chunks, k)
    for b in range(2):
        for j in range(chunks):
            candidates = [
                t
                for t in range(j * chunk if causal else n)
                if not math.isnan(score[b, t]) and score[b, t] != -math.inf and not (padding is not None and padding[b, t])
            ]
            best = sorted(candidates, key=lambda t: (-float(score[b, t]), t))[:k]
            assert chosen[b, j].tolist() == best + [-1] * (k - len(best))


def test_takes_no_part_in_the_gradient() -> None:
    score = torch.randn(1, 20, requires_grad=True)
    assert not select_globals(score, 3, causal=True, chunk=4).requires_grad


def test_windows_are_intervals_of_the_right_size() -> None:
    first, last = Layout(5, 5, causal=False).bounds(20)
    assert ((last - first + 1)[2:-2] == 5).all()
    first, last = Layout(6, 6, causal=False).bounds(20)
    assert ((last - first + 1)[3:-2] == 6).all()
    for layout in (Layout(7, 3), Layout(6, 3, mode="block")):
        first, last = layout.bounds(40)
        assert (last == torch.arange(40)).all()
        # Whatever is not in a window stands before the query's chunk: no blind spot.
        assert (first <= torch.arange(40) // 3 * 3).all()


@pytest.mark.parametrize("chunk", [0, 9])
def test_a_chunk_that_would_leave_a_blind_spot_is_refused(chunk: int) -> None:
    with pytest.raises(InputError, match="chunk"):
        Layout(8, chunk)
