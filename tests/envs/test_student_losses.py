"""Losses of students: against torch, the derivative against autograd, and errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from balancer.envs.student_losses import Losses, StudentLoss
from balancer.errors import InputError
from balancer.models.heads import MulticlassHead

M, K, B = 3, 4, 50
RNG = np.random.default_rng(0)
PARTS = {
    "class_weight": RNG.uniform(0.1, 3.0, (M, K)),
    "logit_offset": RNG.normal(size=(M, K)),
    "focal_gamma": np.array([0.0, 0.5, 2.0]),
}
EPOCH = RNG.uniform(0.2, 2.0, (M, K)), RNG.normal(size=(M, K))
"""Class weights and offsets of an epoch's draws."""
ROW_WEIGHT = torch.as_tensor(RNG.uniform(0.1, 5.0, (M, B)))
COMBINATIONS = [names for size in range(4) for names in itertools.combinations(PARTS, size)]


def _loss(names: tuple[str, ...], num: int = M) -> StudentLoss:
    return StudentLoss(Losses(**{name: PARTS[name][:num] for name in names}), num, K, dtype=torch.float64)


def _rows(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(1)
    return torch.as_tensor(scale * rng.normal(size=(M, K, B))), torch.as_tensor(rng.integers(0, K, (M, B)))


@pytest.mark.parametrize("compensated", [False, True], ids=["plain", "compensated"])
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("scale", [1.0, 30.0])  # the second: probabilities that round to 0 and 1
def test_derivative_is_autograds(names: tuple[str, ...], scale: float, weighted: bool, compensated: bool) -> None:
    loss, (logits, label) = _loss(names), _rows(scale)
    if compensated:
        loss.compensate(*EPOCH)
    row_weight = ROW_WEIGHT if weighted else None
    before = ROW_WEIGHT.clone()
    leaf = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss.value(leaf, label, row_weight).sum(), leaf)
    found = loss.derivative(logits.clone(), label, row_weight)
    assert torch.equal(ROW_WEIGHT, before)  # given tensors stay as they are
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_value_is_the_formula(names: tuple[str, ...]) -> None:
    logits, label = _rows()
    found = _loss(names).value(logits, label)
    for m in range(M):
        weight, gamma, z = np.ones(K), 0.0, logits[m].numpy()
        if "logit_offset" in names:
            z = z + PARTS["logit_offset"][m, :, None]
        if "class_weight" in names:
            weight = PARTS["class_weight"][m]
        if "focal_gamma" in names:
            gamma = PARTS["focal_gamma"][m]
        y = label[m].numpy()
        q = (np.exp(z) / np.exp(z).sum(axis=0))[y, np.arange(B)]
        expected = (weight[y] * (1 - q) ** gamma * -np.log(q)).sum() / weight[y].sum()
        assert float(found[m]) == pytest.approx(expected, rel=1e-9)


def test_weights_of_rows_and_of_an_epoch_go_beside_those_of_the_losses() -> None:
    """The formula with both, and the epoch's values replaced by the next epoch's."""
    logits, label = _rows()
    loss = _loss(("class_weight", "logit_offset"))
    loss.compensate(2.0 * EPOCH[0], EPOCH[1] + 1.0)
    loss.compensate(*EPOCH)
    found = loss.value(logits, label, ROW_WEIGHT)
    for m in range(M):
        y = label[m].numpy()
        z = logits[m].numpy() + (PARTS["logit_offset"][m] + EPOCH[1][m])[:, None]
        weight = (PARTS["class_weight"][m] * EPOCH[0][m])[y] * ROW_WEIGHT[m].numpy()
        q = (np.exp(z) / np.exp(z).sum(axis=0))[y, np.arange(B)]
        assert float(found[m]) == pytest.approx((weight * -np.log(q)).sum() / weight.sum(), rel=1e-9)


def test_class_weights_are_torchs_and_the_classifiers() -> None:
    logits, label = _rows()
    found = _loss(("class_weight",)).value(logits, label)
    for m in range(M):
        weight = torch.as_tensor(PARTS["class_weight"][m])
        assert float(found[m]) == pytest.approx(float(torch.nn.functional.cross_entropy(logits[m].T, label[m], weight)), rel=1e-9)
        log_probability = torch.log_softmax(logits[m].T, dim=1)
        assert float(found[m]) == pytest.approx(float(MulticlassHead(1, K).loss(log_probability, label[m], weight)), rel=1e-9)


def test_a_batch_without_weight_is_no_nan() -> None:
    loss = StudentLoss(Losses(class_weight=np.array([[0.0, 1.0]])), 1, 2)
    logits, label = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 5, dtype=torch.int64)
    assert float(loss.value(logits, label)[0]) == 0
    assert not loss.derivative(logits, label).any()


def test_float32_stays_finite() -> None:
    losses = Losses(PARTS["class_weight"], PARTS["logit_offset"], PARTS["focal_gamma"])
    logits, label = _rows(80.0)
    found = StudentLoss(losses, M, K).derivative(logits.float(), label)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"class_weight": np.ones(K)}, "class_weight"),
        ({"class_weight": -np.ones((M, K))}, "class_weight"),
        ({"class_weight": np.zeros((M, K))}, "class_weight"),
        ({"logit_offset": np.full((M, K), np.nan)}, "logit_offset"),
        ({"focal_gamma": np.full(M, -1.0)}, "focal_gamma"),
        ({"focal_gamma": np.ones((M, 1))}, "focal_gamma"),
        ({"focal_gamma": np.ones(M + 1)}, "focal_gamma"),
        ({"class_weight": np.ones((M, K + 1))}, "class_weight"),
    ],
)
def test_refuses(changed: dict[str, np.ndarray], named: str) -> None:
    with pytest.raises(InputError, match=named):
        StudentLoss(Losses(**changed), M, K)
