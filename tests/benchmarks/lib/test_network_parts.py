"""Parts and methods that the benchmark of network variants puts in the place of the package's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from balancer.models.checks import check_attention, check_head, example_config
from benchmarks.lib.muon import MuonAndAdamW, orthogonal
from benchmarks.lib.recurrent import RecurrentUnit
from benchmarks.lib.shared_ensemble import MEMBERS, SharedEnsemble


def test_a_recurrent_unit_keeps_what_every_attention_must() -> None:
    check_attention(RecurrentUnit)


def test_an_ensemble_of_heads_keeps_what_every_head_must() -> None:
    check_head(SharedEnsemble)


def test_members_start_different_and_a_margin_moves_all_of_them() -> None:
    torch.manual_seed(0)
    head = SharedEnsemble(example_config())
    logits = torch.log_softmax(torch.randn(3, MEMBERS, 2), -1)
    margin = torch.tensor([0.0, 1.5, -2.0])
    moved = head.add_margin(logits, margin)
    torch.testing.assert_close((moved[..., 1] - moved[..., 0]) - (logits[..., 1] - logits[..., 0]), margin[:, None].expand(-1, MEMBERS))
    assert head.weight.flatten(1).unique(dim=0).shape[0] == MEMBERS


@pytest.mark.parametrize("shape", [(48, 32), (32, 64)])
def test_orthogonal_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    found = torch.linalg.svdvals(orthogonal(matrix))
    assert 0.6 < float(found.min()) <= float(found.max()) < 1.3


def test_muon_lowers_a_loss_and_keeps_the_gradients() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(40, 40), torch.randn(64, 40)
    optimizer = MuonAndAdamW([{"params": list(layer.parameters()), "weight_decay": 0.0}], lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (layer(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert layer.weight.grad is not None
