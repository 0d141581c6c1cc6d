"""Checks of every backend that works on this machine: float64, causality, padding, NaN, window borders,
errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from balancer.errors import InputError
from balancer.models.attention.backends import BACKENDS
from balancer.models.attention.functional import sparse_attention
from balancer.models.attention.layout import Layout
from balancer.models.attention.selection import select_globals

PROBE = torch.zeros(1, 4, 1, 16)


def here(name: str) -> object:
    """The backend's name. Skipped with the backend's reason where it can't be used; Triton's interpreter has
    a separate test file."""
    reason = BACKENDS[name].refuses(PROBE, Layout()) or ("on a CPU it is an interpreter" if name == "triton" else None)
    return pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))


NAMES = [here(name) for name in BACKENDS]
OTHERS = [here(name) for name in BACKENDS if name != "reference"]


def inputs(n: int, *, d: int = 16, seed: int = 0, batch: int = 2) -> list[Tensor]:
    """Query, key, value (B, n, 2, d), score and gate (B, n)."""
    generator = torch.Generator().manual_seed(seed)
    three = [torch.randn(batch, n, 2, d, generator=generator) for _ in range(3)]
    return [*three, torch.randn(batch, n, generator=generator), -torch.rand(batch, n, generator=generator)]


@pytest.mark.parametrize("name", OTHERS)
@settings(max_examples=60)
@given(
    n=st.integers(1, 80),
    d=st.sampled_from([7, 16, 32, 64]),
    window=st.integers(1, 33),
    chunk=st.integers(1, 33),
    num_global=st.sampled_from([0, 1, 8, 90]),
    causal=st.booleans(),
    mode=st.sampled_from(["sliding", "block"]),
    padded=st.booleans(),
    gated=st.booleans(),
    seed=st.integers(0, 2),
)
def test_equals_the_float64_reference(
    name: str, n: int, d: int, window: int, chunk: int, num_global: int, causal: bool, mode: str, padded: bool, gated: bool, seed: int
) -> None:
    query, key, value, score, gate = inputs(n, d=d, seed=seed)
    padding = torch.rand(2, n, generator=torch.Generator().manual_seed(seed)) < 0.2 if padded else None
    if padding is not None and seed == 1:
        padding[0] = True
    upstream = torch.randn(query.shape, generator=torch.Generator().manual_seed(5))
    results = []
    for backend, dtype in (("reference", torch.float64), (name, torch.float32)):
        leaves = [x.to(dtype).requires_grad_() for x in (query, key, value, gate)]
        out = sparse_attention(
            *leaves[:3],
            score,
            window=window,
            num_global=num_global,
            causal=causal,
            key_padding_mask=padding,
            mode=mode,  # type: ignore[arg-type]
            chunk=min(chunk, window),
            gate=leaves[3] if gated else None,
            backend=backend,
        )
        out.backward(upstream.to(dtype))
        results.append((out.detach().double(), [torch.zeros_like(x).double() if x.grad is None else x.grad.double() for x in leaves]))
    (expected, slopes), (given_out, given_slopes) = results
    torch.testing.assert_close(given_out, expected, atol=3e-6, rtol=0)
    for own, wanted in zip(given_slopes, slopes, strict=True):
        assert float((own - wanted).abs().max()) <= 5e-6 * max(1.0, float(wanted.abs().max()))


def moved(tensors: list[Tensor], border: int) -> list[Tensor]:
    """The same inputs up to `border`, five standard deviations away after it, also scores and gates."""
    return [torch.cat([x[:, :border], x[:, border:] + 5 * torch.randn(x[:, border:].shape)], 1) for x in tensors]


@pytest.mark.parametrize("mode", ["sliding", "block"])
@pytest.mark.parametrize(("window", "chunk"), [(8, 8), (8, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_no_output_depends_on_what_comes_later(name: str, window: int, chunk: int, mode: str) -> None:
    tensors = inputs(45)
    knobs = {"window": window, "chunk": chunk, "num_global": 3, "mode": mode, "backend": name}

    def attend(query: Tensor, key: Tensor, value: Tensor, score: Tensor, gate: Tensor) -> Tensor:
        return sparse_attention(query, key, value, score, gate=gate, **knobs)  # type: ignore[arg-type]

    before = attend(*tensors)
    for border in (*range(chunk, 45, chunk), 1, 10, 44):
        after = attend(*moved(tensors, border))
        assert torch.equal(after[:, :border], before[:, :border])
        assert not torch.equal(after[:, border], before[:, border])


@pytest.mark.parametrize("name", NAMES)
def test_that_check_catches_a_choice_over_the_whole_sequence(name: str) -> None:
    tensors = inputs(45)
    layout = Layout(8, 8)

    def leaking(query: Tensor, key: Tensor, value: Tensor, score: Tensor, gate: Tensor) -> Tensor:
        chosen = select_globals(score, 6, causal=False, chunk=8).expand(-1, layout.num_chunks(45), -1)
        start = torch.arange(layout.num_chunks(45))[:, None] * 8
        return BACKENDS[name].run(query, key, value, gate, chosen.where(chosen < start, -1), None, layout)

    before = leaking(*tensors)
    assert any(not torch.equal(leaking(*moved(tensors, border))[:, :border], before[:, :border]) for border in range(8, 45, 8))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_padding_changes_nothing(name: str, causal: bool) -> None:
    tensors = inputs(40)
    padding = torch.arange(40) >= torch.tensor([23, 0])[:, None]
    results = []
    for fill in (0.0, 1e6):
        query, key, value, score, gate = (x.masked_fill(padding.view(2, 40, *[1] * (x.ndim - 2)), fill) for x in tensors)
        results.append(
            sparse_attention(query, key, value, score, window=8, causal=causal, gate=gate, key_padding_mask=padding, backend=name)
        )
    assert torch.equal(*results)
    assert results[0].isfinite().all()
    assert not results[0][padding].any()
    alone = sparse_attention(*(x[:1, :23] for x in tensors[:4]), window=8, causal=causal, gate=tensors[4][:1, :23], backend=name)
    torch.testing.assert_close(results[0][:1, :23], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_sequence(name: str) -> None:
    query, key, value, score, _ = inputs(40)
    before = sparse_attention(query, key, value, score, window=8, backend=name)
    for tensor in (query, key, value):
        spoiled = [x.clone() if x is tensor else x for x in (query, key, value)]
        next(x for x, y in zip(spoiled, (query, key, value), strict=True) if y is tensor)[0, 20] = torch.nan
        after = sparse_attention(*spoiled, score, window=8, backend=name)
        assert torch.equal(after[1], before[1])
        assert after[0, 20].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_windows_end_where_they_say(name: str) -> None:
    n, window = 12, 4
    value = torch.eye(n)[None, :, None].clone()  # channel s of an output is the weight on key s
    flat = torch.zeros(1, n, 1, n)
    expected = {
        ("sliding", True): lambda t, s: t - 3 <= s <= t,
        ("sliding", False): lambda t, s: t - 2 <= s <= t + 1,
        ("block", True): lambda t, s: t // 4 * 4 <= s <= t,
        ("block", False): lambda t, s: s // 4 == t // 4,
    }
    for (mode, causal), sees in expected.items():
        weight = sparse_attention(flat, flat, value, window=window, num_global=0, causal=causal, mode=mode, backend=name)[0, :, 0]  # type: ignore[arg-type]
        wanted = torch.tensor([[float(sees(t, s)) for s in range(n)] for t in range(n)])
        torch.testing.assert_close(weight, wanted / wanted.sum(1, keepdim=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_global_node_inside_the_window_counts_once(name: str) -> None:
    n = 16
    value = torch.eye(n)[None, :, None].clone()
    flat, score = torch.zeros(1, n, 1, n), torch.zeros(1, n)
    score[0, 2] = 1.0
    weight = sparse_attention(flat, flat, value, score, window=4, num_global=1, backend=name)[0, :, 0]
    torch.testing.assert_close(weight[5], torch.zeros(n).index_fill(0, torch.arange(2, 6), 0.25))  # 2 stands in its window
    torch.testing.assert_close(weight[6], torch.zeros(n).index_fill(0, torch.tensor([2, 3, 4, 5, 6]), 0.2))


@pytest.mark.parametrize("name", NAMES)
def test_any_strides_and_any_number_of_global_nodes(name: str) -> None:
    query, key, value, score, _ = inputs(30)
    plain = sparse_attention(query, key, value, score, window=8, num_global=50, backend=name)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    torch.testing.assert_close(sparse_attention(*turned, score, window=8, num_global=50, backend=name), plain, atol=1e-6, rtol=1e-5)
    wide = torch.stack([query, query], -1)[..., 0]
    assert wide.stride(-1) == 2
    torch.testing.assert_close(
        sparse_attention(wide, key, value, score, window=8, num_global=50, backend=name), plain, atol=1e-6, rtol=1e-5
    )
    again = sparse_attention(query, key, value, score, window=8, num_global=50, backend=name)
    assert torch.equal(again, plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_by_itself_and_in_a_batch(name: str) -> None:
    tensors = inputs(40, batch=5)
    whole = sparse_attention(*tensors[:4], window=8, gate=tensors[4], backend=name)
    alone = sparse_attention(*(x[3:4] for x in tensors[:4]), window=8, gate=tensors[4][3:4], backend=name)
    torch.testing.assert_close(alone, whole[3:4], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_global_nodes_may_attend_to_everything(name: str) -> None:
    query, key, value, score, _ = inputs(30)
    padding = torch.arange(30) >= torch.tensor([30, 20])[:, None]
    out = sparse_attention(
        query, key, value, score, window=4, num_global=2, causal=False, global_queries=True, key_padding_mask=padding, backend=name
    )
    usual = sparse_attention(query, key, value, score, window=4, num_global=2, causal=False, key_padding_mask=padding, backend=name)
    chosen = select_globals(score, 2, causal=False, chunk=4, padding=padding)[:, 0]
    for b, length in enumerate((30, 20)):
        logits = torch.einsum("ihd,jhd->hij", query[b, chosen[b]], key[b, :length]) * 16**-0.5
        torch.testing.assert_close(out[b, chosen[b]], torch.einsum("hij,jhd->ihd", logits.softmax(-1), value[b, :length]))
        others = torch.ones(30, dtype=torch.bool).index_fill(0, chosen[b], False)
        assert torch.equal(out[b, others], usual[b, others])


def test_refuses_what_does_not_fit() -> None:
    query, key, value, score, _ = inputs(10)
    three = (query, key, value)
    with pytest.raises(InputError, match="window"):
        sparse_attention(*three, score, window=0)
    with pytest.raises(InputError, match="chunk"):
        sparse_attention(*three, score, window=4, chunk=5)
    with pytest.raises(InputError, match="mode"):
        sparse_attention(*three, score, mode="ring")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="num_global"):
        sparse_attention(*three, score, num_global=-1)
    with pytest.raises(InputError, match="score"):
        sparse_attention(*three)
    with pytest.raises(InputError, match=r"score must be \(B, n\)"):
        sparse_attention(*three, score[:, :5])
    with pytest.raises(InputError, match="dtype"):
        sparse_attention(*(x.to(torch.int64) for x in three), score)
    with pytest.raises(InputError, match="dtype"):
        sparse_attention(query, key.double(), value, score)
    with pytest.raises(InputError, match="shape"):
        sparse_attention(query, key[:, :5], value, score)
    with pytest.raises(InputError, match="bool"):
        sparse_attention(*three, score, key_padding_mask=torch.zeros(2, 10))
    with pytest.raises(InputError, match="causal"):
        sparse_attention(*three, score, global_queries=True)
    with pytest.raises(InputError, match="imaginary"):
        sparse_attention(*three, score, backend="imaginary")
    with pytest.raises(InputError, match="cuda"):
        sparse_attention(*three, score, backend="triton")


def test_no_tokens_and_no_sequences() -> None:
    empty = torch.zeros(2, 0, 2, 16)
    assert sparse_attention(empty, empty, empty, torch.zeros(2, 0)).shape == empty.shape
    none = torch.zeros(0, 5, 2, 16)
    assert sparse_attention(none, none, none, torch.zeros(0, 5)).shape == none.shape
