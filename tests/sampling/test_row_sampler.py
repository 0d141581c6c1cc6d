"""RowSampler: frequencies against probabilities, these against plain arithmetic, state, size, errors."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.sampling import groups, row_sampler
from balancer.sampling.hard_table import MAX_HARD_DRAWS, NEWTON_STEPS, largest_probability, scored_part
from balancer.sampling.row_sampler import RowSampler, is_chosen, kept_share
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
    label = np.array([0] * 40 + [1] * 40)
    error = np.concatenate([np.linspace(0.05, 0.95, 40), np.linspace(0.05, 0.95, 40) ** 2])
    sampler = RowSampler(label, 2)
    sampler.refresh(np.arange(80), _scores(np.where(label == 0, error, 1 - error)))
    for share in ([0.4, 0.6], [0.5, 0.5], [0.6, 0.4]):
        weights = SamplingWeights(np.array(share), hardness, 0.25)
        rows = np.concatenate([sampler.draw(10, weights, np.random.default_rng(i)) for i in range(10_000)])  # few: nothing is cut
        counts = np.bincount(rows, minlength=80)
        for c, part in enumerate((slice(40), slice(40, 80))):
            weight = (error[part] + ERROR_OFFSET) ** (hardness if share[c] <= 0.5 else 0.0)  # only where rows have to be chosen
            np.testing.assert_allclose(counts[part] / counts[part].sum(), 0.75 * weight / weight.sum() + 0.25 / 40, atol=0.005)


def test_rounded_shares_count_as_the_prior() -> None:
    prior = np.array([0.7, 0.2, 0.1])
    assert is_chosen(prior.astype(np.float32), prior).all()
    assert is_chosen(prior * (1 + 1e-7), prior).all()
    assert is_chosen(np.array([0.5, 0.2, 0.3]), prior).tolist() == [True, True, False]


@pytest.mark.parametrize("draws", [400, 5_000])
def test_no_row_is_drawn_over_and_over_for_being_hard(draws: int) -> None:
    label = np.array([0] * 1_000 + [1] * 5)
    error = np.full(1_000, 1e-4)
    error[:20] = 0.9
    sampler = RowSampler(label, 2)
    sampler.refresh(np.arange(1_000), _scores(error))
    weights = SamplingWeights(np.array([0.995, 0.005]), 3.0, 0.0)
    draws = round(draws / 0.995)
    counts = sum(np.bincount(sampler.draw(draws, weights, np.random.default_rng(i)), minlength=1_005)[:1_000] for i in range(300))
    most = max(MAX_HARD_DRAWS, 0.995 * draws / 1_000)  # or as often as the average row of the class
    np.testing.assert_allclose(counts[:20] / 300, most, rtol=0.17)
    assert counts[:20].mean() / 300 == pytest.approx(most, rel=0.02)


def test_a_class_whose_rows_are_all_drawn_is_drawn_evenly() -> None:
    label = np.array([0] * 1_000 + [1] * 1_000)
    sampler = RowSampler(label, 2)
    error = np.where(np.arange(2_000) % 10 == 0, 0.9, 0.01)
    sampler.refresh(np.arange(2_000), _scores(np.where(label == 0, error, 1 - error)))
    weights = SamplingWeights(np.array([0.5, 0.5]), 2.0, 0.0)
    few, many = sampler.probabilities(weights, 400) * 400, sampler.probabilities(weights, 8_000) * 8_000
    np.testing.assert_allclose(few[[0, 1_000]], MAX_HARD_DRAWS, rtol=0.02)
    assert few[1] < 0.05
    np.testing.assert_allclose(many, 4.0)  # four draws of each row


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
    if most * scored.sum() > 1:
        limit = most * weight.sum()
        for _ in range(NEWTON_STEPS):
            over = weight > limit
            limit = most * weight[~over].sum() / (1.0 - most * over.sum())
        weight = np.minimum(weight, limit)
    else:  # the average row is drawn as often: no room for hardness
        weight = np.ones_like(weight)
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
    negatives, positives = np.flatnonzero(label == 0), np.flatnonzero(label == 1)
    sampler = RowSampler(label, 2)
    sampler.refresh(negatives[~np.isnan(error)], _scores(error[~np.isnan(error)].astype(np.float64)))
    positive_error = rng.random(7).astype(np.float32)
    sampler.refresh(positives[:4], _scores(1 - positive_error[:4].astype(np.float64)))
    positive_error[4:] = np.nan
    weights = SamplingWeights(np.array([0.6, 0.4]), hardness, floor)
    found = sampler.probabilities(weights, draws)
    expected = np.zeros(len(label))
    for share, members, errors in ((0.6, negatives, error), (0.4, positives, positive_error)):
        expected[members] = share / len(members)
        if share <= len(members) / (rows + 7):
            hard = _plain_hard_probabilities(errors, hardness, max(1, round(share * draws)))
            expected[members] = share * (floor / len(members) + (1 - floor) * hard)
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
    rare = np.flatnonzero(label == 1)[: scored // 4]
    sampler.refresh(rare, rng.dirichlet(np.ones(3), len(rare)))
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
    for name in ("SortedErrors", "HardTable"):
        whole = getattr(row_sampler, name)
        monkeypatch.setattr(row_sampler, name, lambda *given, whole=whole, name=name: (built.append(name), whole(*given))[1])
    rng = np.random.default_rng(0)
    label = (np.arange(200_000) % 50 == 0).astype(np.int8)
    sampler = RowSampler(label, 2)
    sampler.refresh(np.arange(100_000), _scores(rng.random(100_000)))
    for share, floor, n in ((0.9, 0.05, 100), (0.6, 0.05, 100), (0.6, 0.3, 5_000), (0.3, 0.0, 100)):
        sampler.draw(n, SamplingWeights(np.array([share, 1 - share]), 1.0, floor), rng)
        sampler.probabilities(SamplingWeights(np.array([share, 1 - share]), 1.0, floor), n)
    assert built == ["SortedErrors", "HardTable"]  # of the class whose rows have to be chosen
    sampler.draw(100, SamplingWeights(np.array([0.9, 0.1]), 0.5), rng)
    assert built[2:] == ["HardTable"]  # another hardness: no sort
    sampler.refresh(np.arange(10), _scores(rng.random(10)))
    sampler.draw(100, SamplingWeights(np.array([0.9, 0.1]), 0.0), rng)
    assert len(built) == 3  # and none at all without hardness
    sampler.draw(100, SamplingWeights(np.array([0.9, 0.1]), 0.5), rng)
    assert built[3:] == ["SortedErrors", "HardTable"]


def test_more_rows_than_torch_can_weigh() -> None:
    num = 2**24 + 5
    with pytest.raises(RuntimeError, match="2\\^24"):
        next(iter(torch.utils.data.WeightedRandomSampler(torch.ones(1).expand(num), 1)))
    label = np.zeros(num, dtype=np.int8)
    label[::1000] = 1
    sampler = RowSampler(label, 2)
    held = sum(array.nbytes for array in vars(sampler).values() if isinstance(array, np.ndarray))
    assert held < 5.1 * num  # one byte for the class of a row, and four for its place
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
    monkeypatch.setattr(groups, "CHUNK", 7)
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


def _loss_weights(
    label: np.ndarray, error: np.ndarray, age: np.ndarray | None, weights: SamplingWeights, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probability and loss weight of every row, by plain arithmetic over all rows."""
    probability, result = np.zeros(len(label)), np.zeros(len(label))
    prior = np.bincount(label[label >= 0]) / (label >= 0).sum()
    by_class = (prior / weights.share) ** weights.class_importance
    by_class /= (weights.share * by_class).sum()
    for c, share in enumerate(weights.share):
        rows = np.flatnonzero(label == c)
        recent = np.ones(len(rows)) if age is None else 2.0 ** (-(age[rows] - age[rows].min()) / weights.half_life)
        recent /= recent.sum()
        hard = np.full(len(rows), 1 / len(rows))
        if share <= prior[c] and not np.isnan(error[label >= 0]).all():
            hard = _plain_hard_probabilities(error[rows], weights.hardness, max(1, round(share * draws)))
        drawn = (weights.floor / len(rows) + (1 - weights.floor) * hard) * recent
        drawn /= drawn.sum()
        weight = (recent / drawn) ** weights.hardness_importance
        probability[rows], result[rows] = share * drawn, by_class[c] * weight / (drawn * weight).sum()
    return probability, result


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=12),
    scored=st.floats(0.01, 1),
    hardness=st.floats(0.1, 3),
    floor=st.floats(0.01, 1),
    importance=st.tuples(st.floats(0, 1), st.floats(0.1, 1)),
    half_life=st.none() | st.floats(0.1, 2),
    draws=st.integers(1, 500),
    seed=st.integers(0, 99),
)
def test_loss_weights_are_those_of_the_description(
    counts: list[int],
    scored: float,
    hardness: float,
    floor: float,
    importance: tuple[float, float],
    half_life: float | None,
    draws: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.concatenate([np.repeat(np.arange(len(counts)), counts), [-1] * 3]))
    error = np.where(rng.random(len(label)) < scored, rng.random(len(label)) ** 3, np.nan).astype(np.float32)
    age = None if half_life is None else rng.random(len(label)).astype(np.float32)
    share = rng.dirichlet(np.ones(len(counts)) * 2) * 0.9 + 0.1 / len(counts)
    weights = SamplingWeights(share, hardness, floor, *importance, np.inf if half_life is None else half_life)
    sampler = RowSampler(label, len(counts), age=age)
    known = np.flatnonzero(~np.isnan(error) & (label >= 0))
    score = np.zeros((len(known), len(counts)))
    score[np.arange(len(known)), label[known]] = 1 - error[known]
    sampler.refresh(known, score)
    if not len(known):  # no score at all: hardness has no effect
        error[:] = np.nan
    probability, expected = _loss_weights(label, error, age, weights, draws)
    np.testing.assert_allclose(sampler.probabilities(weights, draws), probability, rtol=1e-3, atol=1e-9)
    some = rng.permutation(len(label))[: 1 + seed % len(label)]  # a batch of rows, not all
    np.testing.assert_allclose(sampler.loss_weights(some, weights, draws), expected[some], rtol=1e-3, atol=1e-9)
    everything = sampler.loss_weights(np.arange(len(label)), weights, draws)
    assert (everything * sampler.probabilities(weights, draws)).sum() == pytest.approx(1, rel=1e-3)  # mean 1 over the draws
    assert not everything[label < 0].any()


