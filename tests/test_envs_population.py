"""The stack of students against torch's autograd and AdamW, and against the row sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from balancer.envs.population import HIDDEN, PopulationStack, StudentKinds
from balancer.envs.problem import synthetic_problem
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.weights import SamplingWeights

PROBLEM = synthetic_problem(3, rows=1500)


def _stack(**changed: object) -> PopulationStack:
    return PopulationStack(PROBLEM, **({"groups": 3, "siblings": 2, "batch_size": 32, "seed": 1} | changed))  # type: ignore[arg-type]


def test_equals_autograd_and_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    def fixed(seed: int, episode: int, groups: int, siblings: int) -> StudentKinds:
        assert (seed, episode) == (1, 0)
        full = np.ones(groups * siblings)
        return StudentKinds(3e-3 * full, 0.1 * full, 0 * full, HIDDEN * full)

    monkeypatch.setattr(StudentKinds, "drawn", fixed)
    stack = _stack(groups=2, siblings=1)
    stack.begin(0, total_steps=20)
    nets = []
    for m in range(2):
        net = nn.Sequential(
            nn.Linear(PROBLEM.x_train.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 3)
        )
        with torch.no_grad():
            for own, parameter in zip(stack._parameters, net.parameters(), strict=True):
                parameter.copy_(own[m].T.reshape(parameter.shape))
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
    assert kinds.width.max() <= HIDDEN
