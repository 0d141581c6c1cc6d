"""The dense warm-up: its target, compared with sums over an explicit (n, n) softmax, and which modules it
changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from balancer.errors import InputError
from balancer.models import Classifier, ModelConfig, SequenceBatch
from balancer.models.attention import (
    DenseAttention,
    Layout,
    SparseAttention,
    SparseSelfAttention,
    WindowAttention,
    distillation_loss,
    warm_up,
)
from balancer.models.attention.core import SparseCore
from balancer.models.attention.distillation import TEMPERATURE, WEIGHT, divergence, far_attention

D, HEADS = 16, 2


def batch(lengths: tuple[int, ...] = (40, 40, 25, 0), seed: int = 0) -> SequenceBatch:
    x = torch.randn(len(lengths), 40, D, generator=torch.Generator().manual_seed(seed))
    return SequenceBatch.from_windows(x, np.array(lengths))


@pytest.mark.parametrize("mode", ["sliding", "block"])
def test_far_attention_is_what_queries_beyond_the_window_give_to_keys_before_theirs(mode: str) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 12, HEADS, 4)
    layout = Layout(8, 8, True, mode)  # type: ignore[arg-type]
    lengths = torch.tensor([12, 10, 8])
    received = sum(far_attention(query, key, layout, lengths) for _ in range(800))  # type: ignore[misc]
    position = torch.arange(12)
    logits = torch.einsum("bihd,bjhd->bhij", query, key) / 2
    dense = logits.masked_fill(position > position[:, None], -torch.inf).softmax(-1).mean(1)
    first, _ = layout.bounds(12)
    dense = dense.masked_fill(position >= first[:, None], 0)
    for row, length in enumerate((12, 10)):
        expected = dense[row, 8:length].mean(0)
        torch.testing.assert_close(received[row] / received[row].sum(), expected / expected.sum(), atol=0.02, rtol=0)
    assert not received[2].any()  # no longer than the window
    assert far_attention(query[:, :8], key[:, :8], layout, None) is None


def test_divergence_is_that_of_the_score_from_what_is_received() -> None:
    torch.manual_seed(0)
    received, score = torch.rand(3, 9).masked_fill(torch.arange(9) > 4, 0), torch.randn(3, 9)
    received[2] = 0
    lengths = torch.tensor([9, 7, 0])
    expected = []
    for row, length in enumerate((9, 7)):
        p, q = (received[row] / received[row].sum())[:length].double(), (TEMPERATURE * score[row, :length].double()).softmax(-1)
        expected.append(sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True) if a > 0))
    leaf = score.requires_grad_()
    found = divergence(received, leaf, lengths)
    assert float(found.detach()) == pytest.approx(np.mean(expected), rel=1e-5)
    found.backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[2].any()
    assert not leaf.grad[1, 7:].any()


@pytest.mark.parametrize("last_only", [False, True])
def test_while_warming_attention_is_dense_and_the_score_alone_learns(last_only: bool) -> None:
    torch.manual_seed(0)
    sparse, dense = SparseAttention(D, HEADS, 8, 2, rotary=True).train(), DenseAttention(D, HEADS, rotary=True)
    dense.load_state_dict(sparse.state_dict(), strict=False)
    warm_up(sparse, True)
    given = batch()
    torch.testing.assert_close(sparse(given, last_only=last_only).values, dense(given, last_only=last_only).values, atol=2e-6, rtol=1e-5)
    distillation_loss(sparse).backward()
    moved = {name for name, weight in sparse.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0}
    assert moved == {"core.score.landmarks.weight", "core.score.landmarks.bias"}
    warm_up(sparse, False)
    assert not torch.allclose(sparse(given).values, dense(given).values, atol=1e-3)


def test_the_loss_is_the_sum_over_all_sparse_parts_of_the_last_pass() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        ("a",), (), (), ([-1.0, 0.0, 1.0],), history_length=40, d_model=D, num_heads=HEADS, attention="sparse", attention_window=8
    )
    model = Classifier(config).train()
    given = SequenceBatch.from_windows(torch.randn(4, 40, 1), np.full(4, 40))
    assert float(distillation_loss(model)) == 0
    warm_up(model, True)
    model(given)
    cores = [module for module in model.modules() if isinstance(module, SparseCore)]
    assert len(cores) == 2
    assert all(core.divergence is not None for core in cores)
    total = sum(float(core.divergence.detach()) for core in cores if core.divergence is not None)
    assert float(distillation_loss(model).detach()) == pytest.approx(WEIGHT * total)
    model(SequenceBatch.from_windows(given.values[:, :8], np.full(4, 8)))  # nothing is far: the loss of the pass before is gone
    assert float(distillation_loss(model)) == 0
    assert float(distillation_loss(nn.Linear(2, 2))) == 0


def test_the_same_seed_samples_the_same_queries() -> None:
    def loss(seed: int) -> float:
        torch.manual_seed(1)
        made = SparseSelfAttention(D, HEADS, window=8, num_global=2).train()
        warm_up(made, True)
        torch.manual_seed(seed)
        made(batch().values)
        return float(distillation_loss(made).detach())

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


def test_no_divergence_is_kept_in_evaluation() -> None:
    made = SparseSelfAttention(D, HEADS, window=8, num_global=2).eval()
    warm_up(made, True)
    made(batch().values)
    assert made.core.divergence is None


def test_windows_and_what_sees_later_tokens_are_left_alone() -> None:
    torch.manual_seed(0)
    given = batch()
    window, both = WindowAttention(D, HEADS, 8), SparseSelfAttention(D, HEADS, window=8, num_global=2, causal=False)
    before = window(given).values, both(given.values)
    for made in (window, both):
        warm_up(made, True)
    assert torch.equal(window(given).values, before[0])
    assert torch.equal(both(given.values), before[1])


def test_a_model_can_be_copied_in_the_middle_of_its_warm_up() -> None:
    made = SparseSelfAttention(D, HEADS, window=8, num_global=2).train()
    warm_up(made, True)
    made(batch().values)
    copied = copy.deepcopy(made)
    assert copied.core.warming
    assert float(distillation_loss(copied)) == 0
    assert float(distillation_loss(made).detach()) > 0


def test_padding_on_the_left_is_refused_while_warming() -> None:
    made, x = SparseSelfAttention(D, HEADS, window=8, num_global=2), batch().values
    left = (torch.arange(40) < 3).expand(4, -1)
    made(x, key_padding_mask=left)
    warm_up(made, True)
    made(x, key_padding_mask=left.flip(1))
    with pytest.raises(InputError, match="key_padding_mask"):
        made(x, key_padding_mask=left)
