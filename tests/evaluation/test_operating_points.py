"""Thresholds that meet a limit, compared with counting the alarms of every threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.evaluation.metrics import alarm_counts, alarm_metrics, evaluate_scores
from balancer.evaluation.operating_points import NO_ALARM, OperatingPoints


def rows(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels (some unknown), tied scores, times over ten days, amounts with refunds."""
    rng = np.random.default_rng(seed)
    label = rng.choice([-1, 0, 0, 0, 1], n)
    score = (rng.random(n) * 0.6 + 0.4 * (label == 1) * rng.random(n)).round(2)
    return label, score, np.sort(rng.random(n)) * 864_000, rng.normal(20, 40, n).round(2)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_metrics_equal_those_of_the_report_exactly(seed: int, threshold: float) -> None:
    label, score, time, amount = rows(seed)
    known = label >= 0
    fraud, alarm = label[known] > 0, score[known] >= threshold
    metrics = OperatingPoints.of(label, score, time=time, amount=amount).metrics(threshold)
    expected = alarm_counts(fraud, alarm, time=time[known], amount=amount[known]) | alarm_metrics(fraud, alarm)
    assert metrics == expected | {"threshold": threshold}


def test_report_holds_the_counts() -> None:
    label, score, time, amount = rows(1)
    report = evaluate_scores(label, score, threshold=0.4, raw_score=score, classes=["0", "1"], time=time, amount=amount)
    metrics = OperatingPoints.of(label, score, time=time, amount=amount).metrics(0.4)
    assert report["alarms"] == {name: metrics[name] for name in report["alarms"]}
    assert {name: report[name] for name in ("f1", "precision", "recall", "fpr")} == {
        name: metrics[name] for name in ("f1", "precision", "recall", "fpr")
    }


@given(st.integers(0, 10_000), st.floats(0.01, 40), st.floats(0, 1), st.floats(0, 1))
def test_a_limit_is_met_and_the_next_threshold_would_not_be_better(seed: int, per_day: float, rate: float, recall: float) -> None:
    label, score, time, amount = rows(seed)
    points = OperatingPoints.of(label, score, time=time, amount=amount)
    every = [points.metrics(threshold) for threshold in (*np.unique(score), NO_ALARM)]
    most = max(f["alarms_per_day"] for f in every if f["alarms_per_day"] <= per_day * (1 + 1e-9))
    assert points.metrics(points.for_alarms(per_day))["alarms_per_day"] == most
    lowest = max(f["fpr"] for f in every if f["fpr"] <= rate * (1 + 1e-9))
    assert points.metrics(points.for_fpr(rate))["fpr"] == lowest
    reached = min(f["alarms_per_day"] for f in every if f["recall"] >= recall * (1 - 1e-9))
    assert points.metrics(points.for_recall(recall))["alarms_per_day"] == reached


def test_cheapest_threshold_and_its_price() -> None:
    label, score, time, amount = rows(3)
    points = OperatingPoints.of(label, score, time=time, amount=amount)
    best = points.metrics(points.for_cost(5.0, 0.8))

    def price(metrics: dict[str, float]) -> float:
        return 5.0 * (metrics["caught"] + metrics["false_alarms"]) + 0.8 * metrics["amount_missed"]

    assert price(best) == pytest.approx(min(price(points.metrics(t)) for t in (*np.unique(score), NO_ALARM)))
    assert points.table(cost=points.cost(5.0, 0.8))["cost"].min() >= price(best) - 1e-9
    assert points.metrics(points.for_cost(1e9))["alarms_per_day"] == 0  # no fraud is worth that


def test_thresholds_lie_between_scores() -> None:
    points = OperatingPoints.of([0, 1, 0, 1], [0.1, 0.9, 0.5, 0.7], time=[0, 1, 2, 3])
    assert points.threshold.tolist() == [NO_ALARM, pytest.approx(0.8), pytest.approx(0.6), pytest.approx(0.3), 0.0]
    assert points.table()["recall"].to_list() == [0.5, 1.0, 1.0, 1.0]


def test_rows_that_cannot_be_evaluated_are_rejected() -> None:
    with pytest.raises(InputError, match="label"):
        OperatingPoints.of([-1, -1], [0.1, 0.2], time=[0, 1])
    with pytest.raises(InputError, match="0 to 1"):
        OperatingPoints.of([0, 1], [0.1, math.nan], time=[0, 1])
    points = OperatingPoints.of([0, 1], [0.1, 0.2], time=[0, 1])
    assert points.metrics(0.15)["amount_caught"] is None
    with pytest.raises(InputError, match="--amount"):
        points.for_cost(1.0)


@given(st.integers(0, 500), st.floats(0, 1))
def test_a_share_of_alarms_is_not_exceeded_and_the_next_threshold_would(seed: int, share: float) -> None:
    label, score, time, _ = rows(seed)
    points = OperatingPoints.of(label, score, time=time)
    total = points.frauds + points.legitimate
    found = points.metrics(points.for_alarm_share(share))
    raised = found["caught"] + found["false_alarms"]
    assert raised <= share * total * (1 + 1e-9)
    counts = points.caught + points.false_alarms
    assert not [count for count in counts if raised < count <= share * total]


def test_the_cost_of_a_threshold_and_thresholds_that_must_be_in_the_table() -> None:
    label, score, time, amount = rows(2)
    points = OperatingPoints.of(label, score, time=time, amount=amount)
    best = points.for_cost(5.0, 0.8)
    assert points.cost_at(best, 5.0, 0.8) == points.cost(5.0, 0.8).min()
    table = points.table(max_points=4, cost=points.cost(5.0, 0.8), also=[best])
    assert table["cost"].min() == points.cost_at(best, 5.0, 0.8)
    raised = table["alarms"].to_numpy()
    assert (table["caught"].to_numpy() / raised == table["precision"].to_numpy()).all()
