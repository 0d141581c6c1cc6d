"""Metrics against brute force and scikit-learn, on scores full of ties."""

from __future__ import annotations

import json
from time import process_time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, log_loss, precision_score, recall_score

from balancer.errors import InputError
from balancer.evaluation.metrics import Ranking, alarm_metrics, card_precision, curve_points, evaluate_scores, expected_calibration_error

CLASSES = ["legitimate", "burst", "takeover"]
ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=30)


def brute_force(fraud: np.ndarray, score: np.ndarray) -> list[tuple[float, float, float]]:
    """(threshold, recall, false-positive rate) of every threshold, highest first."""
    return [(t, np.mean(score[fraud] >= t), np.mean(score[~fraud] >= t)) for t in sorted(set(score), reverse=True)]


def random_rows(n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    label = np.where(rng.random(n) < 0.05, rng.integers(1, 3, n), 0)
    fraud_score = np.round(1 / (1 + np.exp(-rng.normal(-2 + 2.5 * (label > 0)))), 3)
    first = rng.random(n)
    class_scores = np.column_stack([1 - fraud_score, fraud_score * first, fraud_score * (1 - first)])
    return {
        "label": label,
        "score": fraud_score,
        "raw_score": fraud_score**0.5,
        "class_scores": class_scores,
        "time": np.sort(rng.random(n)) * 10 * 86_400,
        "entity": rng.integers(0, n // 10 + 1, n),
        "classes": CLASSES,
        "threshold": 0.4,
    }


@given(ROWS)
def test_ranking_equals_brute_force_with_ties(rows: list[tuple[bool, int]]) -> None:
    fraud, score = np.array([row[0] for row in rows]), np.array([row[1] / 6 for row in rows])
    ranking = Ranking.of(fraud, score)
    if not fraud.any():
        assert ranking.average_precision() is None
    else:
        assert ranking.average_precision() == pytest.approx(average_precision_score(fraud, score), abs=1e-12)
    for recall in (0.2, 0.6, 0.65, 0.8, 1.0):
        value = ranking.false_alarms_at_recall(recall)
        if not fraud.any() or fraud.all():
            assert value is None
        else:
            assert value == pytest.approx(1e4 * next(f for _, r, f in brute_force(fraud, score) if r >= recall - 1e-9))
    for rate in (0.0, 0.1, 0.5):
        value = ranking.recall_at_fpr(rate)
        if fraud.any() and not fraud.all():
            assert value == pytest.approx(max([r for _, r, f in brute_force(fraud, score) if f <= rate + 1e-9], default=0.0))


@given(ROWS, st.randoms(use_true_random=False))
def test_no_figure_depends_on_row_order(rows: list[tuple[bool, int]], random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    figures = []
    for order in (rows, shuffled):
        fraud, score = np.array([row[0] for row in order]), np.array([row[1] / 6 for row in order])
        entity = [row[1] for row in order]
        figures.append([expected_calibration_error(fraud, score), card_precision(fraud, score, np.zeros(len(order)), entity, cards=2)])
    # An entity's fraud and score travel together here, so only rows move.
    assert figures[0] == pytest.approx(figures[1])


def test_figures_equal_scikit_learn() -> None:
    rows = random_rows(3_000)
    result = evaluate_scores(**rows)
    fraud, score = rows["label"] > 0, rows["score"]
    alarm = score >= 0.4
    assert result["average_precision"] == pytest.approx(average_precision_score(fraud, score))
    assert result["f1"] == pytest.approx(f1_score(fraud, alarm))
    assert result["precision"] == pytest.approx(precision_score(fraud, alarm))
    assert result["recall"] == pytest.approx(recall_score(fraud, alarm))
    assert result["fpr"] == pytest.approx(np.mean(alarm[~fraud]))
    assert result["f1_at_half"] == pytest.approx(f1_score(fraud, rows["raw_score"] >= 0.5))
    assert result["brier"] == pytest.approx(brier_score_loss(fraud, score))
    assert result["log_loss"] == pytest.approx(log_loss(fraud, score))
    assert set(result["false_alarms_per_10k_at_recall"]) == {"0.60", "0.65", "0.70", "0.80"}
    assert set(result["recall_at_fpr"]) == {"0.001", "0.01"}
    for index, name in enumerate(CLASSES[1:], start=1):
        of_class, rows_of = result["per_class"][name], (rows["label"] == index) | (rows["label"] == 0)
        assert of_class["average_precision"] == pytest.approx(average_precision_score(fraud[rows_of], score[rows_of]))
        own_score = rows["class_scores"][:, index]
        assert of_class["average_precision_one_vs_rest"] == pytest.approx(average_precision_score(rows["label"] == index, own_score))
        assert of_class["recall"] == pytest.approx(np.mean(alarm[rows["label"] == index]))
        assert of_class["rows"] == (rows["label"] == index).sum()
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_unlabelled_rows_and_row_order_change_nothing() -> None:
    rows = random_rows(500)
    more = {name: value if name in ("classes", "threshold") else np.concatenate([value, value[:50]]) for name, value in rows.items()}
    more["label"] = np.concatenate([rows["label"], np.full(50, -1)])
    order = np.random.default_rng(1).permutation(550)
    shuffled = {name: value if name in ("classes", "threshold") else value[order] for name, value in more.items()}
    expected, result = evaluate_scores(**rows), evaluate_scores(**shuffled)
    assert result["rows"] == 500
    assert result["average_precision"] == pytest.approx(expected["average_precision"], abs=1e-12)
    assert result["ece"] == pytest.approx(expected["ece"], abs=1e-12)
    assert result["card_precision_at_100"] == pytest.approx(expected["card_precision_at_100"], abs=1e-12)


def test_what_does_not_exist_is_null() -> None:
    rows = random_rows(200) | {"label": np.zeros(200, dtype=int), "class_scores": None, "entity": None}
    result = evaluate_scores(**rows)
    assert result["average_precision"] is None
    assert result["recall"] is None
    assert result["f1"] is None
    assert result["card_precision_at_100"] is None
    assert set(result["false_alarms_per_10k_at_recall"].values()) == {None}
    assert result["per_class"]["burst"]["average_precision_one_vs_rest"] is None
    assert alarm_metrics([True, False], [False, False]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "fpr": 0.0}


def test_card_precision_by_hand() -> None:
    day = 86_400.0
    # Day 0: entities 1 (.9, fraud on a lower row), 2 (.8), 3 and 4 level at .5, of which 4 has fraud; day 1:
    # entity 1 only, no fraud.
    time = [1, 2, 3, 4, 5, day + 1]
    entity = [1, 1, 2, 3, 4, 1]
    score = [0.9, 0.1, 0.8, 0.5, 0.5, 0.2]
    fraud = [False, True, False, False, True, False]
    assert card_precision(fraud, score, time, entity, cards=1) == pytest.approx((1 + 0) / 2)
    assert card_precision(fraud, score, time, entity, cards=3) == pytest.approx((1.5 / 3 + 0) / 2)
    assert card_precision(fraud, score, time, entity) == pytest.approx((2 / 4 + 0) / 2)


def test_calibration_error_of_constant_and_of_true_probabilities() -> None:
    fraud = np.arange(1_000) % 100 == 0
    assert expected_calibration_error(fraud, np.full(1_000, 0.01)) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(fraud, np.full(1_000, 0.31)) == pytest.approx(0.3)
    rng = np.random.default_rng(0)
    probability = rng.beta(0.5, 5, 50_000)
    assert expected_calibration_error(rng.random(50_000) < probability, probability) < 0.005


def test_curves_are_thin_and_keep_their_shape() -> None:
    rng = np.random.default_rng(0)
    label = np.append(rng.random(20_000) < 0.02, -1).astype(int)
    score = np.append(rng.normal(size=20_000) + 2 * label[:-1], 99.0)
    curve = curve_points(label, score)
    assert len(curve["recall"]) <= 500
    assert np.all(np.diff(curve["threshold"]) < 0)
    assert np.all(np.diff(curve["recall"]) >= 0)
    assert (curve["recall"][-1], curve["fpr"][-1]) == (1.0, 1.0)
    area = np.sum(np.diff(curve["recall"], prepend=0) * curve["precision"])
    assert area == pytest.approx(average_precision_score(label[:-1], score[:-1]), abs=0.01)
    assert curve_points([0, 0], [0.1, 0.2])["recall"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.full(50, -1)}, "no row to evaluate"),
        ({"time": np.zeros(49)}, "time has 49 rows"),
        ({"score": np.full(50, np.nan)}, "not a finite number in 50 rows"),
        ({"class_scores": np.zeros((50, 2))}, "one column for each of the 3 classes"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_scores(**(random_rows(50) | change))


def test_a_test_part_of_350_000_rows_is_quick() -> None:
    rows = random_rows(350_000)
    before = process_time()
    evaluate_scores(**rows)
    assert process_time() - before < 4  # about 1.2 s of one core
