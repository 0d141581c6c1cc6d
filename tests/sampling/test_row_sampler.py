"""RowSampler: frequencies against probabilities, these against plain arithmetic, state, size, errors."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.sampling import row_sampler
from balancer.sampling.row_sampler import MAX_HARD_DRAWS, NEWTON_STEPS, RowSampler, kept_share, largest_probability, scored_part
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
    counts = sum(np.bincount(sampler.draw(draws, weights, np.random.default_rng(i)), minlength=1_005)[:1_000] for i in range(300))
    most = MAX_HARD_DRAWS * max(1.0, draws / 1_000)
    np.testing.assert_allclose(counts[:20] / 300, most, rtol=0.17)
    assert counts[:20].mean() / 300 == pytest.approx(most, rel=0.02)


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
    second.load_state_dict(first.state_dict())
    a, b = (s.draw(200, weights, np.random.default_rng(7)) for s in (first, second))
    assert (a == b).all()
    with pytest.raises(InputError, match="other training rows"):
        RowSampler(label[:100], 2).load_state_dict(first.state_dict())


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


def _plain_hard_probabilities(error: np.ndarray, hardness: float, draws: int) -> np.ndarray:
    """The weights of scored rows as the module describes them, row by row."""
    scored = ~np.isnan(error)
    part = float(scored_part(int(scored.sum()), len(error), draws))
    weight = (error[scored].astype(np.float64) + ERROR_OFFSET) ** hardness
    most = float(largest_probability(int(scored.sum()), part * draws))
    limit = most * weight.sum()
    for _ in range(NEWTON_STEPS):
        over = weight > limit
        limit = most * weight[~over].sum() / (1.0 - most * over.sum())
    weight = np.minimum(weight, limit)
    result = np.full(len(error), (1.0 - part) / max(1, (~scored).sum()))
    result[scored] = part * weight / max(weight.sum(), 1e-300)
    return result


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    scored=st.floats(0, 1),
    hardness=st.floats(0.1, 3),
    floor=st.floats(0, 1),
    draws=st.integers(1, 500),
    seed=st.integers(0, 99),
)
def test_probabilities_are_those_of_the_description(rows: int, scored: float, hardness: float, floor: float, draws: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.permutation([0] * rows + [1] * 7 + [-1] * 3)
    error = np.where(rng.random(rows) < scored, rng.choice([0.001, 0.01, 0.3, 0.9, 1.0], rows) * rng.random(rows), np.nan).astype(
        np.float32
    )
    negatives = np.flatnonzero(label == 0)
    sampler = RowSampler(label, 2)
    sampler.refresh(negatives[~np.isnan(error)], _scores(error[~np.isnan(error)].astype(np.float64)))
    weights = SamplingWeights(np.array([0.6, 0.4]), hardness, floor)
    found = sampler.probabilities(weights, draws)
    expected = np.zeros(len(label))
    expected[label == 1] = 0.4 / 7
    expected[negatives] = 0.6 * (floor / rows + (1 - floor) * _plain_hard_probabilities(error, hardness, max(1, round(0.6 * draws))))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-12)
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize(("draws", "scored"), [(300, 0), (300, 40), (90, 40), (60, 120), (2000, 120)])
def test_rows_come_as_often_as_their_probabilities_say(draws: int, scored: int) -> None:
    rng = np.random.default_rng(0)
    label = rng.permutation([0] * 120 + [1] * 20 + [2] * 5 + [-1] * 10)
    sampler = RowSampler(label, 3)
    rows = np.flatnonzero(label == 0)[rng.permutation(120)[:scored]]
    fraud = rng.random(scored) ** 4
    sampler.refresh(rows, np.stack([1 - fraud, fraud / 2, fraud / 2], axis=1))
    weights = SamplingWeights(np.array([0.7, 0.2, 0.1]), 1.7, 0.15)
    expected, repeats = sampler.probabilities(weights, draws) * draws, 120_000 // draws
    counts = sum(np.bincount(sampler.draw(draws, weights, np.random.default_rng(i)), minlength=len(label)) for i in range(repeats))
    there = expected > 0
    assert not counts[~there].any()
    chi = ((counts[there] - repeats * expected[there]) ** 2 / (repeats * expected[there])).sum()
    assert chi < there.sum() + 4 * np.sqrt(2 * there.sum())  # 144 degrees of freedom: mean 144, deviation 17


def test_the_minority_is_kept() -> None:
    label = np.array([0] * 95 + [1] * 4 + [2])
    weights = SamplingWeights(np.array([0.95, 0.04, 0.01]))
    sampler, draws, repeats = RowSampler(label, 3), 10, 10_000
    rows = np.stack([sampler.draw(draws, weights, np.random.default_rng(i), keep_minority=True) for i in range(repeats)])
    assert (label[rows] > 0).any(axis=1).all()
    np.testing.assert_allclose(np.bincount(label[rows].ravel()) / rows.size, kept_share(weights.share, draws), rtol=0.06)
    by_row = sampler.probabilities(weights, draws, keep_minority=True)
    np.testing.assert_allclose([by_row[label == c].sum() for c in range(3)], kept_share(weights.share, draws))
    first = (label[rows] > 0).mean(axis=0)  # no place of the epoch is favoured
    np.testing.assert_allclose(first, first.mean(), rtol=0.1)
    alone = SamplingWeights(np.array([1.0, 0.0, 0.0]))  # a policy that wants no minority gets none
    assert not label[sampler.draw(draws, alone, np.random.default_rng(0), keep_minority=True)].any()


def test_a_class_without_share_or_rows_is_never_drawn() -> None:
    label = np.array([0] * 50 + [1] * 50)
    share = np.full(7, 0.1)
    share[[0, 1]] = 0.1, 0.4  # sums that round below 1 must not leave a crack
    rows = RowSampler(label, 7).draw(50_000, SamplingWeights(share), np.random.default_rng(0))
    assert (label[rows] == 1).mean() == pytest.approx(0.8, abs=0.01)
    with pytest.raises(InputError, match="sum to zero"):
        RowSampler(label, 3).draw(5, SamplingWeights(np.array([0.0, 0.0, 1.0])), np.random.default_rng(0))


def test_other_shares_cost_nothing_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    for name in ("_ScoredRows", "_HardTable"):
        whole = getattr(row_sampler, name)
        monkeypatch.setattr(row_sampler, name, lambda *given, whole=whole, name=name: (built.append(name), whole(*given))[1])
    rng = np.random.default_rng(0)
    label = (np.arange(200_000) % 50 == 0).astype(np.int8)
    sampler = RowSampler(label, 2)
    sampler.refresh(np.arange(100_000), _scores(rng.random(100_000)))
    for share, floor, n in ((0.9, 0.05, 100), (0.6, 0.05, 100), (0.6, 0.3, 5_000), (0.3, 0.0, 100)):
        sampler.draw(n, SamplingWeights(np.array([share, 1 - share]), 1.0, floor), rng)
        sampler.probabilities(SamplingWeights(np.array([share, 1 - share]), 1.0, floor), n)
    assert built == ["_ScoredRows", "_HardTable"]
    sampler.draw(100, SamplingWeights(np.array([0.9, 0.1]), 0.5), rng)
    assert built[2:] == ["_HardTable"]  # another hardness: no sort
    sampler.refresh(np.arange(10), _scores(rng.random(10)))
    sampler.draw(100, SamplingWeights(np.array([0.9, 0.1]), 0.0), rng)
    assert len(built) == 3  # and none at all without hardness
    sampler.draw(100, SamplingWeights(np.array([0.9, 0.1]), 0.5), rng)
    assert built[3:] == ["_ScoredRows", "_HardTable"]


def test_more_rows_than_torch_can_weigh() -> None:
    num = 2**24 + 5
    with pytest.raises(RuntimeError, match="2\\^24"):
        next(iter(torch.utils.data.WeightedRandomSampler(torch.ones(1).expand(num), 1)))
    label = np.zeros(num, dtype=np.int8)
    label[::1000] = 1
    sampler = RowSampler(label, 2)
    held = sum(array.nbytes for array in vars(sampler).values() if isinstance(array, np.ndarray))
    assert held < 8.1 * num
    rng = np.random.default_rng(0)
    started = time.process_time()
    for share in np.linspace(0.5, 0.9, 20):  # twenty changes of weights
        rows = sampler.draw(256, SamplingWeights(np.array([share, 1 - share])), rng)
    assert time.process_time() - started < 0.5  # 5 ms on an idle core
    assert rows.max() > 2**23
    rows = sampler.draw(200_000, SamplingWeights(np.array([0.5, 0.5])), rng)
    np.testing.assert_allclose(np.histogram(rows, bins=8, range=(0, num))[0], 25_000, rtol=0.03)
    assert label[rows].mean() == pytest.approx(0.5, abs=0.01)


def test_rows_of_every_class_are_found_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sampler, "CHUNK", 7)
    label = np.random.default_rng(0).integers(-1, 4, 100)
    sampler = RowSampler(label, 4)
    for c in range(4):
        np.testing.assert_array_equal(sampler._class_rows(c), np.flatnonzero(label == c))
    rows = sampler.draw(4_000, SamplingWeights(np.full(4, 0.25)), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(label[rows]) / 4_000, 0.25, atol=0.03)


def test_refusals_change_nothing() -> None:
    sampler = RowSampler(np.array([0, 0, 1]), 2)
    with pytest.raises(InputError, match="not finite"):
        sampler.refresh(np.array([0, 1]), _scores(np.array([0.1, np.nan])))
    with pytest.raises(InputError, match="scores must be"):
        sampler.refresh(np.array([0, 1]), _scores(np.array([0.1])))
    with pytest.raises(InputError, match="rows must lie in 0 to 2"):
        sampler.refresh(np.array([0, 3]), _scores(np.array([0.1, 0.2])))
    assert not len(sampler.state_dict()["error"])
    for corrupt, message in (
        ({"error": np.zeros(2, np.float32)}, "corrupt"),
        ({"scored": np.array([5])}, "corrupt"),
        ({"counts": np.array([1, 2])}, "other"),
    ):
        with pytest.raises(InputError, match=message):
            sampler.load_state_dict({**sampler.state_dict(), **corrupt})
    with pytest.raises(InputError, match="no 'counts'"):
        sampler.load_state_dict({"error": np.zeros(2), "scored": np.zeros(2)})
    assert not len(sampler.state_dict()["error"])
    with pytest.raises(InputError, match="one class only"):
        RowSampler(np.zeros(4, int), 2)
    with pytest.raises(InputError, match="labels must lie"):
        RowSampler(np.array([0, 1, 2]), 2)
    with pytest.raises(InputError, match="weights are for 3"):
        sampler.draw(2, SamplingWeights(np.full(3, 1 / 3)), np.random.default_rng(0))
