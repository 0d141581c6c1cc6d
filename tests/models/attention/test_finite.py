"""NaN and infinity reach only the queries that see them: every backend, layout and instruction set, forward
and backward; streaming, modules and the classifier."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from balancer.models import ATTENTIONS, Classifier, SequenceBatch
from balancer.models.attention import (
    DenseAttention,
    Layout,
    SparseAttention,
    SparseSelfAttention,
    finite,
    native,
    select_globals,
    sparse_attention,
)
from balancer.models.attention.backends import BACKENDS
from balancer.models.attention.finite import dense_causal
from balancer.models.attention.reference import key_bias
from balancer.models.attention.scores import Surprisal
from balancer.models.checks import example_config

PROBE = torch.zeros(1, 4, 1, 16)
BEST = native.instruction_set()
NAMES = [name for name in BACKENDS if name != "native" and name != "triton" and BACKENDS[name].refuses(PROBE, Layout()) is None]
NAMES += [] if BEST is None else [f"native {version}" for version in range(BEST + 1)]
"""Backends that work here, the native one with each of its instruction sets."""


def backend_of(name: str, patch: pytest.MonkeyPatch) -> str:
    backend, *version = name.split()
    if version:
        patch.setattr(native, "instruction_set", lambda: int(version[0]))
    return backend


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(
    n=st.integers(1, 90),
    window=st.integers(1, 33),
    chunk=st.integers(1, 33),
    num_global=st.sampled_from([0, 1, 8]),
    causal=st.booleans(),
    mode=st.sampled_from(["sliding", "block"]),
    padded=st.booleans(),
    gated=st.booleans(),
    place=st.sampled_from(["query", "key", "value", "gate"]),
    number=st.sampled_from([math.nan, math.inf, -math.inf]),
    seed=st.integers(0, 1000),
)
def test_only_queries_that_see_it_are_nan(
    name: str,
    n: int,
    window: int,
    chunk: int,
    num_global: int,
    causal: bool,
    mode: Any,
    padded: bool,
    gated: bool,
    place: str,
    number: float,
    seed: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        backend = backend_of(name, patch)
        draw = torch.Generator().manual_seed(seed)
        layout = Layout(window, min(chunk, window), causal, mode)
        tensors = {part: torch.randn(2, n, 3, 16, generator=draw) for part in ("query", "key", "value")}
        if gated or place == "gate":
            tensors["gate"] = torch.randn(2, n, generator=draw)
        score, upstream = torch.randn(2, n, generator=draw), torch.randn(2, n, 3, 16, generator=draw)
        padding = torch.rand(2, n, generator=draw) < 0.2 if padded else None
        at = int(torch.randint(n, (), generator=draw))
        index = select_globals(score, num_global, causal=causal, chunk=layout.chunk, padding=padding)

        def computed(given: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            leaves = {part: x.clone().requires_grad_() for part, x in given.items()}
            three = [leaves[part] for part in ("query", "key", "value")]
            return BACKENDS[backend].run(*three, leaves.get("gate"), index, padding, layout), leaves

        before, clean = computed(tensors)
        spoiled = {part: x.clone() for part, x in tensors.items()}
        spoiled[place][(0, at) if place == "gate" else (0, at, 1, 3)] = number
        after, leaves = computed(spoiled)

        sees = key_bias(None, index, padding, layout, n) > -torch.inf
        local = key_bias(None, index[..., :0], padding, layout, n) > -torch.inf
        bad = torch.zeros(2, n, 3, dtype=torch.bool)
        if place == "query":
            bad[0, at, 1] = True
        elif place == "gate":
            bad[0] = ((sees & ~local)[0, :, at] & (number != -math.inf))[:, None]
        else:
            bad[0, :, 1] = sees[0, :, at]
        if padding is not None:
            bad &= ~padding[..., None]
        assert torch.equal(after.isnan(), bad[..., None].expand_as(after))
        if place != "gate" or number != -math.inf:  # a gate of -inf excludes a key
            assert torch.equal(after[~bad], before[~bad])

            def slopes(out: Tensor, given: dict[str, Tensor]) -> list[Tensor | None]:
                return list(torch.autograd.grad((out * upstream)[~bad].sum(), list(given.values()), allow_unused=True))

            if not bad.all():
                for own, wanted in zip(slopes(after, leaves), slopes(before, clean), strict=True):
                    assert (own is None) == (wanted is None)
                    if own is not None and wanted is not None:
                        torch.testing.assert_close(own, wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_dense_causal_attention(number: float) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 40, 3, 16, generator=draw) for _ in range(3)]
    before = dense_causal(*tensors)
    for part in range(3):
        leaves = [x.clone().requires_grad_() for x in tensors]
        with torch.no_grad():
            leaves[part][0, 20, 1, 2] = number
        after = dense_causal(*leaves)
        bad = torch.zeros_like(before, dtype=torch.bool)
        bad[0, 20 : 21 if part == 0 else None, 1] = True
        assert torch.equal(after.isnan(), bad)
        torch.testing.assert_close(after[~bad], before[~bad])
        for slope in torch.autograd.grad(after[~bad].sum(), leaves):
            assert slope.isfinite().all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["auto", "torch", "native", "dense", "reference"])
def test_padding_of_a_module(backend: str, causal: bool) -> None:
    torch.manual_seed(0)
    if backend == "native" and native.absence() is not None:
        pytest.skip(str(native.absence()))
    module = SparseSelfAttention(16, 2, window=8, num_global=2, causal=causal, backend="torch" if backend == "auto" else backend)
    x, padding = torch.randn(2, 40, 16), torch.arange(40) >= torch.tensor([[23], [40]])
    results = []
    for filled in (0.0, math.nan, math.inf):
        leaf = x.masked_fill(padding[..., None], filled).requires_grad_()
        out = module(leaf, key_padding_mask=padding)
        results.append([out[~padding], *torch.autograd.grad(out[~padding].square().sum(), [leaf, *module.parameters()], allow_unused=True)])
    for other in results[1:]:
        for own, wanted in zip(other, results[0], strict=True):
            torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-5)


def test_global_queries_do_not_see_padding() -> None:
    query, key, value = torch.randn(3, 1, 20, 2, 8, generator=torch.Generator().manual_seed(0))
    padding = torch.arange(20)[None] >= 15
    results = [
        sparse_attention(
            *(x.masked_fill(padding[..., None, None], filled) for x in (query, key, value)),
            torch.arange(20.0)[None],
            window=4,
            num_global=3,
            causal=False,
            global_queries=True,
            key_padding_mask=padding,
            backend="torch",
        )
        for filled in (0.0, math.nan)
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("mode", ["sliding", "block"])
def test_a_stream_forgets_what_left_its_window(mode: Any) -> None:
    torch.manual_seed(0)
    module = SparseSelfAttention(16, 2, window=4, num_global=2, mode=mode, backend="reference").eval()
    x = torch.randn(2, 24, 16)
    x[0, 2] = torch.nan
    with torch.no_grad():
        whole = module(x)
        state, steps = module.init_state(2), []
        for t in range(24):
            out, state = module.step(x[:, t], state)
            steps.append(out)
    torch.testing.assert_close(torch.stack(steps, 1), whole, equal_nan=True)
    assert whole[0, :2].isfinite().all() and whole[0, 2].isnan().all() and whole[0, 6:].isfinite().all()


def test_averages_of_a_score_ignore_it() -> None:
    score = Surprisal(4)
    x = torch.randn(2, 10, 4)
    x[0, 3] = torch.nan
    score(x)
    assert score.mean.isfinite().all() and score.variance.isfinite().all()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", sorted(ATTENTIONS))
def test_attentions_of_the_classifier(name: str, number: float) -> None:
    torch.manual_seed(0)
    attention = ATTENTIONS[name](example_config()).eval()
    assert isinstance(attention, (DenseAttention, SparseAttention))
    values = torch.randn(2, 23, 16)
    batch = SequenceBatch.from_windows(values, np.array([23, 15]))
    before, before_last = attention(batch).values, attention(batch, last_only=True).values
    spoiled = values.clone()
    spoiled[0, 12], spoiled[1, 15:] = number, number
    leaf = spoiled.requires_grad_()
    dirty = SequenceBatch(leaf, batch.lengths, batch.mask)
    after = attention(dirty).values
    assert torch.equal(after[0, :12], before[0, :12]) and torch.equal(after[1], before[1])
    assert after[0, 12].isnan().all()
    (slope,) = torch.autograd.grad(after[0, :12].sum() + after[1].sum(), leaf)
    assert slope.isfinite().all()
    torch.testing.assert_close(attention(dirty, last_only=True).values[1], before_last[1])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", ["rows", "histories"])
@pytest.mark.parametrize("encoding", ["piecewise", "periodic"])
@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_scores_of_earlier_transactions(attention: str, encoding: str, form: str, number: float) -> None:
    torch.manual_seed(0)
    config = example_config(attention=attention, numeric_encoding=encoding, form=form, num_layers=2)
    model = Classifier(config).eval()
    fields = torch.randn(2, 23, 3)
    fields[..., 2] = 1.0
    lengths = torch.tensor([23, 9])
    mask = torch.arange(23) < lengths[:, None]
    spoiled = fields.clone()
    spoiled[1, 9:] = number
    if form == "rows":
        before, after = (model(SequenceBatch(x, lengths, mask)) for x in (fields, spoiled))
        assert torch.equal(after[1], before[1])
        return
    spoiled[0, 12] = number
    rows, positions = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 11, 0, 8])
    before, after = (model(SequenceBatch(x, lengths, mask), (rows, positions)) for x in (fields, spoiled))
    assert torch.equal(after, before)
    assert model(SequenceBatch(spoiled, lengths, mask)).isfinite().all()  # a number that is not finite is a missing or an extreme one


@pytest.mark.parametrize("length", [finite.LONG - 1, finite.LONG, finite.LONG + 1, 515])
def test_long_dense_attention_is_causal_and_exact(length: int) -> None:
    torch.manual_seed(length)
    tensors = [torch.randn(2, length, 3, 16, requires_grad=True) for _ in range(3)]
    truth = [x.detach().double().requires_grad_() for x in tensors]
    out = dense_causal(*tensors)
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in truth), is_causal=True).transpose(1, 2)
    assert (out - expected).abs().max() < 3e-6
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad.double())
    for x, y in zip(tensors, truth, strict=True):
        assert x.grad is not None and y.grad is not None
        assert (x.grad - y.grad).abs().max() < 5e-6 * y.grad.abs().max()
    with torch.no_grad():
        changed = [torch.cat([x[:, : length // 2], torch.randn_like(x[:, length // 2 :])], 1) for x in tensors]
        assert torch.equal(dense_causal(*changed)[:, : length // 2], out[:, : length // 2])
        alone = dense_causal(*(x[:1] for x in tensors))
        assert torch.equal(alone, out[:1]), "a row does not depend on its batch"
