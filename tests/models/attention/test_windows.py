"""The backend `torch`: many blocks, blocks that are parts of a chunk or several chunks, and trained gates
without a mask that needs a gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from balancer.models.attention import windows
from balancer.models.attention.functional import sparse_attention
from balancer.models.attention.layout import Layout


def leaves(n: int, *, batch: int = 2, d: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Query, key, value (B, n, 2, d) and gate (B, n) that ask for gradients, and scores."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(batch, n, 2, d, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    gate = torch.randn(batch, n, generator=generator).requires_grad_()
    return [*made, gate], torch.randn(batch, n, generator=generator)


@settings(max_examples=40)
@given(
    n=st.integers(1, 400),
    window=st.sampled_from([1, 5, 33, 64, 100, 150, 200, 500]),
    part=st.sampled_from([1, 2, 3, 7, 1000]),
    num_global=st.sampled_from([0, 3, 9]),
    causal=st.booleans(),
    mode=st.sampled_from(["sliding", "block"]),
    padded=st.booleans(),
)
def test_equals_the_reference_over_many_blocks(
    n: int, window: int, part: int, num_global: int, causal: bool, mode: str, padded: bool
) -> None:
    chunk = max(1, window // part)
    padding = torch.rand(2, n, generator=torch.Generator().manual_seed(n)) < 0.2 if padded else None
    results = []
    for backend in ("reference", "torch"):
        given_leaves, score = leaves(n)
        out = sparse_attention(
            *given_leaves[:3],
            score,
            window=window,
            chunk=chunk,
            num_global=num_global,
            causal=causal,
            mode=mode,  # type: ignore[arg-type]
            gate=given_leaves[3],
            key_padding_mask=padding,
            backend=backend,
        )
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        results.append([out.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in given_leaves)])
    for expected, own in zip(*results, strict=True):
        assert float((own - expected).abs().max()) <= 5e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("mode", "chunk"), [("sliding", 6), ("sliding", 2), ("block", 6), ("block", 3)])
def test_gradients_by_finite_differences(mode: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "BLOCK", 4)
    (query, key, value, gate), score = leaves(19, batch=1, d=2, dtype=torch.float64)

    def attend(*tensors: Tensor) -> Tensor:
        return sparse_attention(*tensors[:3], score, gate=tensors[3], window=6, chunk=chunk, num_global=3, mode=mode, backend="torch")  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(attend, (query, key, value, gate.detach().double().requires_grad_()), fast_mode=True)


def test_a_trained_gate_and_a_fixed_one_give_the_same() -> None:
    (query, key, value, gate), score = leaves(200)
    trained = sparse_attention(query, key, value, score, gate=gate, window=32, backend="torch")
    fixed = sparse_attention(query, key, value, score, gate=gate.detach(), window=32, backend="torch")
    torch.testing.assert_close(trained, fixed, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("trained", [True, False])
def test_the_fused_kernel_is_kept(trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def spy(*tensors: Tensor, attn_mask: Tensor, **knobs: float) -> Tensor:
        masks.append(attn_mask)
        return fused(*tensors, attn_mask=attn_mask, **knobs)

    monkeypatch.setattr(windows.F, "scaled_dot_product_attention", spy)
    (query, key, value, gate), score = leaves(200)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):  # any other is refused in here
        out = sparse_attention(query, key, value, score, gate=gate if trained else gate.detach(), window=32, backend="torch")
    out.sum().backward()
    assert (gate.grad is not None) == trained
    assert [mask.requires_grad for mask in masks] == [False]
    assert masks[0].shape[1] == 1  # no axis of heads


def test_sequences_done_a_few_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    (query, key, value, gate), score = leaves(150, batch=5)
    padding = torch.arange(150) >= torch.tensor([150, 3, 90, 0, 149])[:, None]
    with torch.no_grad():
        whole = sparse_attention(query, key, value, score, gate=gate, key_padding_mask=padding, window=16, backend="torch")
        for size in (1, 2 * 10 * (64 + 16) * 2 * 8):
            monkeypatch.setattr(windows, "SLAB", size)
            torch.testing.assert_close(
                sparse_attention(query, key, value, score, gate=gate, key_padding_mask=padding, window=16, backend="torch"),
                whole,
                atol=1e-6,
                rtol=1e-5,
            )


@pytest.mark.parametrize(
    "layout", [Layout(64, 64), Layout(64, 10), Layout(1000, 1000), Layout(64, 64, causal=False), Layout(50, 50, mode="block")]
)
def test_what_is_computed_grows_by_length(layout: Layout) -> None:
    def pairs(length: int) -> int:
        cut = windows._cut(layout, length)
        assert cut.blocks * cut.block == length + cut.fill
        return cut.blocks * cut.block * cut.span

    wide = 20 * layout.window
    assert pairs(8 * wide) <= 8.2 * pairs(wide)
    assert pairs(wide) <= wide * 2.1 * max(layout.window, windows.BLOCK)


def test_a_window_beyond_the_sequence_costs_what_the_sequence_does() -> None:
    for mode in ("sliding", "block"):
        cut = windows._cut(Layout(100_000, 100_000, mode=mode), 90)  # type: ignore[arg-type]
        assert cut.blocks * cut.block * cut.span <= 4 * 90 * 90


@pytest.mark.parametrize("off", range(-4, 5))
def test_blocks_that_have_a_neighbour(off: int) -> None:
    into, source = windows._overlap(3, off)
    assert list(zip(range(3)[into], range(3)[source], strict=True)) == [(j, j + off) for j in range(3) if 0 <= j + off < 3]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3), (torch.float64, 1e-12)])
def test_other_dtypes(dtype: torch.dtype, limit: float) -> None:
    (query, key, value, gate), score = leaves(100, dtype=dtype)
    out = sparse_attention(query, key, value, score, gate=gate, window=16, backend="torch")
    expected = sparse_attention(*(x.double() for x in (query, key, value)), score, gate=gate, window=16, backend="reference")
    assert out.dtype == dtype
    assert float((out.double() - expected).detach().abs().max()) < limit
    out.double().square().sum().backward()
    assert query.grad is not None and query.grad.dtype == dtype and query.grad.isfinite().all()


# Torch's tracer makes an instance of an autograd function for itself, and torch warns of instances.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_traced_as_one_graph() -> None:
    (query, key, value, gate), score = leaves(100)

    def attend() -> Tensor:
        return sparse_attention(query, key, value, score, gate=gate, window=16, backend="torch")

    plain = attend()
    traced = torch.compile(attend, backend="aot_eager", fullgraph=True)()
    torch.testing.assert_close(traced, plain)
    wanted = torch.autograd.grad(plain.sum(), [query, key, value, gate])
    for own, other in zip(torch.autograd.grad(traced.sum(), [query, key, value, gate]), wanted, strict=True):
        torch.testing.assert_close(own, other)
