"""One token at a time against one pass: every position, both modes, equal scores, rows at different
positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from balancer.models import SequenceBatch
from balancer.models.attention import SCORES, Layout, SparseAttention, SparseSelfAttention, WindowAttention
from balancer.models.attention.reference import run
from balancer.models.attention.selection import select_globals
from balancer.models.attention.streaming import Nodes, StreamState, empty_state, stream

D, HEADS = 16, 2


def rows_of(state: StreamState, rows: Tensor) -> StreamState:
    def taken(nodes: Nodes) -> Nodes:
        return Nodes(*(each[rows] for each in nodes))

    return StreamState(state.position[rows], state.key[rows], state.value[rows], taken(state.nodes), taken(state.candidates))


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(1, 60),
    window=st.integers(1, 20),
    chunk=st.integers(1, 20),
    num_global=st.integers(0, 6),
    mode=st.sampled_from(["sliding", "block"]),
    levels=st.integers(1, 8),
    gated=st.booleans(),
    seed=st.integers(0, 9),
)
def test_equals_the_reference_whatever_the_windows(
    length: int, window: int, chunk: int, num_global: int, mode: str, levels: int, gated: bool, seed: int
) -> None:
    layout = Layout(window, min(chunk, window), True, mode)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 2, length, HEADS, 4, generator=rng, dtype=torch.float64)
    score = torch.randint(levels, (2, length), generator=rng).float()  # few levels: many are equal
    score[torch.rand(2, length, generator=rng) < 0.1] = torch.nan  # never chosen
    gate = -torch.rand(2, length, generator=rng) if gated else None
    index = select_globals(score, num_global, causal=True, chunk=layout.chunk)
    whole = run(query, key, value, gate, index, None, layout)
    state = empty_state(2, layout, num_global, key[0, 0])
    for t in range(length):
        own = None if gate is None else gate[:, t]
        out, state = stream(query[:, t], key[:, t], value[:, t], score[:, t], own, state, layout)
        torch.testing.assert_close(out, whole[:, t], atol=1e-6, rtol=1e-6)  # the gate is float32


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("mode", "window", "chunk"), [("sliding", 31, 13), ("block", 24, 24)])
def test_a_thousand_tokens(mode: str, window: int, chunk: int, rotary: bool) -> None:
    torch.manual_seed(0)
    made = SparseSelfAttention(D, HEADS, window=window, num_global=4, chunk=chunk, mode=mode, rotary=rotary).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 1000, D)
    x[:, 100:900:7] = x[:, 50:51]
    with torch.no_grad():
        whole, state = made(x), made.init_state(2)
        for t in range(1000):
            out, state = made.step(x[:, t], state)
            torch.testing.assert_close(out, whole[:, t], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("score", sorted(SCORES))
def test_tokens_that_come_again_and_again(score: str) -> None:
    # Few kinds of tokens: nearly every choice is among equals, and which of them is taken shows, because
    # positions turn the keys.
    for seed in range(4):
        torch.manual_seed(seed)
        made = SparseAttention(32, HEADS, 16, 4, rotary=True, score=score).eval()
        x = torch.randn(5, 32)[torch.randint(5, (2, 130))]
        with torch.no_grad():
            whole, state = made(SequenceBatch.from_windows(x, np.full(2, 130))).values, made.init_state(2)
            for t in range(130):
                out, state = made.step(x[:, t], state)
                torch.testing.assert_close(out, whole[:, t], atol=1e-5, rtol=1e-5)


def test_windows_stream_too() -> None:
    torch.manual_seed(0)
    made, x = WindowAttention(D, HEADS, 7, rotary=True).eval(), torch.randn(2, 40, D)
    with torch.no_grad():
        whole, state = made(SequenceBatch.from_windows(x, np.full(2, 40))).values, made.init_state(2)
        for t in range(40):
            out, state = made.step(x[:, t], state)
            torch.testing.assert_close(out, whole[:, t], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_several_streams_may_stand_in_one_batch() -> None:
    torch.manual_seed(0)
    made, x = SparseSelfAttention(D, HEADS, window=8, num_global=3, chunk=5, rotary=True).eval(), torch.randn(4, 60, D)
    whole, state = made(x), made.init_state(4)
    rng, read = np.random.default_rng(0), np.zeros(4, dtype=np.int64)
    states = [rows_of(state, torch.tensor([row])) for row in range(4)]
    while read.min() < 60:
        rows = [row for row in range(4) if read[row] < 60 and rng.random() < 0.6]
        if not rows:
            continue
        given_state = StreamState(
            *(torch.cat([getattr(states[row], name) for row in rows]) for name in ("position", "key", "value")),
            *(
                Nodes(*(torch.cat(each) for each in zip(*(getattr(states[row], name) for row in rows), strict=True)))
                for name in ("nodes", "candidates")
            ),
        )
        out, after = made.step(torch.stack([x[row, read[row]] for row in rows]), given_state)
        for place, row in enumerate(rows):
            torch.testing.assert_close(out[place], whole[row, read[row]], atol=1e-5, rtol=1e-5)
            states[row] = rows_of(after, torch.tensor([place]))
            read[row] += 1


@torch.no_grad()
def test_the_given_state_is_left_as_it_was_and_its_size_stays() -> None:
    torch.manual_seed(0)
    made = SparseSelfAttention(D, HEADS, window=6, num_global=2).eval()
    state = made.init_state(3)
    shapes = [each.shape for each in torch.utils._pytree.tree_leaves(state)]
    for _ in range(20):
        kept = [each.clone() for each in torch.utils._pytree.tree_leaves(state)]
        _, after = made.step(torch.randn(3, D), state)
        assert all(torch.equal(a, b) for a, b in zip(kept, torch.utils._pytree.tree_leaves(state), strict=True))
        assert [each.shape for each in torch.utils._pytree.tree_leaves(after)] == shapes
        state = after


@torch.no_grad()
def test_streams_under_autocast() -> None:
    torch.manual_seed(0)
    made, x = SparseSelfAttention(D, HEADS, window=6, num_global=2).eval(), torch.randn(2, 20, D)
    whole, state = made(x), made.init_state(2)
    for t in range(20):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, state = made.step(x[:, t], state)
        torch.testing.assert_close(out.float(), whole[:, t], atol=3e-2, rtol=3e-2)
