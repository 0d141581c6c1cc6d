"""The stack of students against torch's autograd and AdamW, and against the row sampler."""

from __future__ import annotations

import dataclasses
import math

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
from balancer.sampling.weights import SamplingWeights, WeightArrays, stacked

PROBLEM = synthetic_problem(3, rows=1500)
EVEN = np.full(3, 1 / 3)


def _stack(**changed: object) -> PopulationStack:
    return PopulationStack(PROBLEM, **({"groups": 3, "siblings": 2, "batch_size": 32, "seed": 1} | changed))  # type: ignore[arg-type]


def _weights(num: int, share: np.ndarray = EVEN, hardness: float = 0.0, floor: float = 0.05, **others: float) -> WeightArrays:
    """The same weights for ``num`` students."""
    return stacked([SamplingWeights(share, hardness, floor, **others)] * num)


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
    stack.fit(*stack.draw(320, 0, _weights(6)))
    score = stack.score(PROBLEM.x_val)
    np.testing.assert_array_equal(score[0], score[1])
    assert np.abs(score[0] - score[2]).max() > 1e-3


def test_episode_repeats() -> None:
    scores = []
    for before in (0, 3):
        stack = _stack()
        stack.begin(before, total_steps=10)
        stack.begin(5, total_steps=10)
        stack.fit(*stack.draw(320, 0, _weights(6, hardness=1.0)))
        scores.append(stack.score(PROBLEM.x_val))
    assert scores[0].tobytes() == scores[1].tobytes()


AGE = np.random.default_rng(2).random(len(PROBLEM.y_train)).astype(np.float32)
RARE = np.array([0.985, 0.005, 0.01])
"""Shares at which the rows of class 1 and 2 are chosen by hardness, those of class 0 are not."""
COMMON = np.array([0.6, 0.3, 0.1])
"""Shares at which only the rows of class 0 are chosen by hardness."""


def _scored_pair(age: bool = False) -> tuple[PopulationStack, RowSampler, np.ndarray]:
    """A stack of one student and a row sampler with the same scores, and the scored rows: every second."""
    problem = dataclasses.replace(PROBLEM, train_age=AGE) if age else PROBLEM
    stack = PopulationStack(problem, groups=1, batch_size=32, seed=1, compensated=np.ones(1, dtype=bool))
    stack.begin(0, total_steps=10)
    sampler = RowSampler(PROBLEM.y_train, 3, age=AGE if age else None)
    rows = np.arange(0, len(PROBLEM.y_train), 2)
    score = np.random.default_rng(0).dirichlet([0.5, 0.5, 0.5], len(rows))
    stack.refresh(rows, score[None])
    sampler.refresh(rows, score)
    return stack, sampler, rows


@pytest.mark.parametrize("half_life", [math.inf, 0.3], ids=["no age", "recent"])
@pytest.mark.parametrize("hardness", [0.0, 1.5])
@pytest.mark.parametrize("share", [COMMON, RARE], ids=["common", "rare"])
@pytest.mark.parametrize("n", [400, 1500, 40_000], ids=["few", "some", "no room for hardness"])
def test_probabilities_and_weights_are_the_row_samplers(share: np.ndarray, hardness: float, half_life: float, n: int) -> None:
    """Of every row of every class: the probability of a draw, and the weight in the loss."""
    stack, sampler, _ = _scored_pair(age=True)
    weights = SamplingWeights(share, hardness, 0.2, 0.5, 0.7, half_life)
    expected = sampler.probabilities(weights, n)
    loss_weight = sampler.loss_weights(np.arange(len(expected)), weights, n)
    class_weight, different = weights.class_weight(sampler.prior), 0
    for c in range(3):
        own = np.flatnonzero(PROBLEM.y_train == c)
        scored = torch.as_tensor(np.flatnonzero(own % 2 == 0))
        draws = population._Draws(stack._error, c, stack._starts, stack._counts, scored, n, stacked([weights]), float(sampler.prior[c]))
        age = stack._age if math.isfinite(half_life) else None
        found = draws.probabilities(age)[0].numpy()
        np.testing.assert_allclose(found * share[c], expected[own], rtol=1e-5)
        ratio = draws.ratios(age, torch.full((1, 1), 0.7 if hardness else 0.0))[0].numpy()
        np.testing.assert_allclose(ratio * class_weight[c], loss_weight[own], rtol=1e-4)
        assert (found * ratio).sum() == pytest.approx(1, abs=1e-5)
        different += not draws.even
    assert different == (0 if hardness == 0 or n == 40_000 else 2 if share is RARE else 1)


