"""Dropout by 16-bit draws: its rate, its scale, its gradient."""

from __future__ import annotations

import torch

from balancer.models.dropout import Dropout


def test_rate_and_scale() -> None:
    torch.manual_seed(0)
    out = Dropout(0.15)(torch.ones(1_000, 999))
    assert abs(float((out == 0).float().mean()) - 0.15) < 0.001
    assert abs(float(out.mean()) - 1) < 0.002
    # Four draws come from one word: neighbours must not be dropped together.
    dropped = (out == 0).float().flatten() - 0.15
    for lag in (1, 2, 3, 4):
        assert abs(float((dropped[lag:] * dropped[:-lag]).mean())) < 0.001


def test_gradient_is_the_same_mask_and_evaluation_changes_nothing() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 7, requires_grad=True)
    layer = Dropout(0.3)
    out = layer(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())
    assert layer.eval()(x) is x
    assert Dropout(0)(x) is x


def test_repeats_with_the_seed() -> None:
    layer = Dropout(0.5)
    torch.manual_seed(3)
    first = layer(torch.ones(100))
    torch.manual_seed(3)
    assert torch.equal(first, layer(torch.ones(100)))
