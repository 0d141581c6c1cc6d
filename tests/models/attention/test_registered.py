"""Common checks of every registered attention, and both built-in ones against masked dense attention in
float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from balancer.models import ATTENTIONS, DenseAttention, SequenceBatch, WindowAttention
from balancer.models.checks import check_attention

D, HEADS = 16, 2


@pytest.mark.parametrize("name", sorted(ATTENTIONS))
def test_keeps_what_every_attention_must(name: str) -> None:
    check_attention(ATTENTIONS[name])


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