@pytest.mark.parametrize("half_life", [math.inf, 0.3], ids=["no age", "recent"])
@pytest.mark.parametrize("hardness", [0.0, 1.5])
@pytest.mark.parametrize("share", [COMMON, RARE], ids=["common", "rare"])
def test_draws_are_distributed_as_the_row_samplers(share: np.ndarray, hardness: float, half_life: float) -> None:
    stack, sampler, _ = _scored_pair(age=True)
    weights, n, repeats = SamplingWeights(share, hardness, 0.2, 0.5, 0.7, half_life), 1500, 100
    counts = np.zeros(len(PROBLEM.y_train))
    weighted = np.zeros(len(PROBLEM.y_train))
    for epoch in range(repeats):
        drawn, row_weight = stack.draw(n, epoch, stacked([weights]))
        counts += np.bincount(drawn[0].numpy(), minlength=len(counts))
        if row_weight is not None:
            weighted += np.bincount(drawn[0].numpy(), row_weight[0].numpy(), minlength=len(counts))
    expected = sampler.probabilities(weights, n) * n * repeats
    for c in range(3):  # chi-square over groups of rows with similar expectations
        own = np.flatnonzero(PROBLEM.y_train == c)
        groups = np.array_split(own[np.argsort(expected[own], kind="stable")], 8 if c == 0 else 3)
        wanted = np.array([expected[group].sum() for group in groups])
        seen = np.array([counts[group].sum() for group in groups])
        assert (((seen - wanted) ** 2) / wanted).sum() < 30, (c, wanted, seen)
        if hardness:
            within = sampler.loss_weights(own, weights, n) / weights.class_weight(sampler.prior)[c]
            np.testing.assert_allclose(weighted[own], counts[own] * within, rtol=1e-3, atol=1e-6)


def test_a_student_is_drawn_for_alike_in_any_company() -> None:
    """Beside siblings with other weights or a half-life, rows and weights of a student stay the same."""
    problem = dataclasses.replace(PROBLEM, train_age=AGE)
    kinds = [
        SamplingWeights(COMMON, 1.5, 0.2, 0.5, 0.7),
        SamplingWeights(COMMON, 1.0, 0.2, 0.5, 0.7, 0.2),
        SamplingWeights(RARE, 2.0, 0.1),
        SamplingWeights(EVEN),
    ]
    found = []
    for chosen in ([0, 1, 2, 3], [0, 0, 2, 3], [3, 1, 1, 0], [3, 2, 3, 2]):
        stack = PopulationStack(problem, groups=1, siblings=4, seed=1, compensated=np.ones(4, dtype=bool))
        rows = np.arange(0, len(PROBLEM.y_train), 2)
        stack.refresh(rows, np.random.default_rng(0).dirichlet([0.5, 0.5, 0.5], (1, len(rows))).repeat(4, axis=0))
        drawn, row_weight = stack.draw(500, 0, stacked([kinds[i] for i in chosen]))
        weight = torch.ones(drawn.shape) if row_weight is None else row_weight
        found.append({i: (drawn[place], weight[place]) for place, i in enumerate(chosen)})
    for i in range(4):
        once = [each[i] for each in found if i in each]
        assert len(once) >= 2
        for drawn, weight in once[1:]:
            assert torch.equal(drawn, once[0][0])
            torch.testing.assert_close(weight, once[0][1])
    assert not torch.equal(found[0][0][0], found[0][1][0])


