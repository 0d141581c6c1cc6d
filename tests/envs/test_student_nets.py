"""Networks of a stack: gradients against torch's modules in float64, independent students, learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from balancer.envs.population import PopulationStack, StudentKinds
from balancer.envs.problem import PopulationProblem, synthetic_problem
from balancer.envs.student_losses import Losses, StudentLoss
from balancer.envs.student_nets import D_MODEL, NETS, NUM_HEADS, MlpNet, Net, StudentNet, TransformerNet
from balancer.sampling.scores import macro_metrics
from balancer.sampling.weights import SamplingWeights, stacked

M, B, FEATURES, CLASSES, HIDDEN = 3, 20, 5, 4, 8
KEEP = torch.tensor([1.0, 0.8, 0.5], dtype=torch.float64).view(M, 1, 1)
LOSSES = {
    "plain": None,
    "all": Losses(
        np.random.default_rng(2).uniform(0.1, 3, (M, CLASSES)), np.random.default_rng(3).normal(size=(M, CLASSES)), np.arange(M) * 1.0
    ),
}


def _built(net: StudentNet) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, Tensor]:
    """Parameters away from their first values, gradients, rows, labels and noise; float64."""
    rng = np.random.default_rng(0)
    values = net.initial(rng, np.ones((M, net.hidden), dtype=bool))
    flat = torch.as_tensor(np.concatenate([value.ravel() + 0.1 * rng.normal(size=value.size) for value in values]))
    assert len(flat) == M * net.size
    x, y = torch.as_tensor(rng.normal(size=(M, B, FEATURES))), torch.as_tensor(rng.integers(0, CLASSES, (M, B)))
    return net.views(flat, M), net.views(torch.zeros_like(flat), M), x, y, torch.as_tensor(rng.random(net.noise_size(B)))


def _masked(h: Tensor, noise: Tensor | None, keep: Tensor) -> Tensor:
    return h if noise is None else torch.where(noise < keep, h, 0.0) / keep


def _mlp(w: list[Tensor], x: Tensor, noise: Tensor | None, keep: Tensor) -> Tensor:
    """One student's logits (B, K), written out."""
    parts = [None, None] if noise is None else list(noise.view(2, B, HIDDEN))
    h = _masked(torch.relu(nn.functional.linear(x, w[0].T, w[1][0])), parts[0], keep)
    h = _masked(torch.relu(nn.functional.linear(h, w[2].T, w[3][0])), parts[1], keep)
    return nn.functional.linear(h, w[4], w[5][:, 0])


