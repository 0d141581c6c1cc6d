"""The stack of students against torch's autograd and AdamW, and against the row sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from balancer.envs import population
from balancer.envs.population import HIDDEN, WIDE_HIDDEN, PopulationStack, StudentKinds
from balancer.envs.problem import synthetic_problem
from balancer.envs.student_losses import Losses
from balancer.errors import InputError
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.weights import SamplingWeights

PROBLEM = synthetic_problem(3, rows=1500)


def _stack(**changed: object) -> PopulationStack:
    return PopulationStack(PROBLEM, **({"groups": 3, "siblings": 2, "batch_size": 32, "seed": 1} | changed))  # type: ignore[arg-type]


def test_equals_autograd_and_adamw() -> None:
    stack = _stack(groups=2, siblings=1, kinds=StudentKinds.fixed(2, 3e-3, 0.1, 0.0))
    stack.begin(0, total_steps=20)
    nets = []
    for m in range(2):
        net = nn.Sequential(
            nn.Linear(PROBLEM.x_train.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3)
        )
        with torch.no_grad():
            for index, (parameters, parameter) in enumerate(zip(stack._parameters, net.parameters(), strict=True)):
                parameter.copy_(
                    (parameters[m] if index == 4 else parameters[m].T).reshape(parameter.shape)
                )  # the last layer has torch's layout
        nets.append(net)
    rows = torch.as_tensor(np.random.default_rng(0).integers(0, len(PROBLEM.y_train), (2, 32 * 20)))
    x, y = torch.as_tensor(PROBLEM.x_train), torch.as_tensor(PROBLEM.y_train)
    for m, net in enumerate(nets):
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.1)
        for step in range(20):
            batch = rows[m, step * 32 : (step + 1) * 32]
            factor = 1.0 if step < 1 else 0.5 * (1 + np.cos(np.pi * (step - 1) / 19))
            optimizer.param_groups[0]["lr"] = 3e-3 * factor
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    stack.fit(rows)
    score = stack.score(PROBLEM.x_val)
    for m, net in enumerate(nets):
        with torch.no_grad():
            expected = torch.softmax(net(torch.as_tensor(PROBLEM.x_val)), dim=1).numpy()
        np.testing.assert_allclose(score[m], expected, atol=2e-5)


def test_siblings_are_twins_and_groups_are_not() -> None:
    stack = _stack()
    stack.begin(4, total_steps=10)
    share = np.full((6, 3), 1 / 3)
    stack.fit(stack.draw(320, 0, share, np.zeros(6), np.zeros(6)))
    score = stack.score(PROBLEM.x_val)
    np.testing.assert_array_equal(score[0], score[1])
    assert np.abs(score[0] - score[2]).max() > 1e-3


def test_episode_repeats() -> None:
    scores = []
    for before in (0, 3):
        stack = _stack()
        stack.begin(before, total_steps=10)
        stack.begin(5, total_steps=10)
        stack.fit(stack.draw(320, 0, np.full((6, 3), 1 / 3), np.ones(6), np.zeros(6)))
        scores.append(stack.score(PROBLEM.x_val))
    assert scores[0].tobytes() == scores[1].tobytes()


@pytest.mark.parametrize("hardness", [0.0, 1.5])
def test_draws_are_distributed_as_the_row_samplers(hardness: float) -> None:
    stack, sampler = _stack(groups=1, siblings=1), RowSampler(PROBLEM.y_train, 3)
    stack.begin(0, total_steps=10)
    rows = np.arange(0, len(PROBLEM.y_train), 3)
    fraud = np.random.default_rng(0).random(len(rows))
    score = np.stack([1 - fraud, fraud / 2, fraud / 2], axis=1)
    stack.refresh(rows, score[None])
    sampler.refresh(rows, score)
    share, n = np.array([0.6, 0.3, 0.1]), 1500
    counts = np.zeros((2, len(PROBLEM.y_train)))
    for i in range(150):
        drawn = stack.draw(n, i, share[None], np.array([hardness]), np.array([0.2]))[0].numpy()
        counts[0] += np.bincount(drawn, minlength=counts.shape[1])
        counts[1] += np.bincount(
            sampler.draw(n, SamplingWeights(share, hardness, 0.2), np.random.default_rng(i)), minlength=counts.shape[1]
        )
    frequency = counts / counts.sum(axis=1, keepdims=True)
    for mask in [PROBLEM.y_train == c for c in range(3)] + [
        np.isin(np.arange(counts.shape[1]), rows[part]) for part in (fraud > 0.8, fraud < 0.2)
    ]:
        assert frequency[0, mask].sum() == pytest.approx(frequency[1, mask].sum(), rel=0.03)


def test_kinds_are_varied() -> None:
    kinds = StudentKinds.drawn(0, 0, 50, 2)
    for each in (kinds.learning_rate, kinds.weight_decay, kinds.dropout, kinds.width):
        assert each.shape == (100,)
        assert (each[::2] == each[1::2]).all()
        assert len(np.unique(each)) > 10
    assert kinds.width.min() >= HIDDEN / 4
    assert kinds.width.max() <= HIDDEN == kinds.hidden


def test_wide_kinds_fill_their_ranges() -> None:
    kinds = StudentKinds.drawn(0, 0, 2000, 1, spread="wide")
    assert kinds.hidden == WIDE_HIDDEN
    ranges = {"learning_rate": (1e-3, 2e-2), "weight_decay": (0.0, 3e-2), "dropout": (0.0, 0.4), "width": (4, 64)}
    for name, (low, high) in ranges.items():
        values = getattr(kinds, name)
        assert low <= values.min() <= low * 1.02
        assert 0.98 * high <= values.max() <= high * (1 + 1e-12)
    assert (kinds.weight_decay == 0).mean() == pytest.approx(0.3, abs=0.04)
    assert (kinds.dropout == 0).mean() == pytest.approx(0.3, abs=0.04)


def test_kinds_of_the_episode_go_before_those_of_the_stack() -> None:
    stack = _stack(kinds=StudentKinds.fixed(6, 1e-3, width=8))
    assert stack.kinds.learning_rate.tolist() == [1e-3] * 6
    stack.begin(1, total_steps=5, kinds=StudentKinds.drawn(0, 0, 3, 2, spread="wide"))
    assert stack.kinds.hidden == stack.net.hidden == WIDE_HIDDEN
    stack.fit(stack.draw(64, 0, np.full((6, 3), 1 / 3), np.zeros(6), np.zeros(6)))
    assert np.isfinite(stack.score(PROBLEM.x_val)).all()
    stack.begin(2, total_steps=5)
    assert stack.kinds.width.tolist() == [8.0] * 6
    drawn = _stack()
    drawn.begin(2, total_steps=5)
    np.testing.assert_array_equal(drawn.kinds.width, StudentKinds.drawn(1, 2, 3, 2).width)


@pytest.mark.parametrize("net", ["mlp", "transformer"])
def test_dropout_of_none_is_dropout_of_nothing(net: str) -> None:
    """Without dropout no noise is drawn; a student without it does not depend on others with it."""
    scores = []
    for beside in (0.0, 0.3):
        kinds = StudentKinds(np.full(2, 6e-3), np.zeros(2), np.array([0.0, beside]), np.full(2, 16.0))
        stack = _stack(groups=2, siblings=1, net=net, kinds=kinds)
        stack.begin(0, total_steps=8)
        stack.fit(stack.draw(32 * 8, 0, np.full((2, 3), 1 / 3), np.zeros(2), np.zeros(2)))
        scores.append(stack.score(PROBLEM.x_val))
    np.testing.assert_array_equal(scores[0][0], scores[1][0])
    assert np.abs(scores[0][1] - scores[1][1]).max() > 1e-3


def test_steps_do_not_depend_on_how_they_are_handed_over() -> None:
    scores = []
    for pieces in (1, 4):
        stack = _stack()
        stack.begin(0, total_steps=8)
        rows = stack.draw(32 * 8, 0, np.full((6, 3), 1 / 3), np.zeros(6), np.zeros(6))
        for part in rows.chunk(pieces, dim=1):
            stack.fit(part)
        scores.append(stack.score(PROBLEM.x_val).tobytes())
    assert scores[0] == scores[1]


def test_draws_and_scores_do_not_depend_on_the_size_of_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, scores = [], []
    for size in (1, 1 << 20):
        monkeypatch.setattr(population, "DRAW_FLOATS", {"cpu": size})
        monkeypatch.setattr(population, "SCORE_FLOATS", {"cpu": 6000 * size})
        stack = _stack()
        scores.append(stack.score(PROBLEM.x_val))
        rows = np.arange(0, 1500, 2)
        stack.refresh(rows, np.random.default_rng(0).dirichlet(np.ones(3), (6, len(rows))))
        drawn.append(stack.draw(999, 0, np.full((6, 3), 1 / 3), np.linspace(0, 2, 6), np.full(6, 0.1)))
    assert torch.equal(drawn[0], drawn[1])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)


def test_losses_set_siblings_apart() -> None:
    weight = np.ones((6, 3))
    weight[1, 1:] = 20.0
    offset = np.zeros((6, 3))
    offset[3] = np.log(PROBLEM.train_counts / PROBLEM.train_counts.sum())
    gamma = np.array([0, 0, 0, 0, 0, 2.0])
    stack, prior = _stack(losses=Losses(weight, offset, gamma)), PROBLEM.train_counts / PROBLEM.train_counts.sum()
    stack.begin(0, total_steps=60)
    stack.fit(stack.draw(32 * 60, 0, np.tile(prior, (6, 1)), np.zeros(6), np.zeros(6)))
    rare = 1.0 - stack.score(PROBLEM.x_val)[:, :, 0].mean(axis=1)
    assert rare[1] > 2 * rare[0]
    assert rare[3] > 2 * rare[2]
    assert rare[5] > 1.1 * rare[4]  # a focal loss rests content with less certainty


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"net": "forest"}, "mlp, transformer"),
        ({"groups": 0}, "groups"),
        ({"batch_size": 0}, "batch_size"),
        ({"kinds": StudentKinds.fixed(5)}, "5 students"),
        ({"losses": Losses(focal_gamma=np.ones(5))}, "focal_gamma"),
    ],
)
def test_refuses(changed: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        _stack(**changed)


@pytest.mark.parametrize("changed", [{"learning_rate": 0.0}, {"weight_decay": -1.0}, {"dropout": 1.0}, {"width": 0}, {"dropout": np.nan}])
def test_refuses_kinds(changed: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(changed))):
        StudentKinds.fixed(2, **changed)


@pytest.mark.gpu
@pytest.mark.parametrize("net", ["mlp", "transformer"])
def test_a_gpu_trains_the_same_students(net: str) -> None:
    scores = []
    for device in ("cpu", "cuda"):
        stack = _stack(device=device, net=net, losses=Losses(focal_gamma=np.linspace(0, 2, 6)))
        stack.begin(0, total_steps=10)
        rows = stack.draw(320, 0, np.full((6, 3), 1 / 3), np.zeros(6), np.zeros(6))
        stack.fit(rows)
        scores.append((rows.cpu().numpy(), stack.score(PROBLEM.x_val)))
        pool = np.arange(0, 1500, 3)
        stack.refresh(pool, stack.score(PROBLEM.x_train[pool]))
        assert stack.draw(320, 1, np.full((6, 3), 1 / 3), np.ones(6), np.full(6, 0.1)).shape == (6, 320)
    np.testing.assert_array_equal(scores[0][0], scores[1][0])
    np.testing.assert_allclose(scores[0][1], scores[1][1], atol=1e-3)