def test_a_class_without_rows_is_never_drawn() -> None:
    y = np.where(PROBLEM.y_train == 2, 1, PROBLEM.y_train)
    problem = dataclasses.replace(PROBLEM, y_train=y)
    stack = PopulationStack(problem, groups=1, seed=1, compensated=np.ones(1, dtype=bool))
    drawn, _ = stack.draw(5000, 0, _weights(1, np.array([0.2, 0.3, 0.5]), class_importance=0.5))
    shares = np.bincount(y[drawn[0].numpy()], minlength=3) / 5000
    np.testing.assert_allclose(shares, [0.4, 0.6, 0.0], atol=0.03)
    stack.fit(drawn)
    assert np.isfinite(stack.score(PROBLEM.x_val)).all()


def test_the_last_class_without_a_share_is_never_drawn() -> None:
    edges = population._edges(np.array([[0.7, 0.3 - 1e-9, 1e-9], [0.7, 0.3, 0.0], [1.0, 0.0, 0.0]]))
    assert edges[0].tolist() == [0.7, 0.3 - 1e-9 + 0.7]
    assert edges[1].tolist() == [0.7, 2.0]
    assert edges[2].tolist() == [2.0, 2.0]


def test_compensated_students_train_by_weights_and_offset() -> None:
    """A gradient against torch: one student has row weights, class weights and offsets, the other none."""
    stack = _stack(groups=1, siblings=2, kinds=StudentKinds.fixed(2, 3e-3, 0.0, 0.0), compensated=np.array([True, False]))
    stack.begin(0, total_steps=20)
    pool = np.arange(0, len(PROBLEM.y_train), 2)
    stack.refresh(pool, np.random.default_rng(0).dirichlet(np.ones(3), (2, len(pool))))
    weights = SamplingWeights(COMMON, 1.0, 0.1, 0.5, 0.5)
    rows, row_weight = stack.draw(32, 0, stacked([weights] * 2))
    assert row_weight is not None
    assert row_weight[0].std() > 0.1
    assert torch.equal(row_weight[1], torch.ones(32))
    x, y = torch.as_tensor(PROBLEM.x_train)[rows], torch.as_tensor(PROBLEM.y_train)[rows]
    prior = PROBLEM.train_counts / PROBLEM.train_counts.sum()
    for m in range(2):
        leaves = [parameter[m].clone().requires_grad_() for parameter in stack._parameters]
        w1, b1, w2, b2, w3, b3 = leaves
        logits = torch.relu(torch.relu(x[m] @ w1 + b1) @ w2 + b2) @ w3.T + b3[:, 0]
        weight = torch.ones(32)
        if m == 0:
            logits = logits + torch.as_tensor(weights.logit_offset(prior), dtype=torch.float32)
            weight = row_weight[0] * torch.as_tensor(weights.class_weight(prior), dtype=torch.float32)[y[0]]
        each = torch.nn.functional.cross_entropy(logits, y[m], reduction="none")
        expected = torch.autograd.grad((weight * each).sum() / weight.sum(), leaves)
        stack.net.gradient(stack._parameters, stack._gradients, x, y, stack._loss, None, stack._keep, row_weight)
        for found, wanted in zip(stack._gradients, expected, strict=True):
            torch.testing.assert_close(found[m], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("net", ["mlp", "transformer"])
def test_a_bias_is_added_to_the_output(net: str) -> None:
    stack = _stack(net=net)
    before = stack.score(PROBLEM.x_val).astype(np.float64)
    bias = np.random.default_rng(0).normal(size=(6, 3))
    stack.add_bias(bias)
    odds = before * np.exp(bias)[:, None]
    np.testing.assert_allclose(stack.score(PROBLEM.x_val), odds / odds.sum(axis=2, keepdims=True), atol=1e-5)
    stack.begin(0, total_steps=1)
    np.testing.assert_allclose(stack.score(PROBLEM.x_val), before, atol=1e-7)


def test_students_are_kept_and_come_back() -> None:
    stack = _stack()
    stack.begin(0, total_steps=30)
    stack.restore_kept()  # nothing was kept: nothing happens
    scores = []
    for epoch in range(3):
        stack.fit(*stack.draw(320, epoch, _weights(6)))
        scores.append(stack.score(PROBLEM.x_val))
        if epoch < 2:
            stack.keep(np.arange(6) % 2 == epoch)
    stack.restore_kept()
    found = stack.score(PROBLEM.x_val)
    np.testing.assert_array_equal(found[::2], scores[0][::2])
    np.testing.assert_array_equal(found[1::2], scores[1][1::2])
    stack.begin(1, total_steps=30)
    fresh = stack.score(PROBLEM.x_val)
    stack.restore_kept()  # of the last episode
    np.testing.assert_array_equal(stack.score(PROBLEM.x_val), fresh)


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
    stack.fit(*stack.draw(64, 0, _weights(6)))
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
        stack.fit(*stack.draw(32 * 8, 0, _weights(2)))
        scores.append(stack.score(PROBLEM.x_val))
    np.testing.assert_array_equal(scores[0][0], scores[1][0])
    assert np.abs(scores[0][1] - scores[1][1]).max() > 1e-3


def test_steps_do_not_depend_on_how_they_are_handed_over() -> None:
    scores = []
    for pieces in (1, 4):
        stack = _stack()
        stack.begin(0, total_steps=8)
        rows, _ = stack.draw(32 * 8, 0, _weights(6))
        for part in rows.chunk(pieces, dim=1):
            stack.fit(part)
        scores.append(stack.score(PROBLEM.x_val).tobytes())
    assert scores[0] == scores[1]


def test_draws_and_scores_do_not_depend_on_the_size_of_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, scores = [], []
    for size in (1, 1 << 20):
        monkeypatch.setattr(population, "DRAW_FLOATS", {"cpu": size})
        monkeypatch.setattr(population, "SCORE_FLOATS", {"cpu": 6000 * size})
        stack = _stack(compensated=np.ones(6, dtype=bool))
        scores.append(stack.score(PROBLEM.x_val))
        rows = np.arange(0, 1500, 2)
        stack.refresh(rows, np.random.default_rng(0).dirichlet(np.ones(3), (6, len(rows))))
        weights = [SamplingWeights(EVEN, hardness, 0.1, 0.5, 0.5) for hardness in np.linspace(0, 2, 6)]
        drawn.append(stack.draw(999, 0, stacked(weights)))
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert drawn[0][1] is not None
    assert drawn[1][1] is not None
    torch.testing.assert_close(drawn[0][1], drawn[1][1])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)


