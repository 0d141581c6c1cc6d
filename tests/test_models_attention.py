"""Common checks over every registered attention, and both of ours against masked dense attention in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from balancer.models import ATTENTIONS, Attention, DenseAttention, ModelConfig, SequenceBatch, WindowAttention

D, HEADS, N = 16, 2, 23
LENGTHS = np.array([0, 1, 4, 5, 6, 17, 22, 23])
NAMES = sorted(ATTENTIONS)


def make(name: str) -> Attention:
    torch.manual_seed(0)
    return ATTENTIONS[name](ModelConfig(("a",), (), (), ([0, 1],), history=N, d_model=D, num_heads=HEADS, window=5)).eval()


def batch(seed: int = 0) -> SequenceBatch:
    values = np.random.default_rng(seed).normal(size=(len(LENGTHS), N, D)).astype(np.float32)
    return SequenceBatch.from_windows(values, LENGTHS)


@pytest.mark.parametrize("name", NAMES)
def test_no_position_depends_on_a_later_one(name: str) -> None:
    attention, given = make(name), batch()
    full = SequenceBatch.from_windows(given.values, np.full(len(LENGTHS), N))
    before = attention(full).values
    for position in range(1, N):
        moved = full.values.clone()
        moved[:, position:] += 5 * torch.randn(moved[:, position:].shape)
        after = attention(full.with_values(moved)).values
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.equal(after[:, position], before[:, position])


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing_and_gives_zeros(name: str, last_only: bool) -> None:
    attention, given = make(name), batch()
    clean = attention(given, last_only=last_only)
    dirty = SequenceBatch(given.values.masked_fill(~given.mask[..., None], 1e6), given.lengths, given.mask)
    assert torch.equal(attention(dirty, last_only=last_only).values, clean.values)
    assert clean.values.isfinite().all()
    assert not clean.values[~clean.mask].any()
    assert not clean.values[0].any()


@pytest.mark.parametrize("name", NAMES)
def test_last_only_is_the_whole_computation_at_the_last_position(name: str) -> None:
    attention, given = make(name), batch()
    last = attention(given, last_only=True)
    whole = attention(given).last()
    assert last.values.shape == (len(LENGTHS), 1, D)
    assert torch.equal(last.mask, whole.mask)
    torch.testing.assert_close(last.values, whole.values, atol=2e-6, rtol=1e-5)


def masked_reference(attention: DenseAttention, values: Tensor, window: int) -> Tensor:
    """Softmax over an explicit (n, n) mask; float64 throughout."""
    query = attention.query(values).unflatten(-1, (HEADS, -1))
    key, value = (part.unflatten(-1, (HEADS, -1)) for part in attention.key_value(values).chunk(2, -1))
    logits = torch.einsum("bihd,bjhd->bhij", query, key) / (D / HEADS) ** 0.5
    distance = torch.arange(values.shape[1])[:, None] - torch.arange(values.shape[1])
    logits = logits.masked_fill(~((distance >= 0) & (distance < window)), -torch.inf)
    out: Tensor = attention.out(torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), value).flatten(2))
    return out


@pytest.mark.parametrize("length", [1, 4, 5, 6, 10, 11, 23])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 22, 23, 64])
def test_equals_masked_dense_attention_in_float64(window: int | None, length: int) -> None:
    torch.manual_seed(0)
    attention = DenseAttention(D, HEADS) if window is None else WindowAttention(D, HEADS, window)
    values = torch.randn(3, length, D)
    given = SequenceBatch.from_windows(values, np.full(3, length))
    leaf = values.clone().requires_grad_()
    out = attention(given.with_values(leaf)).values
    upstream = torch.randn_like(out)
    out.backward(upstream)

    exact_leaf = values.double().requires_grad_()
    expected = masked_reference(attention.double(), exact_leaf, window or length)
    expected.backward(upstream.double())
    torch.testing.assert_close(out.double(), expected, atol=3e-6, rtol=1e-5)
    assert leaf.grad is not None
    assert exact_leaf.grad is not None
    torch.testing.assert_close(leaf.grad.double(), exact_leaf.grad, atol=3e-6, rtol=1e-5)
    last = attention.float()(given, last_only=True).values[:, 0]
    torch.testing.assert_close(last.double(), expected[:, -1], atol=3e-6, rtol=1e-5)
