"""Block: pre-norm, padding has no effect, and the last position can be computed alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from balancer.models import Block, DenseAttention, SequenceBatch


def make() -> tuple[Block, SequenceBatch]:
    torch.manual_seed(0)
    block = Block(DenseAttention(16, 2), 16, 0.1).eval()
    given = SequenceBatch.from_windows(torch.randn(5, 7, 16), torch.tensor([0, 1, 3, 6, 7]))
    return block, given.with_values(given.values)


def test_equals_the_formula() -> None:
    block, given = make()
    x = given.values
    hidden = x + block.attention(SequenceBatch(block.attention_norm(x), given.lengths, given.mask)).values
    hidden = hidden + block.ff2(F.gelu(block.ff1(block.ff_norm(hidden))))
    torch.testing.assert_close(block(given).values, hidden * given.mask[..., None])


def test_last_only_equals_the_whole() -> None:
    block, given = make()
    torch.testing.assert_close(block(given, last_only=True).values, block(given).last().values, atol=2e-6, rtol=1e-5)
    assert not block(given).values[0].any()


@pytest.mark.parametrize("last_only", [False, True])
def test_every_linear_is_called_and_may_be_swapped(last_only: bool) -> None:
    """Quantization replaces linear layers by other modules, so a weight that is read without its module would
    not be quantized."""

    class Swapped(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.call = inner.forward
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return self.call(x)

    block, given = make()
    before = block(given, last_only=last_only).values
    swapped = []
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                swapped.append(Swapped(child))
                setattr(parent, name, swapped[-1])
    assert torch.equal(block(given, last_only=last_only).values, before)
    assert [layer.calls for layer in swapped] == [1] * 5