def test_full_importance_restores_the_natural_objective() -> None:
    rng = np.random.default_rng(0)
    label = rng.permutation([0] * 500 + [1] * 40)
    sampler = RowSampler(label, 2)
    sampler.refresh(np.arange(540), _scores(rng.random(540)))
    weights = SamplingWeights(np.array([0.6, 0.4]), 1.0, 0.1, 1.0, 1.0)
    product = sampler.probabilities(weights, 200) * sampler.loss_weights(np.arange(540), weights, 200)
    np.testing.assert_allclose(product, 1 / 540, rtol=1e-5)


def test_weights_of_a_batch_do_not_cost_a_pass_over_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    label = (np.arange(50_000) % 50 == 0).astype(np.int8)
    sampler = RowSampler(label, 2, age=rng.random(50_000))
    sampler.refresh(np.arange(20_000), _scores(rng.random(20_000)))
    asked: list[int] = []
    within = RowSampler._within
    monkeypatch.setattr(RowSampler, "_within", lambda self, c, *rest: (asked.append(c), within(self, c, *rest))[1])
    weights = SamplingWeights(np.array([0.6, 0.4]), 1.0, 0.1, 0.5, 0.5, half_life=0.5)
    for _ in range(5):
        sampler.loss_weights(rng.integers(0, 50_000, 256), weights, 1_000)
    assert asked == [0]  # once for an epoch and a class that hardness acts in
    sampler.refresh(np.arange(5), _scores(np.full(5, 0.5)))
    sampler.loss_weights(np.arange(60), weights, 1_000)
    sampler.loss_weights(np.arange(60), SamplingWeights(np.array([0.6, 0.4]), 1.0, 0.1, 0.5, 0.5), 1_000)  # no age: no pass at all
    assert asked == [0, 0]