def test_losses_set_siblings_apart() -> None:
    weight = np.ones((6, 3))
    weight[1, 1:] = 20.0
    offset = np.zeros((6, 3))
    offset[3] = np.log(PROBLEM.train_counts / PROBLEM.train_counts.sum())
    gamma = np.array([0, 0, 0, 0, 0, 2.0])
    stack, prior = _stack(losses=Losses(weight, offset, gamma)), PROBLEM.train_counts / PROBLEM.train_counts.sum()
    stack.begin(0, total_steps=60)
    stack.fit(*stack.draw(32 * 60, 0, _weights(6, prior)))
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
        compensated = np.arange(6) % 2 == 0
        stack = _stack(device=device, net=net, losses=Losses(focal_gamma=np.linspace(0, 2, 6)), compensated=compensated)
        stack.begin(0, total_steps=10)
        rows, row_weight = stack.draw(320, 0, _weights(6))
        stack.fit(rows, row_weight)
        scores.append((rows.cpu().numpy(), stack.score(PROBLEM.x_val)))
        pool = np.arange(0, 1500, 3)
        stack.refresh(pool, stack.score(PROBLEM.x_train[pool]))
        hard = _weights(6, np.array([0.5, 0.3, 0.2]), 1.0, 0.1, class_importance=0.5, hardness_importance=0.5)
        again, row_weight = stack.draw(320, 1, hard)
        assert again.shape == (6, 320)
        assert row_weight is not None
        stack.fit(again, row_weight)
    np.testing.assert_array_equal(scores[0][0], scores[1][0])
    np.testing.assert_allclose(scores[0][1], scores[1][1], atol=1e-3)
