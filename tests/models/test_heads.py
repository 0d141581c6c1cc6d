"""Heads: probabilities, masked and weighted losses against torch's cross-entropy, offsets, first biases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from balancer.models import HEADS, BinaryHead, Head, ModelConfig, MulticlassHead, SequenceBatch
from balancer.sampling.weights import SamplingWeights

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


@pytest.mark.parametrize("name", sorted(HEADS))
def test_weights_of_rows_and_an_offset_are_those_of_cross_entropy(name: str) -> None:
    head = make(name)
    logits = head(batch())
    classes = head.probabilities(logits).shape[1]
    offset, row_weight = torch.linspace(-2, 1.5, classes), torch.linspace(0.2, 3, B)
    adjusted = head.adjusted(logits, offset)
    p = torch.softmax(head.probabilities(logits).log() + offset, 1)
    torch.testing.assert_close(head.probabilities(adjusted), p)
    label = torch.arange(B) % classes
    label[2] = -1
    known = label >= 0
    each = F.cross_entropy(p.log(), label.clamp(min=0), reduction="none")
    for class_weight in (None, torch.linspace(1, 3, classes)):
        weight = row_weight * known * (1.0 if class_weight is None else class_weight[label.clamp(min=0)])
        expected = (weight * each).sum() / weight.sum()
        torch.testing.assert_close(head.loss(adjusted, label, class_weight, row_weight), expected)
        torch.testing.assert_close(torch.stack(list(head.losses(adjusted, label, class_weight, row_weight).values())).sum(), expected)
    torch.testing.assert_close(head.probabilities(head.adjusted(logits, torch.full((classes,), 0.7))), head.probabilities(logits))


def test_a_head_of_version_0_1_without_weights_of_rows_still_works() -> None:
    class Old(BinaryHead):
        def loss(self, logits: torch.Tensor, label: torch.Tensor, class_weight: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
            return super().loss(logits, label, class_weight)

    head = Old(D)
    logits = head(batch())
    torch.testing.assert_close(head.losses(logits, LABEL)["decision"], head.loss(logits, LABEL))


@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_new_head_predicts_a_prior(name: str) -> None:
    head = make(name)
    classes = head.probabilities(head(batch())).shape[1]
    prior = torch.tensor([0.97, 0.03] if classes == 2 else [0.97, 0.02, 0.008, 0.002], dtype=torch.float64)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    head.start_at(prior)
    changed = [key for key, value in head.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["project.bias"]
    with torch.no_grad():
        head.project.weight.zero_()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(head.probabilities(head(batch())).double(), prior.expand(B, -1), rtol=1e-5, atol=1e-7)
    for extreme in ([0.0, 1.0], [1.0, 0.0]):
        head.start_at(torch.tensor(extreme if classes == 2 else [*extreme, 0.0, 0.0]))
        assert head.probabilities(head(batch())).isfinite().all()


@pytest.mark.parametrize("name", sorted(HEADS))
@pytest.mark.parametrize("importance", [0.0, 0.5, 1.0])
def test_a_training_with_other_shares_gives_probabilities_of_the_natural_stream(name: str, importance: float) -> None:
    """Rows drawn evenly by class, with weights and offset: a known posterior comes out."""
    head = make(name)
    classes = head.probabilities(head(batch())).shape[1]
    prior = np.array([0.9, 0.1] if classes == 2 else [0.9, 0.05, 0.03, 0.02])
    drawn = SamplingWeights(np.full(classes, 1 / classes), class_importance=importance)
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(classes, D)) * 0.8

    def rows(label: np.ndarray) -> SequenceBatch:
        values = torch.as_tensor(centre[label] + rng.normal(size=(len(label), D)), dtype=torch.float32)[:, None]
        return SequenceBatch(values, torch.ones(len(label), dtype=torch.int64), torch.ones(len(label), 1, dtype=torch.bool))

    offset = torch.as_tensor(drawn.logit_offset(prior) - np.log(prior), dtype=torch.float32)
    class_weight = torch.as_tensor(drawn.class_weight(prior), dtype=torch.float32)
    head.start_at(torch.as_tensor(prior))
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    label = rng.choice(classes, 20_000)
    given = rows(label)
    for _ in range(400):
        optimizer.zero_grad()
        head.loss(head.adjusted(head(given), offset), torch.as_tensor(label), class_weight).backward()
        optimizer.step()
    later = rng.choice(classes, 20_000, p=prior)
    seen = rows(later)
    p = head.probabilities(head(seen)).detach().numpy()
    x = seen.values[:, 0].numpy()
    density = prior * np.exp(-0.5 * ((x[:, None] - centre) ** 2).sum(axis=2))
    true = density / density.sum(axis=1, keepdims=True)
    rate = np.bincount(later, minlength=classes) / len(later)
    if classes == 2:
        assert np.abs(p - true).mean() < 0.01
    np.testing.assert_allclose(p.mean(axis=0), rate, atol=0.012)
