"""Heads: probabilities, masked and weighted losses against torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from balancer.models import HEADS, BinaryHead, Head, ModelConfig, MulticlassHead, SequenceBatch

B, N, D = 9, 4, 8
LABEL = torch.tensor([0, 1, -1, 0, 1, 1, 0, -1, 0])


def make(name: str) -> Head:
    torch.manual_seed(0)
    classes = ("no", "yes") if name != "multiclass" else ("no", "x", "y", "z")
    return HEADS[name](ModelConfig(("a",), (), (), ([0, 1],), classes=classes, d_model=D, num_heads=1, head=name))


def batch() -> SequenceBatch:
    torch.manual_seed(1)
    given = SequenceBatch.from_windows(torch.randn(B, N, D), torch.arange(B) % (N + 1))
    return given.with_values(given.values)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_common_contract(name: str) -> None:
    head = make(name)
    logits = head(batch())
    p = head.probabilities(logits)
    assert p.dtype == torch.float32
    assert p.shape[0] == B
    torch.testing.assert_close(p.sum(1), torch.ones(B))
    assert torch.equal(head.loss(logits, torch.full((B,), -1)), torch.zeros(()))
    weight = torch.linspace(1, 3, p.shape[1])
    for given in (None, weight):
        expected = F.cross_entropy(p.log(), LABEL, weight=given, ignore_index=-1)
        torch.testing.assert_close(head.loss(logits, LABEL, given), expected)
    head.loss(logits, torch.full((B,), -1)).backward()
    assert all(not p.grad.any() for p in head.parameters() if p.grad is not None)


def test_last_real_position_decides() -> None:
    head, given = make("binary"), batch()
    changed = given.values.clone()
    changed[:, 0] += 1
    same = head(given.with_values(changed)) == head(given)
    assert same.tolist() == [bool(length != 1) for length in given.lengths]


def test_multiclass_decides_fraud_exactly_as_the_binary_head() -> None:
    binary, multi = BinaryHead(D), MulticlassHead(D, 4)
    with torch.no_grad():
        multi.project.weight[0], multi.project.bias[0] = binary.project.weight[0], binary.project.bias[0]
    torch.testing.assert_close(1 - multi.probabilities(multi(batch()))[:, 0], binary.probabilities(binary(batch()))[:, 1])
    label = torch.tensor([0, 3, -1, 0, 1, 2, 0, -1, 0])
    kinds = F.cross_entropy(multi.project(batch().last().values[:, 0])[:, 1:], (label - 1).clamp(min=0), reduction="none")
    total = binary.loss(binary(batch()), label) + kinds[label > 0].sum() / (label >= 0).sum()
    torch.testing.assert_close(multi.loss(multi(batch()), label), total)


def test_two_classes_are_one_binary_decision() -> None:
    head = MulticlassHead(D, 2)
    p = head.probabilities(head(batch()))
    torch.testing.assert_close(p[:, 1], torch.sigmoid(head.project(batch().last().values[:, 0])[:, 0]))


def test_extreme_logits_stay_finite() -> None:
    head = BinaryHead(D)
    logits = torch.tensor([1e4, -1e4], requires_grad=True)
    assert head.probabilities(logits).tolist() == [[0, 1], [1, 0]]
    loss = head.loss(logits, torch.tensor([0, 1]))
    assert loss.item() == 1e4
    multi = MulticlassHead(D, 3)
    with torch.no_grad():
        multi.project.bias[:] = torch.tensor([1e4, -1e4, 1e4])
    out = multi(batch())
    assert out.isfinite().all()
    assert multi.probabilities(out).isfinite().all()
