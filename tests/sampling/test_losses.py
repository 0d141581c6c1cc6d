"""The sampler's loss against plain arithmetic and torch's cross-entropy; calibration of a trained model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from balancer.errors import InputError
from balancer.sampling.losses import AdaptiveLoss, compensated_loss
from balancer.sampling.torch_sampler import AdaptiveBatchSampler, AdaptiveSampler
from balancer.sampling.weights import SamplingWeights

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def _sampler(labels: Any, share: list[float], importance: float = 0.5, **options: Any) -> AdaptiveSampler:
    policy = SamplingWeights(np.array(share), class_importance=importance)
    return AdaptiveSampler(labels, policy=policy, **({"epochs": 2} | options))  # type: ignore[arg-type]


BINARY = [0] * 90 + [1] * 10
THREE = ["c"] * 20 + ["a"] * 200 + ["b"] * 80


def _tensors(sampler: AdaptiveSampler, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.tensor(sampler.class_weight, dtype=dtype), torch.tensor(sampler.logit_offset, dtype=dtype)


@REDUCTIONS
@pytest.mark.parametrize("importance", [0.0, 0.5, 1.0])
def test_equals_the_weighted_cross_entropy_of_torch(reduction: str, importance: float) -> None:
    sampler = _sampler(THREE, [0.4, 0.3, 0.3], importance)
    weight, offset = _tensors(sampler)
    torch.manual_seed(0)
    logits, target = torch.randn(20, 3), torch.randint(3, (20,))
    expected = F.cross_entropy(logits + offset, target, weight=weight, reduction=reduction)
    torch.testing.assert_close(sampler.loss(logits, target, reduction=reduction), expected)
    named = np.array(sampler.classes_)[target.numpy()]
    for form in (target[:, None], target.int(), target.float(), target.tolist(), named, named.tolist(), list(target)):
        torch.testing.assert_close(sampler.loss(logits, form, reduction=reduction), expected)


@REDUCTIONS
def test_one_logit_equals_the_binary_cross_entropy_of_torch(reduction: str) -> None:
    sampler = _sampler(BINARY, [0.7, 0.3])
    weight, offset = _tensors(sampler)
    torch.manual_seed(0)
    logits, target = torch.randn(20), torch.randint(2, (20,))
    expected = F.binary_cross_entropy_with_logits(
        logits + offset[1] - offset[0], target.float(), weight=weight[target], reduction=reduction
    )
    if reduction == "mean":
        expected = expected * 20 / weight[target].sum()  # torch divides by the number of rows
    two = torch.stack([torch.zeros(20), logits], dim=1)
    for form, goal in ((logits, target), (logits[:, None], target.float()[:, None]), (two, target.bool()), (logits, target.tolist())):
        torch.testing.assert_close(sampler.loss(form, goal, reduction=reduction), expected)


@REDUCTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_without_compensation_it_is_that_of_torch(reduction: str, smoothing: float) -> None:
    """Drawn as they come and counted alike: nothing is left but the offset, the log prior."""
    sampler = _sampler([0, 1, 2] * 30, [1 / 3] * 3, 0.0)
    torch.manual_seed(0)
    logits, target, soft = torch.randn(20, 3), torch.randint(3, (20,)), torch.rand(20, 3)
    soft /= soft.sum(dim=1, keepdim=True)
    for goal in (target, soft):
        expected = F.cross_entropy(logits, goal, reduction=reduction, label_smoothing=smoothing)
        torch.testing.assert_close(sampler.loss(logits, goal, reduction=reduction, label_smoothing=smoothing), expected)


def test_a_smoothed_target_counts_as_its_row() -> None:
    sampler = _sampler(THREE, [0.4, 0.3, 0.3])
    weight, offset = _tensors(sampler)
    logits, target = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
    each = F.cross_entropy(logits + offset, target, label_smoothing=0.2, reduction="none") * weight[target]
    torch.testing.assert_close(sampler.loss(logits, target, label_smoothing=0.2, reduction="none"), each)
    torch.testing.assert_close(sampler.loss(logits, target, label_smoothing=0.2), each.sum() / weight[target].sum())


@REDUCTIONS
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixed_rows_count_as_the_rows_that_were_mixed(reduction: str, smoothing: float) -> None:
    sampler = _sampler(THREE, [0.4, 0.3, 0.3])
    generator = torch.Generator().manual_seed(0)
    logits, one, other = torch.randn(20, 3, generator=generator), torch.arange(20) % 3, torch.randint(3, (20,), generator=generator)
    part = torch.rand(20, generator=generator)
    soft = F.one_hot(one, 3) * part[:, None] + F.one_hot(other, 3) * (1 - part)[:, None]

    def loss(target: Tensor, how: str = "none") -> Tensor:
        return sampler.loss(logits, target, reduction=how, label_smoothing=smoothing)

    torch.testing.assert_close(loss(soft), part * loss(one) + (1 - part) * loss(other))
    torch.testing.assert_close(loss(F.one_hot(one, 3), reduction), loss(one, reduction))
    torch.testing.assert_close(loss(F.one_hot(one, 3).bfloat16(), reduction), loss(one, reduction))
    if not smoothing:
        weight, offset = _tensors(sampler)
        torch.testing.assert_close(loss(soft, "sum"), F.cross_entropy(logits + offset, soft, weight=weight, reduction="sum"))


@pytest.mark.parametrize(
    ("labels", "unlabelled", "target", "codes"),
    [
        ([-1] * 90 + [1] * 10, None, [-1, 1, -1], [0, 1, 0]),
        ([-1.0] * 90 + [1.0] * 10, None, torch.tensor([-1.0, 1.0, float("nan")]), [0, 1, -1]),
        ([False] * 90 + [True] * 10, None, torch.tensor([False, True, True]), [0, 1, 1]),
        ([False] * 90 + [True] * 10, None, torch.tensor([0.0, 1.0, 1.0]), [0, 1, 1]),
        ([0] * 90 + [1] * 10 + [-1] * 9, -1, [-1, 1, 0], [-1, 1, 0]),
        ([3] * 90 + [7] * 10, None, [7, 3, -100], [1, 0, -1]),
        ([-100] * 90 + [7] * 10, None, [7, -100], [1, 0]),
        (["ok"] * 90 + ["fraud"] * 10, None, [1, 0, -1], [1, 0, -1]),
        (["ok"] * 90 + ["fraud"] * 10, "?", np.array(["ok", "?", "fraud"]), [1, -1, 0]),
        (["ok"] * 90 + ["fraud"] * 10, None, ["ok", None, "fraud"], [1, -1, 0]),
        ([b"ok"] * 90 + [b"fraud"] * 10, None, [b"ok", b"fraud"], [1, 0]),
        ([0] * 90 + [1] * 10, float("nan"), [0, 1], [0, 1]),
    ],
)
def test_targets_are_named_as_the_labels(labels: Any, unlabelled: Any, target: Any, codes: list[int]) -> None:
    sampler = _sampler(labels, [0.3, 0.7], unlabelled=unlabelled)
    weight, offset = _tensors(sampler)
    logits = torch.randn(len(codes), 2, generator=torch.Generator().manual_seed(0))
    goal = target if isinstance(target, (Tensor, np.ndarray)) or isinstance(labels[0], (str, bytes)) else torch.tensor(target)
    expected = F.cross_entropy(logits + offset, torch.tensor(codes), weight=weight, reduction="none", ignore_index=-1)
    torch.testing.assert_close(sampler.loss(logits, goal, reduction="none"), expected)
    torch.testing.assert_close(sampler.loss(logits, goal), expected.sum() / weight[[c for c in codes if c >= 0]].sum())


def test_a_batch_without_labels_gives_zero() -> None:
    logits = torch.randn(4, 2, requires_grad=True)
    loss = _sampler([0] * 90 + [1] * 10, [0.5, 0.5], unlabelled=-1).loss(logits, torch.full((4,), -1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [0, 1, 2])
def test_any_precision(dtype: torch.dtype, columns: int) -> None:
    sampler = _sampler(BINARY, [0.7, 0.3])
    shape = (16, columns) if columns else (16,)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    target = torch.arange(16) % 2
    loss = sampler.loss(logits, target)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()
    assert logits.grad is not None and logits.grad.dtype == dtype
    exact = logits.detach().double().requires_grad_()
    expected = sampler.loss(exact, target)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-2, atol=1e-3)


@REDUCTIONS
@pytest.mark.parametrize("soft", [False, True])
def test_gradients(reduction: str, soft: bool) -> None:
    sampler = _sampler(THREE, [0.4, 0.3, 0.3])
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.tensor([[0.2, 0.3, 0.5]] * 5) if soft else torch.tensor([0, 1, 2, 2, 0])
    assert torch.autograd.gradcheck(lambda given: sampler.loss(given, target, reduction=reduction, label_smoothing=0.1), logits)


@settings(max_examples=40, deadline=None)
@given(num_classes=st.integers(2, 7), batch=st.integers(1, 20), smoothing=st.floats(0, 1), seed=st.integers(0, 99))
def test_rows_count_by_their_own_weights(num_classes: int, batch: int, smoothing: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=60)])
    weights = SamplingWeights(rng.dirichlet(np.ones(num_classes) * 3), 1.5, 0.1, 0.5, 0.5)
    sampler = AdaptiveSampler(labels, policy=weights, epochs=2)  # type: ignore[arg-type]
    scored = rng.permutation(len(labels))[:40]
    sampler.update(labels, rng.dirichlet(np.ones(num_classes), len(labels)), rows=scored, row_score=rng.dirichlet(np.ones(num_classes), 40))
    rows = rng.integers(len(labels), size=batch)
    logits, target = rng.normal(size=(batch, num_classes)), labels[rows]
    weight = sampler.sample_weight(rows)
    shifted = logits + sampler.logit_offset
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    each = -weight * ((1 - smoothing) * log_p[np.arange(batch), target] + smoothing * log_p.mean(axis=1))
    found = sampler.loss(torch.tensor(logits), torch.tensor(target), torch.tensor(rows), reduction="none", label_smoothing=smoothing)
    np.testing.assert_allclose(found, each, rtol=1e-5, atol=1e-6)
    mean = sampler.loss(torch.tensor(logits), torch.tensor(target), rows.tolist(), label_smoothing=smoothing)
    assert mean.item() == pytest.approx(each.sum() / weight.sum(), rel=1e-5)
    one_hot = sampler.loss(
        torch.tensor(logits), F.one_hot(torch.tensor(target), num_classes), rows, reduction="none", label_smoothing=smoothing
    )
    np.testing.assert_allclose(one_hot, each, rtol=1e-5, atol=1e-6)


def test_the_weights_follow_the_updates_and_the_device_copies_are_kept() -> None:
    sampler = AdaptiveSampler(BINARY, policy="rule", epochs=4)
    logits, target = torch.tensor([1.0, -1.0]), torch.tensor([1, 0])
    first = sampler.loss(logits, target)
    kept = sampler._loss_tensors(logits.device)[1]
    assert sampler._loss_tensors(logits.device)[1] is kept
    sampler.update([0, 0, 1, 1], [0.1, 0.9, 0.8, 0.2])
    assert sampler.loss(logits, target) != first
    weight, offset = _tensors(sampler)
    two = torch.stack([torch.zeros(2), logits], dim=1)
    torch.testing.assert_close(sampler.loss(logits, target), F.cross_entropy(two + offset, target, weight=weight))


def test_batches_with_quotas_count_by_the_shares_they_have() -> None:
    sampler = AdaptiveBatchSampler([0] * 990 + [1] * 10, batch_size=10, policy="constant:share=.02,class_importance=.5", epochs=2)
    assert sampler.batch_share.tolist() == pytest.approx([0.9, 0.1])  # a batch of ten has at least one row of each class
    np.testing.assert_allclose(np.exp(sampler.logit_offset), sampler.batch_share * sampler.class_weight)
    assert (sampler.batch_share * sampler.class_weight).sum() == pytest.approx(1)
    loss = sampler.loss(torch.zeros(2, 2), torch.tensor([0, 1]), reduction="none")
    mass = sampler.batch_share * sampler.class_weight
    np.testing.assert_allclose(loss, -np.log(mass) * sampler.class_weight, rtol=1e-5)


@pytest.mark.parametrize(
    ("logits", "target", "options", "message"),
    [
        (torch.zeros(4, 2), [0, 1, 2, 0], {}, r"target holds 2, which is not among the classes of training \(0, 1\)"),
        (torch.zeros(4, 2), torch.tensor([0, 1, 0.5, 0]), {}, "target holds 0.5, which is not among the classes"),
        (torch.zeros(4, 2), torch.tensor([0, 1, 0]), {}, "logits have 4 rows and target 3; give one target a row"),
        (torch.zeros(4, 3), [0, 1, 0, 1], {}, r"logits must have the shape \(B, 2\), not \(4, 3\)"),
        (torch.zeros(2, 2, 4), [0, 1], {}, "logits must have the shape"),
        (torch.zeros(4, 2).int(), [0, 1, 0, 1], {}, "logits must be floating point, not torch.int32"),
        (np.zeros((4, 2)), [0, 1, 0, 1], {}, "logits must be a tensor, not ndarray"),
        (torch.zeros(2, 2), torch.zeros(2, 3), {}, r"target must be classes \(B,\) or probabilities \(B, 2\), not of shape \(2, 3\)"),
        (torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), {}, "must be probabilities of the classes that sum to 1"),
        (torch.zeros(2, 2), torch.tensor([[1, 1], [0, 1]]), {}, "several classes"),
        (torch.zeros(2, 2), [0, 1], {"reduction": "average"}, "reduction must be one of mean, sum, none"),
        (torch.zeros(2, 2), [0, 1], {"label_smoothing": 1.5}, r"label_smoothing must lie in \[0, 1\]"),
        (torch.zeros(2, 2), [0, 1], {"rows": [1]}, "rows has 1 indices and logits 2 rows"),
        (torch.zeros(2, 2), [0, 1], {"rows": [1, 500]}, "rows must be one vector of indices of training rows, from 0 to 99"),
        (torch.zeros(2, 2), ["a", "b"], {}, "target holds text, the labels of training are numbers"),
    ],
)
def test_refuses(logits: Any, target: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _sampler(BINARY, [0.5, 0.5]).loss(logits, target, **options)


def test_refuses_one_logit_for_three_classes_and_huge_names() -> None:
    with pytest.raises(InputError, match=r"logits of shape \(3,\) are for two classes; give 3 columns"):
        _sampler(THREE, [0.4, 0.3, 0.3]).loss(torch.zeros(3), torch.tensor([0, 1, 2]))
    huge = np.array([3] * 9 + [2**63 + 5], dtype=np.uint64)
    with pytest.raises(InputError, match="beyond what torch can hold"):
        _sampler(huge, [0.5, 0.5]).loss(torch.zeros(2, 2), torch.tensor([3, 3]))


def test_the_function_alone() -> None:
    weight, offset = torch.tensor([0.5, 2.0]), torch.tensor([-0.1, -2.0])
    logits, code = torch.tensor([[1.0, -1.0], [0.0, 2.0], [3.0, 3.0]]), torch.tensor([0, 1, -1])
    each = compensated_loss(logits, code, weight, offset, reduction="none")
    torch.testing.assert_close(each[:2], F.cross_entropy((logits + offset)[:2], code[:2], weight=weight, reduction="none"))
    assert each[2] == 0
    rows = torch.tensor([3.0, 5.0, 7.0])
    torch.testing.assert_close(
        compensated_loss(logits, code, weight, offset, row_weight=rows, reduction="none") / rows, each / torch.tensor([0.5, 2, 1])
    )


class _Net(nn.Module):
    """A model with its loss, as in a LightningModule."""

    def __init__(self, sampler: AdaptiveSampler) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(2, 2), AdaptiveLoss(sampler, label_smoothing=0.1)


def test_the_module_is_the_method() -> None:
    sampler = AdaptiveSampler(BINARY, epochs=4)
    assert not sampler.compensated
    module = AdaptiveLoss(sampler, reduction="sum", label_smoothing=0.1)
    assert sampler.compensated  # before the first draw, so the first epoch is drawn for it
    assert sampler.weights.to_dict() == AdaptiveSampler(BINARY, epochs=4, compensated=True).weights.to_dict()
    logits, target = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 1, 0])
    torch.testing.assert_close(module(logits, target), sampler.loss(logits, target, reduction="sum", label_smoothing=0.1))
    rows = torch.tensor([0, 95, 3, 92, 91, 5])
    torch.testing.assert_close(module(logits, target, rows), sampler.loss(logits, target, rows, reduction="sum", label_smoothing=0.1))
    assert not list(module.parameters()) and not module.state_dict()
    assert repr(module).startswith("AdaptiveLoss(AdaptiveSampler(policy='auto', epoch=0 of 4")
    assert repr(module).endswith("reduction='sum', label_smoothing=0.1)")
    assert repr(sampler).startswith("AdaptiveSampler(policy='auto', epoch=0 of 4, share={0:")


def test_a_copied_model_has_the_same_sampler() -> None:
    sampler = AdaptiveSampler(BINARY, epochs=4)
    net = _Net(sampler).eval()
    copied = torch.optim.swa_utils.AveragedModel(net)
    assert copied.module.loss.sampler is copy.deepcopy(net).loss.sampler is sampler
    assert (copied.module.loss.label_smoothing, copied.module.loss.training) == (0.1, False)
    logits, target = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(pickle.loads(pickle.dumps(net)).loss(logits, target), net.loss(logits, target))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda s: AdaptiveLoss(None), "sampler must be an adaptive sampler, which has a loss, not NoneType"),
        (lambda s: AdaptiveLoss(s, reduction="all"), "reduction must be"),
        (lambda s: AdaptiveLoss(s, label_smoothing=-0.1), "label_smoothing must"),
    ],
)
def test_refuses_to_be_made(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        given(AdaptiveSampler(BINARY, epochs=1))


@pytest.mark.parametrize("prior", ["natural", "balanced", [0.2, 0.3, 0.5]])
def test_probabilities_of_tensors_are_those_of_arrays(prior: Any) -> None:
    sampler = _sampler(THREE, [0.4, 0.3, 0.3])
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    expected = sampler.probabilities(logits.numpy(), prior)
    assert isinstance(expected, np.ndarray) and expected.dtype == np.float64
    for dtype in (torch.float32, torch.float64):
        found = sampler.probabilities(logits.clone().to(dtype).requires_grad_(), prior)
        assert found.dtype == dtype and found.requires_grad
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5)
    half = sampler.probabilities(logits.bfloat16(), prior)
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half, expected, atol=0.02)
    binary = _sampler(BINARY, [0.5, 0.5])
    for form in (logits[:, 0], logits[:, :1]):
        np.testing.assert_allclose(binary.probabilities(form), binary.probabilities(form.numpy()), rtol=1e-5)
    with pytest.raises(InputError, match="logits must have the shape"):
        sampler.probabilities(logits[:, :2])


def _problem(seed: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Rows whose probabilities are a softmax of linear logits."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30_000, 4))
    true = x @ np.random.default_rng(99).normal(size=(4, num_classes)) + np.linspace(0, -4, num_classes)
    odds = np.exp(true - true.max(axis=1, keepdims=True))
    p = odds / odds.sum(axis=1, keepdims=True)
    y = (p.cumsum(axis=1) < rng.random((len(x), 1))).sum(axis=1)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


@pytest.mark.parametrize(
    ("kind", "scores", "num_classes", "policy"),
    [
        ("rows", "natural", 2, "auto"),
        ("rows", "balanced", 2, "auto"),
        ("batches", "natural", 2, "auto"),
        ("rows", "natural", 4, "auto"),
        ("batches", "balanced", 4, "auto"),
        ("rows", "natural", 2, "constant:share=.6,hardness=0,class_importance=.5"),
        ("rows", "natural", 4, "constant:share=root,hardness=1,class_importance=.5,hardness_importance=.5"),
        ("batches", "by class", 2, "constant:share=root,hardness=1,class_importance=.5,hardness_importance=.5"),
        ("rows", "by class", 2, "constant:share=equal,hardness=1.5,class_importance=1,hardness_importance=1"),
        ("batches", "natural", 4, "constant:share=equal,hardness=1.5,class_importance=1,hardness_importance=1"),
    ],
)
def test_a_model_trained_with_the_loss_is_calibrated(num_classes: int, policy: str, kind: str, scores: str) -> None:
    x, y = _problem(0, num_classes)
    options: dict[str, Any] = {"policy": policy, "epochs": 3, "compensated": True}
    sampler: Any = AdaptiveSampler(y, **options) if kind == "rows" else AdaptiveBatchSampler(y, batch_size=200, **options)
    data, chosen = TensorDataset(x, y, torch.arange(len(x))), {"batch_size": 200, "sampler": sampler}
    loader: DataLoader[Any] = DataLoader(data, **(chosen if kind == "rows" else {"batch_sampler": sampler}))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, num_classes))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    test_x, test_y = _problem(1, num_classes)

    def shown(given: Tensor) -> Tensor:
        """Scores for the update: of the natural stream, or of the logits as they are."""
        with torch.no_grad():
            return sampler.probabilities(net(given)) if scores != "balanced" else torch.softmax(net(given), dim=1)

    pool = np.random.default_rng(0).permutation(len(x))[: 10_000 if kind == "rows" else len(x)]
    for _ in range(3):
        for batch, target, rows in loader:
            optimizer.zero_grad()
            sampler.loss(net(batch), target, rows if scores != "by class" else None).backward()
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] /= 4
        sampler.update(test_y[:5_000], shown(test_x[:5_000]), rows=pool, row_score=shown(x)[pool])
    with torch.no_grad():
        p = sampler.probabilities(net(test_x)).numpy()
    for c in range(num_classes):
        there = (test_y == c).numpy()
        assert p[:, c].mean() == pytest.approx(there.mean(), rel=0.15)  # not that of the drawn stream
        for bin_ in np.array_split(np.argsort(p[:, c]), 8):
            assert p[bin_, c].mean() == pytest.approx(there[bin_].mean(), abs=0.04)
    other: Any = type(sampler)(y, **options, **({} if kind == "rows" else {"batch_size": 200}))
    other.load_state_dict(sampler.state_dict())
    np.testing.assert_allclose(other.probabilities(net(test_x[:9])).detach().numpy(), p[:9], rtol=1e-6)
    with torch.no_grad():
        loss = sampler.validation_loss(net(test_x), test_y)
    assert loss.item() == pytest.approx(-np.log(p[np.arange(len(p)), test_y.numpy()]).mean(), rel=1e-4)
