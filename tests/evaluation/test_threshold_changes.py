"""Two thresholds on the same rows: values equal counting, and intervals hold what they should."""

from __future__ import annotations

import time

import numpy as np
import pytest

from balancer.errors import InputError
from balancer.evaluation import threshold_changes
from balancer.evaluation.intervals import wilson
from balancer.evaluation.operating_points import NO_ALARM
from balancer.evaluation.threshold_changes import Change, Changes, EvaluatedRows


def drawn(seed: int, n: int = 4_000, entities: int = 300) -> dict[str, np.ndarray]:
    """Labels (some unknown), scores, times over 20 days, entities, and amounts with refunds."""
    rng = np.random.default_rng(seed)
    label = rng.choice([-1, 0, 1], n, p=[0.05, 0.85, 0.1])
    score = np.clip(rng.normal(0.2 + 0.4 * (label == 1), 0.15), 0, 1)
    return {
        "label": label,
        "score": score,
        "time": np.sort(rng.random(n)) * 20 * 86_400,
        "entity": rng.integers(0, entities, n),
        "amount": rng.normal(40, 30, n),
    }


def evaluated(seed: int = 0, **left_out: None) -> EvaluatedRows:
    columns = {**drawn(seed), **left_out}
    return EvaluatedRows.of(columns.pop("label"), columns.pop("score"), **columns)


def test_values_are_those_of_counting() -> None:
    columns, (current, proposed) = drawn(1), (0.5, 0.3)
    known = columns["label"] >= 0
    fraud, score = columns["label"][known] > 0, columns["score"][known]
    money = np.where(fraud, np.maximum(columns["amount"][known], 0), 0)
    changes = Changes.of(evaluated(1), current, proposed)
    for place, threshold in enumerate((current, proposed)):
        alarm = score >= threshold
        days = np.ptp(columns["time"][known]) / 86_400
        expected = {
            "caught": (fraud & alarm).sum(),
            "missed": (fraud & ~alarm).sum(),
            "alarms_per_day": alarm.sum() / days,
            "false_alarms_per_day": (alarm & ~fraud).sum() / days,
            "amount_caught": money[alarm].sum(),
            "amount_missed": money[~alarm].sum(),
            "recall": (fraud & alarm).sum() / fraud.sum(),
            "precision": (fraud & alarm).sum() / alarm.sum(),
            "false_positive_rate": (alarm & ~fraud).sum() / (~fraud).sum(),
        }
        for name, value in expected.items():
            assert getattr(changes, name)()[place].value == pytest.approx(float(value)), name
        cost = 3 * alarm.sum() + 0.5 * money[~alarm].sum()
        assert changes.cost(3.0, 0.5)[place].value == pytest.approx(cost)
    assert changes.cost(3.0, 0.5).difference.value == pytest.approx(
        changes.cost(3.0, 0.5).proposed.value - changes.cost(3.0, 0.5).current.value
    )  # type: ignore[operator]


def test_an_interval_of_a_difference_leaves_0_out_only_where_it_is_clear() -> None:
    rows = evaluated()
    same = Changes.of(rows, 0.5, 0.5).cost(5, 1)
    assert same.difference.value == 0 and not same.clear and not same.improves
    caught = Changes.of(rows, 0.5, 0.2).caught()
    assert caught.clear and caught.improves
    alarms = Changes.of(rows, 0.5, 0.2).alarms_per_day()
    assert alarms.clear and not alarms.improves, "more alarms are no improvement"
    nearly = Changes.of(rows, 0.5, float(np.sort(rows.score[rows.score >= 0.5])[0]) + 1e-9).caught()
    assert not nearly.clear, "one row is no clear difference"


def test_zero_alarms_have_no_precision_and_the_interval_of_wilson_elsewhere() -> None:
    rows = evaluated()
    changes = Changes.of(rows, NO_ALARM, 0.0)
    assert changes.precision().current == (None, None)
    assert changes.precision().difference.value is None
    assert changes.recall().current == wilson(0, int(rows.fraud.sum()))
    assert changes.recall().proposed == wilson(int(rows.fraud.sum()), int(rows.fraud.sum()))


def test_intervals_cover_95_percent_of_new_tables() -> None:
    truth = np.mean([Changes.of(evaluated(seed), 0.5, 0.4).caught().difference.value for seed in range(1_000, 1_060)])
    inside = 0
    for seed in range(60):
        low, high = Changes.of(evaluated(seed), 0.5, 0.4).caught().difference.interval or (0, 0)
        inside += low <= truth <= high
    assert 50 <= inside <= 60


def test_rows_of_an_entity_are_resampled_together() -> None:
    """Ten equal rows per entity carry the information of one."""
    columns = drawn(3, n=400, entities=10**6)
    single = EvaluatedRows.of(columns["label"], columns["score"], entity=np.arange(400))
    copies = EvaluatedRows.of(np.repeat(columns["label"], 10), np.repeat(columns["score"], 10), entity=np.repeat(np.arange(400), 10))

    def width(rows: EvaluatedRows) -> float:
        low, high = Changes.of(rows, 0.5, 0.4).recall().current.interval or (0.0, 0.0)
        return high - low

    assert width(copies) == pytest.approx(width(single), rel=0.05)


def test_many_groups_have_the_intervals_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = evaluated()

    def intervals() -> np.ndarray:
        changes = Changes.of(rows, 0.5, 0.4)
        found: list[Change] = [changes.caught(), changes.cost(5, 1), changes.precision(), changes.recall()]
        return np.array([each.difference.interval for each in found])

    one_by_one = intervals()
    monkeypatch.setattr(threshold_changes, "MOST_GROUPS", 10)
    normal = intervals()
    widths = np.ptp(one_by_one, axis=1, keepdims=True)
    np.testing.assert_array_less(np.abs(normal - one_by_one) / widths, 0.15)


@pytest.mark.parametrize("left_out", ["time", "entity", "amount"])
def test_without_a_column(left_out: str) -> None:
    changes = Changes.of(evaluated(0, **{left_out: None}), 0.5, 0.4)  # type: ignore[arg-type]
    assert changes.caught().difference.value is not None
    if left_out == "amount":
        with pytest.raises(InputError, match="no amounts"):
            changes.cost(5, 1)
    assert (changes.days is None) == (left_out == "time")


def test_no_labelled_row_is_refused() -> None:
    with pytest.raises(InputError, match="no row has a label"):
        EvaluatedRows.of([-1, -1], [0.1, 0.2])


def test_one_seed_gives_the_same_result() -> None:
    assert np.array_equal(Changes.of(evaluated(), 0.5, 0.4).drawn, Changes.of(evaluated(), 0.5, 0.4).drawn)


def test_many_rows_take_less_than_a_second() -> None:
    rng = np.random.default_rng(0)
    fraud = rng.random(350_000) < 0.01
    rows = EvaluatedRows.of(fraud, rng.random(350_000), entity=rng.integers(0, 50_000, 350_000), amount=rng.random(350_000))
    began = time.perf_counter()
    Changes.of(rows, 0.5, 0.0)
    assert time.perf_counter() - began < 1.0
