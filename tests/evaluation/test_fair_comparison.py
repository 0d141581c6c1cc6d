"""Two models at equal false alarms and at equal frauds, and the interval of the difference."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.evaluation.fair_comparison import FEWEST_FRAUDS, compare_fairly


def rows(seed: int, *, better: float = 0.0, n: int = 4_000, group: int = 400) -> tuple[np.ndarray, ...]:
    """Fraud, two scores of which the first is better by so much, and entities."""
    random = np.random.default_rng(seed)
    fraud = random.random(n) < 0.05
    common = random.normal(size=n) + 2.0 * fraud
    first, second = (common + random.normal(size=n) * 0.6 + lead * fraud for lead in (better, 0.0))
    return fraud, first, second, random.integers(0, group, n)


def test_counts_by_hand() -> None:
    fraud = np.array([1, 1, 0, 1, 0, 0, 1, 0], dtype=bool)
    run = np.array([8, 7, 6, 5, 4, 3, 2, 1.0])
    other = np.array([8, 3, 7, 2, 6, 5, 1, 4.0])  # fraud, legitimate, legitimate, legitimate, legitimate, frauds
    amount = np.array([10, 20, 99, 40, 99, 99, -5, 99.0])
    found = compare_fairly(fraud, run >= 5, run, other, amount=amount)  # the run: 3 frauds, 1 false alarm
    assert found.frauds.value == 2  # the other catches 1 with 1 false alarm
    assert found.money.value == 60
    assert found.false_alarms.value == 1 - 4
    assert found.frauds.interval is None  # 4 frauds are too few


def test_rows_of_equal_scores_count_in_part() -> None:
    fraud = np.array([1, 0] * 20, dtype=bool)
    run = np.arange(40.0)[::-1]
    constant = np.zeros(40)
    found = compare_fairly(fraud, run >= 20, run, constant)  # 10 frauds, 10 false alarms
    assert found.frauds.value == pytest.approx(11 - 10)  # an eleventh fraud comes before the eleventh false alarm
    assert found.false_alarms.value == pytest.approx(9 - 10)  # and the tenth fraud before the tenth false alarm


def test_the_same_model_has_no_difference() -> None:
    fraud, score, _, group = rows(0)
    found = compare_fairly(fraud, score > 2, score, score * 3 + 1, group=group, amount=np.ones(len(fraud)))
    for each in (found.frauds, found.money, found.false_alarms):
        assert each.value == 0
        assert each.interval is not None
        assert each.interval[0] <= 0 <= each.interval[1]


def test_the_interval_holds_its_level_without_a_difference_and_finds_a_large_one() -> None:
    missed = found_better = 0
    for seed in range(60):
        fraud, first, second, group = rows(seed)
        low, high = compare_fairly(fraud, first > 2.2, first, second, group=group).frauds.interval or (1.0, -1.0)
        missed += not low <= 0 <= high
        fraud, first, second, group = rows(seed, better=0.8)
        found_better += (compare_fairly(fraud, first > 2.2, first, second, group=group).frauds.interval or (0.0, 0.0))[0] > 0
    assert missed <= 6  # of 60, where 3 are expected
    assert found_better >= 55


def test_the_interval_agrees_with_resampling() -> None:
    fraud, first, second, group = rows(3, better=0.3)
    alarm = first > 2.2
    found = compare_fairly(fraud, alarm, first, second, group=group)
    random, drawn = np.random.default_rng(0), []
    members = [np.flatnonzero(group == each) for each in range(400)]
    for _ in range(300):
        places = np.concatenate([members[each] for each in random.integers(0, 400, 400)])
        drawn.append(compare_fairly(fraud[places], alarm[places], first[places], second[places]).frauds.value)
    assert found.frauds.interval is not None
    low, high = np.quantile(np.array(drawn, dtype=float), (0.025, 0.975))
    assert found.frauds.interval[1] - found.frauds.interval[0] == pytest.approx(high - low, rel=0.35)


@given(st.integers(0, 10_000), st.floats(-3, 6), st.booleans())
def test_frauds_and_false_alarms_never_contradict_each_other(seed: int, threshold: float, coarse: bool) -> None:
    fraud, first, second, _ = rows(seed, n=300)
    first, second = (np.round(each) if coarse else each for each in (first, second))
    found = compare_fairly(fraud, first > threshold, first, second)
    if found.frauds.value is None or found.false_alarms.value is None:
        return
    assert found.frauds.value * found.false_alarms.value <= 1e-9
    if found.frauds.interval and found.false_alarms.interval:
        low, high = found.false_alarms.interval
        assert low - 1e-9 <= found.false_alarms.value <= high + 1e-9
        assert found.frauds.interval[0] <= 0 or high <= 0
        assert found.frauds.interval[1] >= 0 or low >= 0


def test_rows_of_one_entity_count_together() -> None:
    fraud, first, second, _ = rows(5, better=0.8)
    alone = compare_fairly(fraud, first > 2.2, first, second).frauds.interval
    together = compare_fairly(*(np.tile(each, 9) for each in (fraud, first > 2.2, first, second)), group=np.tile(np.arange(len(fraud)), 9))
    assert alone is not None and together.frauds.interval is not None
    assert together.frauds.interval[1] - together.frauds.interval[0] > 8 * (alone[1] - alone[0]) * 0.9


@pytest.mark.parametrize("which", ["no alarm", "no fraud"])
def test_where_there_is_nothing_to_compare(which: str) -> None:
    fraud, first, second, _ = rows(1)
    found = compare_fairly(fraud & (which != "no fraud"), (first > 2) & (which != "no alarm"), first, second)
    assert found.frauds.value is found.money.value is found.false_alarms.value is None


def test_few_frauds_have_no_interval() -> None:
    fraud = np.zeros(200, dtype=bool)
    fraud[: FEWEST_FRAUDS - 1] = True
    score = np.linspace(1, 0, 200)
    assert compare_fairly(fraud, score > 0.9, score, score[::-1]).frauds.interval is None
    fraud[FEWEST_FRAUDS - 1] = True
    assert compare_fairly(fraud, score > 0.9, score, score[::-1]).frauds.interval is not None


def test_every_row_an_alarm() -> None:
    fraud, first, second, group = rows(2)
    found = compare_fairly(fraud, np.ones(len(fraud), dtype=bool), first, second, group=group)
    assert found.frauds.value == 0


@pytest.mark.parametrize("share", [0.001, 0.5])
def test_many_rows_take_a_moment(share: float) -> None:
    fraud, first, second, group = rows(4, n=350_000, group=20_000)
    started = time.process_time()
    compare_fairly(fraud, first > np.quantile(first, 1 - share), first, second, group=group, amount=np.ones(len(fraud)))
    assert time.process_time() - started < 2  # 0.2 s on a quiet core
