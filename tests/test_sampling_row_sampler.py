"""RowSampler: frequencies against the probabilities they stand for, state, speed, refusals."""

from __future__ import annotations

import time

import numpy as np
import pytest

from balancer.errors import InputError
from balancer.sampling.row_sampler import MAX_HARD_DRAWS, RowSampler, scored_part
from balancer.sampling.weights import ERROR_OFFSET, SamplingWeights


def _scores(fraud: np.ndarray) -> np.ndarray:
    return np.stack([1 - fraud, fraud], axis=1)


def test_class_then_uniform_row() -> None:
    label = np.array([0] * 90 + [1] * 10 + [-1] * 50)
    rows = RowSampler(label, 2).draw(40_000, SamplingWeights(np.array([0.7, 0.3])), np.random.default_rng(0))
    assert (label[rows] == 1).mean() == pytest.approx(0.3, abs=0.01)
    counts = np.bincount(rows, minlength=150)
    assert not counts[100:].any()
    np.testing.assert_allclose(counts[:90] / 40_000, 0.7 / 90, rtol=0.3)


@pytest.mark.parametrize("hardness", [0.5, 0.8, 1.0])
def test_hardness_follows_the_error(hardness: float) -> None:
    label = np.array([0] * 20 + [1] * 5)
    error = np.linspace(0.05, 0.95, 20)
    sampler = RowSampler(label, 2)
    sampler.refresh(np.arange(20), _scores(error))
    rows = sampler.draw(200_000, SamplingWeights(np.array([0.8, 0.2]), hardness, 0.25), np.random.default_rng(1))
    counts = np.bincount(rows[rows < 20], minlength=20)
    weight = (error + ERROR_OFFSET) ** hardness
    np.testing.assert_allclose(counts / counts.sum(), 0.75 * weight / weight.sum() + 0.25 / 20, atol=0.003)


@pytest.mark.parametrize("draws", [400, 5_000])
def test_no_row_is_drawn_over_and_over_for_being_hard(draws: int) -> None:
    label = np.array([0] * 1_000 + [1] * 5)
    error = np.full(1_000, 1e-4)
    error[:20] = 0.9
    sampler = RowSampler(label, 2)
    sampler.refresh(np.arange(1_000), _scores(error))
    weights = SamplingWeights(np.array([0.999, 0.001]), 3.0, 0.0)
    counts = sum(np.bincount(sampler.draw(draws, weights, np.random.default_rng(i)), minlength=1_005)[:1_000] for i in range(100))
    most = MAX_HARD_DRAWS * max(1.0, draws / 1_000)
    np.testing.assert_allclose(counts[:20] / 100, most, rtol=0.2)
    assert counts[:20].mean() / 100 == pytest.approx(most, rel=0.05)


def test_unscored_rows_share_what_is_left() -> None:
    label = np.array([0] * 100 + [1] * 5)
    sampler = RowSampler(label, 2)
    weights = SamplingWeights(np.array([0.8, 0.2]), 1.0, 0.0)
    sampler.refresh(np.arange(40), _scores(np.full(40, 0.2)))
    assert scored_part(40, 100, 50) == pytest.approx(0.8)
    drawn = np.concatenate([r[r < 100] for r in (sampler.draw(64, weights, np.random.default_rng(i)) for i in range(400))])
    assert (drawn < 40).mean() == pytest.approx(40 / (64 * 0.8), abs=0.02)
    # At many draws the scored rows get no more than their mean weight gives them.
    many = sampler.draw(100_000, weights, np.random.default_rng(0))
    assert (many[many < 100] < 40).mean() == pytest.approx(0.4, abs=0.02)


def test_state_resumes_exactly() -> None:
    label = (np.arange(500) % 20 == 0).astype(np.int16)
    first, second = RowSampler(label, 2), RowSampler(label, 2)
    weights = SamplingWeights(np.array([0.6, 0.4]), 1.3, 0.1)
    first.refresh(np.arange(300), _scores(np.random.default_rng(0).random(300)))
    first.draw(50, weights, np.random.default_rng(0))
    second.load_state(first.state())
    a, b = (s.draw(200, weights, np.random.default_rng(7)) for s in (first, second))
    assert (a == b).all()
    assert (first.draws == second.draws).all()
    assert first.repeats[1] > first.repeats[0]
    with pytest.raises(InputError, match="other training rows"):
        RowSampler(label[:100], 2).load_state(first.state())


def test_a_million_rows_rebuild_quickly() -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(1_000_000) < 0.01).astype(np.int16)
    sampler = RowSampler(label, 2)
    sampler.refresh(np.arange(1_000_000), _scores(rng.random(1_000_000)))
    spent = []
    for hardness in (0.9, 1.0, 1.1):
        started = time.process_time()
        sampler.draw(10, SamplingWeights(np.array([0.9, 0.1]), hardness), rng)
        spent.append(time.process_time() - started)
    assert min(spent) < 0.2  # 30 ms on an idle core


def test_refusals_change_nothing() -> None:
    sampler = RowSampler(np.array([0, 0, 1]), 2)
    with pytest.raises(InputError, match="not finite"):
        sampler.refresh(np.array([0, 1]), _scores(np.array([0.1, np.nan])))
    with pytest.raises(InputError, match="scores must be"):
        sampler.refresh(np.array([0, 1]), _scores(np.array([0.1])))
    assert np.isnan(sampler.state()["error"]).all()
    with pytest.raises(InputError, match="one class only"):
        RowSampler(np.zeros(4, int), 2)
    with pytest.raises(InputError, match="labels must lie"):
        RowSampler(np.array([0, 1, 2]), 2)
    with pytest.raises(InputError, match="weights are for 3"):
        sampler.draw(2, SamplingWeights(np.full(3, 1 / 3)), np.random.default_rng(0))