@pytest.mark.parametrize("half_life", [0.0625, 0.3, 2.0])
@pytest.mark.parametrize("hardness", [0.0, 1.0])
def test_recent_rows_come_as_often_as_their_probabilities_say(half_life: float, hardness: float) -> None:
    rng = np.random.default_rng(0)
    label = rng.permutation([0] * 100 + [1] * 30 + [-1] * 5)
    age = rng.random(135)
    sampler = RowSampler(label, 2, age=age)
    sampler.refresh(np.arange(60), _scores(rng.random(60)))
    weights, draws, repeats = SamplingWeights(np.array([0.7, 0.3]), hardness, 0.1, half_life=half_life), 500, 200
    expected = sampler.probabilities(weights, draws) * draws * repeats
    counts = sum(np.bincount(sampler.draw(draws, weights, np.random.default_rng(i)), minlength=135) for i in range(repeats))
    known = label >= 0
    assert not counts[~known].any()
    chi = ((counts[known] - expected[known]) ** 2 / expected[known]).sum()
    assert chi < known.sum() + 4 * np.sqrt(2 * known.sum())
    if hardness == 0:
        negatives = np.flatnonzero(label == 0)
        old, new = negatives[np.argmax(age[negatives])], negatives[np.argmin(age[negatives])]
        assert expected[new] / expected[old] == pytest.approx(2 ** ((age[old] - age[new]) / half_life), rel=1e-4)


