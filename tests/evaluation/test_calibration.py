"""Calibration keeps every ranking, corrects over-sampled scores, and does not change calibrated ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from balancer.errors import InputError
from balancer.evaluation.calibration import IDENTITY, Calibration, fit_calibration, pooled_score
from balancer.evaluation.metrics import expected_calibration_error


def sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def simulated(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """True log-odds of fraud and labels drawn by them, 1 to 2 % fraud."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-7, 1, n) + np.where(rng.random(n) < 0.02, rng.gamma(6, 1.2, n), 0)
    return logit, (rng.random(n) < sigmoid(logit)).astype(int)


DISTORTIONS = {
    "over-sampled 1:1": lambda logit: logit + 4.5,
    "over-confident": lambda logit: 2 * logit + 3,
    "hardened: the rare side bent only": lambda logit: np.where(logit < -4, -4 + 0.5 * (logit + 4), logit) + 2,
    "calibrated already": lambda logit: logit,
}


@pytest.mark.parametrize("name", DISTORTIONS)
def test_probabilities_on_later_rows_are_no_worse_and_the_ranking_stays(name: str) -> None:
    logit, label = simulated(60_000, seed=1)
    later, later_label = simulated(60_000, seed=2)
    calibration = fit_calibration(sigmoid(DISTORTIONS[name](logit)), label)
    raw = sigmoid(DISTORTIONS[name](later))
    calibrated = calibration.transform(raw)
    assert np.array_equal(np.argsort(raw, kind="stable"), np.argsort(calibrated, kind="stable"))
    assert average_precision_score(later_label, calibrated) == average_precision_score(later_label, raw)
    before, after = expected_calibration_error(later_label, raw), expected_calibration_error(later_label, calibrated)
    if name == "calibrated already":
        assert after <= before + 5e-4
    else:
        assert after < 0.3 * before
        assert after < 0.002


def test_simplest_of_the_good_ones_is_chosen() -> None:
    logit, label = simulated(60_000, seed=3)
    assert fit_calibration(sigmoid(logit), label).method == "identity"
    assert fit_calibration(sigmoid(logit + 4.5), label).method == "platt"
    few = np.flatnonzero(label)[9:]
    assert fit_calibration(sigmoid(np.delete(logit, few) + 4.5), np.delete(label, few)) == IDENTITY


@pytest.mark.parametrize("calibration", [IDENTITY, Calibration("platt", 4.0, 4.0, 12.0), Calibration("beta", 0.05, 4.0, -9.0)])
def test_strictly_increasing_from_0_to_1(calibration: Calibration) -> None:
    inner = np.linspace(1e-4, 1 - 1e-4, 10_001)
    near_zero, near_one = np.geomspace(1e-45, 1e-4, 400)[:-1], 1 - np.geomspace(1e-4, 1e-15, 200)[1:]
    score = np.concatenate([[0.0], near_zero, inner, near_one, [1.0]])
    probability = calibration.transform(score)
    assert np.all(np.diff(probability) > 0)
    assert probability[0] > 0
    assert probability[-1] < 1


def test_scores_of_0_and_1_and_separable_rows_fit() -> None:
    score = np.repeat([0.0, 1.0], [500, 50])
    calibration = fit_calibration(score, (score > 0).astype(int))
    low, high = calibration.transform([0.0, 1.0])
    assert low < 0.01
    assert high > 0.95


def test_scores_that_rank_upside_down_still_increase() -> None:
    logit, label = simulated(20_000, seed=4)
    calibration = fit_calibration(sigmoid(-logit), label)
    assert calibration.transform([0.1])[0] < calibration.transform([0.9])[0]


def test_kinds_of_fraud_keep_their_proportions() -> None:
    rng = np.random.default_rng(0)
    scores = rng.dirichlet([5, 1, 1, 1], size=200).astype(np.float32)
    scores[0] = [1, 0, 0, 0]
    calibration = Calibration("platt", 0.9, 0.9, -3.0)
    result = calibration.apply(scores)
    assert result.sum(axis=1) == pytest.approx(np.ones(200))
    assert pooled_score(result) == pytest.approx(calibration.transform(pooled_score(scores)))
    assert result[1:, 1] / result[1:, 2] == pytest.approx(scores[1:, 1].astype(float) / scores[1:, 2])
    assert calibration.apply([[0.3, 0.7]])[0, 1] == calibration.transform([0.7])[0]


def test_pooled_score_keeps_what_one_minus_would_round_away() -> None:
    assert pooled_score(np.array([[1.0, 1e-12, 2e-12]], dtype=np.float32))[0] == pytest.approx(3e-12)


def test_json_round_trip_and_damage() -> None:
    calibration = Calibration("beta", 0.7, 1.2, -3.25)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration
    for damage in ({"a": -1.0}, {"method": "spline"}, {"c": float("nan")}, {"b": "x"}):
        with pytest.raises(InputError, match="calibration"):
            Calibration.from_dict(calibration.to_dict() | damage)
    with pytest.raises(InputError, match="lacks"):
        Calibration.from_dict({"method": "platt"})


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="all of one class"):
        fit_calibration([0.1, 0.2], [0, 0])
    with pytest.raises(InputError, match="not a number from 0 to 1"):
        fit_calibration([0.1, np.nan], [0, 1])