def _transformer(w: list[Tensor], x: Tensor, noise: Tensor | None, keep: Tensor) -> Tensor:
    """The same by torch's modules: layer norm, multi-head attention."""
    cut = B * FEATURES * D_MODEL
    parts = [None, None] if noise is None else [noise[:cut].view(B, FEATURES, D_MODEL), noise[cut:].view(B, FEATURES, HIDDEN)]

    def norm(t: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        return nn.functional.layer_norm(t, (D_MODEL,), 1 + gain, shift)

    t = x[:, :, None] * w[0] + w[1]
    n = norm(t, w[2], w[3])
    attended, _ = nn.functional.multi_head_attention_forward(
        *(n.transpose(0, 1),) * 3, D_MODEL, NUM_HEADS, w[4].T, w[5][0], None, None, False, 0.0, w[6].T, w[7][0], need_weights=False
    )
    t = t + _masked(attended.transpose(0, 1), parts[0], keep)
    t = t + _masked(torch.relu(norm(t, w[8], w[9]) @ w[10] + w[11]), parts[1], keep) @ w[12] + w[13]
    return norm(t, w[14], w[15]).mean(dim=1) @ w[16].T + w[17][:, 0]


PLAIN = {"mlp": _mlp, "transformer": _transformer}


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_gradient_is_that_of_a_plain_net(name: Net, dropout: bool, losses: str, weighted: bool) -> None:
    row_weight = torch.as_tensor(np.random.default_rng(5).uniform(0.1, 4, (M, B))) if weighted else None
    net = NETS[name](FEATURES, CLASSES, HIDDEN)
    parameters, out, x, y, drawn = _built(net)
    noise = drawn if dropout else None
    loss = StudentLoss(LOSSES[losses], M, CLASSES, dtype=torch.float64)
    for _ in range(2):  # the second step meets memory that was used
        net.gradient(parameters, out, x, y, loss, noise, KEEP, row_weight)
    leaves = [parameter.clone().requires_grad_() for parameter in parameters]
    logits = torch.stack([PLAIN[name]([leaf[m] for leaf in leaves], x[m], noise, KEEP[m, 0]) for m in range(M)])
    expected = torch.autograd.grad(loss.value(logits.transpose(1, 2), y, row_weight).sum(), leaves)
    for found, wanted in zip(out, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NETS)
def test_logits_are_those_of_a_plain_net(name: Net) -> None:
    net = NETS[name](FEATURES, CLASSES, HIDDEN)
    parameters, _, x, _, _ = _built(net)
    found = net.logits(parameters, x[0])
    for m in range(M):
        expected = PLAIN[name]([parameter[m] for parameter in parameters], x[0], None, KEEP[0, 0])
        torch.testing.assert_close(found[m].T, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NETS)
def test_one_student_alone_is_the_same_student(name: Net) -> None:
    problem, kinds, scores = synthetic_problem(2, rows=800), StudentKinds.fixed, []
    for siblings in (1, 8):
        stack = PopulationStack(problem, groups=1, siblings=siblings, batch_size=32, seed=4, net=name)
        stack.begin(0, total_steps=15, kinds=kinds(siblings, width=20))
        share = np.tile([0.7, 0.3], (siblings, 1))
        share[1:] = 0.5  # what the others draw is another matter
        stack.fit(*stack.draw(32 * 15, 0, stacked([SamplingWeights(each) for each in share])))
        scores.append(stack.score(problem.x_val)[0])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("width", [8, 16])
def test_units_left_out_stay_out(name: Net, width: int) -> None:
    problem = synthetic_problem(2, rows=800)
    stack = PopulationStack(problem, groups=2, batch_size=32, net=name, kinds=StudentKinds.fixed(2, width=width))
    stack.begin(0, total_steps=10)
    stack.fit(*stack.draw(320, 0, stacked([SamplingWeights(np.full(2, 0.5))] * 2)))
    into = {"mlp": (0, 1, 3), "transformer": (10, 11)}[name]
    for index in into:
        assert stack._parameters[index][..., :width].any()
        assert not stack._parameters[index][..., width:].any()


def _rings() -> PopulationProblem:
    """A problem that a non-linear model can separate: rare rows lie outside of a circle in the first two of
    four features."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 4)).astype(np.float32)
    radius = (x[:, :2] ** 2).sum(axis=1)
    kept = (radius < 3) | (radius > 5)
    x, y = x[kept], (radius[kept] > 4).astype(np.int64)
    half = len(y) // 2
    return PopulationProblem(x[:half], y[:half], x[half:], y[half:], np.ones(half), np.ones(len(y) - half), 2)


@pytest.mark.parametrize(("name", "rate"), [("mlp", 1e-2), ("transformer", 3e-3), ("transformer", 2e-2)])
def test_learns_a_separable_problem(name: Net, rate: float) -> None:
    problem = _rings()
    stack = PopulationStack(problem, groups=3, batch_size=64, net=name, kinds=StudentKinds.fixed(3, rate))
    stack.begin(0, total_steps=240)
    stack.fit(*stack.draw(64 * 240, 0, stacked([SamplingWeights(np.full(2, 0.5))] * 3)))
    metrics = macro_metrics(problem.y_val, stack.score(problem.x_val), problem.val_weight)
    assert metrics.average_precision.min() > 0.97  # the share of rare rows is what chance would give


def test_transformer_learns_from_many_features() -> None:
    net = TransformerNet(24, 3, 64)
    assert net.size < 10_000
    assert MlpNet(24, 3, 64).size > MlpNet(24, 3, 32).size
    rng = np.random.default_rng(0)
    y = np.tile(np.arange(3), 500)
    x = (rng.normal(size=(1500, 24)) + np.eye(3, 24)[y] * 4).astype(np.float32)
    problem = PopulationProblem(x[:900], y[:900], x[900:], y[900:], np.ones(900), np.ones(600), 3)
    stack = PopulationStack(problem, groups=2, batch_size=32, net="transformer", kinds=StudentKinds.drawn(0, 0, 2, 1, spread="wide"))
    stack.begin(0, total_steps=60)
    stack.fit(*stack.draw(32 * 60, 0, stacked([SamplingWeights(np.full(3, 1 / 3))] * 2)))
    assert (stack.score(x[900:]).argmax(axis=2) == y[900:]).mean() > 0.9
