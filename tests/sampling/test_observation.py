"""Observation: layout, features, and errors for scores that can't be used."""

from __future__ import annotations

import json

import numpy as np
import pytest

from balancer.errors import InputError
from balancer.sampling.observation import (
    ERROR_EDGES,
    NUM_BINS,
    PER_CLASS_FEATURES,
    SHARED_FEATURES,
    ObservationBuilder,
    ScoredRows,
    observation_size,
    summarise_errors,
)


def _builder(counts: list[int], num: int = 1) -> ObservationBuilder:
    array = np.array(counts)
    return ObservationBuilder(array / array.sum(), epochs=4, batch_budget=4000, train_counts=array, reward_counts=array, num=num)


def _scored(num: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.permutation(np.arange(300) % k), rng.dirichlet(np.ones(k), (num, 300)), rng.choice([1.0, 9.0], 300)


@pytest.mark.parametrize("k", [2, 4])
def test_shape_and_range(k: int) -> None:
    builder = _builder([900] + [10] * (k - 1), num=3)
    weights = (np.full((3, k), 1 / k), np.ones(3), np.zeros(3))
    first = builder.first(*weights)
    after, metrics = builder.after_epoch(_scored(3, k), _scored(3, k, 1), *weights)
    assert first.flat().shape == after.flat().shape == (3, observation_size(k))
    assert after.per_class.shape == (3, k, len(PER_CLASS_FEATURES))
    assert after.shared.shape == (3, len(SHARED_FEATURES))
    assert np.abs(after.flat()).max() <= 5
    assert not first.started
    assert after.started
    np.testing.assert_allclose(after.prior[0], builder.prior, rtol=1e-5)
    np.testing.assert_allclose(after.shared[:, SHARED_FEATURES.index("average_precision")], metrics.average_precision, rtol=1e-5)


def test_histogram_is_that_of_numpy() -> None:
    label, score, weight = _scored(2, 3)
    summary = summarise_errors(label, score, weight)
    for m in range(2):
        for c in range(3):
            class_rows = label == c
            error = 1 - score[m, class_rows, c]
            edges = np.concatenate([[-np.inf], ERROR_EDGES, [np.inf]])
            mass, _ = np.histogram(error, edges, weights=weight[class_rows])
            np.testing.assert_allclose(summary.histogram[m, c] ** 2, mass / mass.sum(), atol=1e-12)
            assert summary.mean[m, c] == pytest.approx(np.average(error, weights=weight[class_rows]))
    assert summary.histogram.shape == (2, 3, NUM_BINS)


def test_scale_free() -> None:
    """Ten times the rows and the budget give the same features, except the positives in validation."""
    shared = np.arange(len(SHARED_FEATURES)) != SHARED_FEATURES.index("reward_positives")
    seen = []
    for factor in (1, 10):
        counts = np.array([990, 10]) * factor
        builder = ObservationBuilder(counts / counts.sum(), epochs=4, batch_budget=4000 * factor, train_counts=counts, reward_counts=counts)
        data = _scored(1, 2)
        seen.append(builder.after_epoch(data, data, np.array([[0.8, 0.2]]), np.ones(1), np.zeros(1))[0])
    np.testing.assert_allclose(seen[0].per_class, seen[1].per_class, atol=1e-6)
    np.testing.assert_allclose(seen[0].shared[:, shared], seen[1].shared[:, shared], atol=1e-6)


def test_memorising_shows_as_gap_and_repeats() -> None:
    builder = _builder([990, 10])
    label = np.array([0, 0, 1, 1])
    train, valid = np.eye(2)[label][None], np.full((1, 4, 2), 0.5)
    ones = np.ones(4)
    seen, _ = builder.after_epoch((label, train, ones), (label, valid, ones), np.array([[0.5, 0.5]]), np.zeros(1), np.zeros(1))
    np.testing.assert_allclose(seen.class_feature("gap"), 0.5)
    assert seen.class_feature("repeats")[0, 1] == pytest.approx(np.log1p(0.5 * 1000 / 10) / 3)


def test_state_survives_json() -> None:
    one, two = _builder([900, 50, 50]), _builder([900, 50, 50])
    weights = (np.full((1, 3), 1 / 3), np.ones(1), np.zeros(1))
    one.after_epoch(_scored(1, 3), _scored(1, 3, 1), *weights)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    a, b = (x.after_epoch(_scored(1, 3, 2), _scored(1, 3, 3), *weights)[0].flat() for x in (one, two))
    assert a.tobytes() == b.tobytes()
    with pytest.raises(InputError, match="3 classes"):
        _builder([9, 1]).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("label", "score", "message"),
    [
        (np.array([0, 1]), np.full((3, 2), 0.5), "one label"),
        (np.array([], int), np.zeros((0, 2)), "no scored rows"),
        (np.array([0, 2]), np.full((2, 2), 0.5), "class indices"),
        (np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]]), "row 1 is not finite"),
    ],
)
def test_scored_rows_refuse(label: np.ndarray, score: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScoredRows(label, score)