def test_a_row_far_newer_than_the_others_does_not_stop_the_draws() -> None:
    """A wrong date: by rejection alone a draw of another row would take a million trials."""
    num = 200_000
    label = (np.arange(num) % 100 == 0).astype(np.int8)
    age = np.full(num, 0.9, dtype=np.float32)
    age[1], age[2:5_000] = 0.0, 0.8
    sampler = RowSampler(label, 2, age=age)
    weights = SamplingWeights(np.array([0.5, 0.5]), half_life=0.05)
    started = time.process_time()
    rows = sampler.draw(20_000, weights, np.random.default_rng(0))
    assert time.process_time() - started < 2.0  # 20 ms on an idle core
    expected = sampler.probabilities(weights, 20_000)
    assert (rows == 1).mean() == pytest.approx(expected[1], abs=0.01)
    assert label[rows].mean() == pytest.approx(0.5, abs=0.01)
    rare = rows[label[rows] == 1]
    assert (rare < 5_000).mean() == pytest.approx(expected[:5_000][label[:5_000] == 1].sum() / 0.5, abs=0.01)
    again = sampler.draw(20_000, weights, np.random.default_rng(0))
    np.testing.assert_array_equal(again, rows)  # also with what the first draw has kept


@pytest.mark.parametrize("age", [np.zeros(3), np.array([0.0, 1.0, np.nan, 0.5]), np.array([-0.1, 0, 0, 0])])
def test_refuses_ages(age: np.ndarray) -> None:
    with pytest.raises(InputError, match="age must be"):
        RowSampler(np.array([0, 0, 1, 1]), 2, age=age)


@settings(max_examples=40, deadline=None)
@given(num_classes=st.integers(2, 40), rows=st.integers(2, 300), chunk=st.integers(1, 400), seed=st.integers(0, 9))
def test_many_classes_are_drawn_like_few(num_classes: int, rows: int, chunk: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.concatenate([rng.permutation(num_classes)[:2], rng.integers(-1, num_classes, rows)])
    with pytest.MonkeyPatch.context() as patch:
        for module in (row_sampler, groups):
            patch.setattr(module, "CHUNK", chunk)
        sampler = RowSampler(label, num_classes)
        patch.setattr(groups, "_FEW_CLASSES", 0 if num_classes <= groups._FEW_CLASSES else 99)
        other = RowSampler(label, num_classes)
        for one in (sampler, other):
            for c in range(num_classes):
                np.testing.assert_array_equal(one._class_rows(c), np.flatnonzero(label == c))
        known = rng.permutation(len(label))[: len(label) // 2]
        score = rng.dirichlet(np.ones(num_classes), len(known))
        weights = SamplingWeights(rng.dirichlet(np.ones(num_classes)), 1.0, 0.1)
        drawn = []
        for one in (sampler, other):
            one.refresh(known, score)
            drawn.append(one.draw(200, weights, np.random.default_rng(1)))
        np.testing.assert_array_equal(drawn[0], drawn[1])
        state = sampler.state_dict()
        taken = np.concatenate([one._class_rows(c) for one in [sampler] for c in range(num_classes)])[state["scored"]]
        assert set(taken.tolist()) == set(known[label[known] >= 0].tolist())


def test_a_state_of_version_0_1_holds_the_commonest_class_alone() -> None:
    label = np.array([1, 0, 0, 1, 0, -1])
    sampler = RowSampler(label, 2)
    error = np.array([0.25, 0.75], dtype=np.float32)
    sampler.load_state_dict({"counts": np.array([3, 2]), "scored": np.array([0, 2], dtype=np.uint32), "error": error})
    expected = np.full(6, np.nan)
    expected[[1, 4]] = error  # the first and the third row of class 0
    found = np.full(6, np.nan)
    found[np.concatenate([sampler._class_rows(0), sampler._class_rows(1)])[sampler.state_dict()["scored"]]] = sampler.state_dict()["error"]
    np.testing.assert_array_equal(found, expected)


def test_a_sampler_shows_what_it_holds() -> None:
    sampler = RowSampler(np.array([0, 0, 1]), 2, age=np.zeros(3))
    assert repr(sampler) == "RowSampler(rows=3, num_classes=2, scored=0, age=True)"
    sampler.refresh(np.array([0, 2]), _scores(np.array([0.1, 0.2])))
    assert "scored=2" in repr(sampler)
