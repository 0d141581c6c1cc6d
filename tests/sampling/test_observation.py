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
    PER_CLASS_FEATURES_V0,
    SHARED_FEATURES,
    SHARED_FEATURES_V0,
    Observation,
    ObservationBuilder,
    ScoredRows,
    observation_size,
    summarise_errors,
)
from balancer.sampling.weights import SamplingWeights, stacked


def _builder(counts: list[int], num: int = 1) -> ObservationBuilder:
    array = np.array(counts)
    return ObservationBuilder(array / array.sum(), epochs=4, batch_budget=4000, train_counts=array, reward_counts=array, num=num)


def _scored(num: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.permutation(np.arange(300) % k), rng.dirichlet(np.ones(k), (num, 300)), rng.choice([1.0, 9.0], 300)


@pytest.mark.parametrize("k", [2, 4])
def test_shape_and_range(k: int) -> None:
    builder = _builder([900] + [10] * (k - 1), num=3)
    weights = stacked([SamplingWeights(np.full(k, 1 / k), 1.0, 0.0)] * 3)
    first = builder.first(weights)
    after, metrics = builder.after_epoch(_scored(3, k), _scored(3, k, 1), weights)
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
        seen.append(builder.after_epoch(data, data, stacked([SamplingWeights(np.array([0.8, 0.2]), 1.0, 0.0)]))[0])
    np.testing.assert_allclose(seen[0].per_class, seen[1].per_class, atol=1e-6)
    np.testing.assert_allclose(seen[0].shared[:, shared], seen[1].shared[:, shared], atol=1e-6)


def test_memorising_shows_as_gap_and_repeats() -> None:
    builder = _builder([990, 10])
    label = np.array([0, 0, 1, 1])
    train, valid = np.eye(2)[label][None], np.full((1, 4, 2), 0.5)
    ones = np.ones(4)
    seen, _ = builder.after_epoch((label, train, ones), (label, valid, ones), stacked([SamplingWeights(np.array([0.5, 0.5]))]))
    np.testing.assert_allclose(seen.class_feature("gap"), 0.5)
    assert seen.class_feature("repeats")[0, 1] == pytest.approx(np.log1p(0.5 * 1000 / 10) / 3)


def test_state_survives_json() -> None:
    one, two = _builder([900, 50, 50]), _builder([900, 50, 50])
    weights = stacked([SamplingWeights(np.full(3, 1 / 3), 1.0, 0.0)])
    one.after_epoch(_scored(1, 3), _scored(1, 3, 1), weights)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    a, b = (x.after_epoch(_scored(1, 3, 2), _scored(1, 3, 3), weights)[0].flat() for x in (one, two))
    assert a.tobytes() == b.tobytes()
    with pytest.raises(InputError, match="3 classes"):
        _builder([9, 1]).load_state_dict(one.state_dict())


def _shared(observation: Observation, name: str) -> float:
    return float(observation.shared[0, SHARED_FEATURES.index(name)])


def test_the_features_of_compensation_are_those_of_the_weights() -> None:
    counts, rng = np.array([900, 100]), np.random.default_rng(0)
    weights = SamplingWeights(np.array([0.6, 0.4]), 1.0, 0.1, 0.5, 0.25, 0.5)
    for compensated in (False, True):
        builder = ObservationBuilder(
            counts / 1000, epochs=4, batch_budget=4000, train_counts=counts, reward_counts=counts, compensated=compensated
        )
        seen = builder.first(stacked([weights]))
        assert seen.compensated == compensated == bool(_shared(seen, "compensated"))
        assert (_shared(seen, "class_importance"), _shared(seen, "hardness_importance")) == (0.5, 0.25)
        assert _shared(seen, "recency") == pytest.approx(np.log2(3.0) / 4.0)
        mass = np.exp(weights.logit_offset(builder.prior))
        np.testing.assert_allclose(seen.class_feature("log_mass_over_prior")[0], np.log(mass / builder.prior) / 3.0, rtol=1e-5)
        assert _shared(seen, "below_best") == _shared(seen, "epochs_since_best") == 0
    label, ones = np.arange(200) % 2, np.ones(200)
    good = np.stack([1.0 - 0.6 * label - 0.2 * rng.random(200), 0.6 * label + 0.2 * rng.random(200)], axis=1)[None]
    bad = rng.random((1, 200, 2))
    best = builder.after_epoch((label, good, ones), (label, good, ones), stacked([weights]))[1].average_precision[0]
    for since in (1, 2):
        seen, metrics = builder.after_epoch((label, good, ones), (label, bad, ones), stacked([weights]))
        assert _shared(seen, "epochs_since_best") == pytest.approx(since / 4)
        assert _shared(seen, "below_best") == pytest.approx(min(10 * (best - metrics.average_precision[0]), 5.0), rel=1e-5)
    assert _shared(builder.first(stacked([SamplingWeights(np.array([0.5, 0.5]))])), "recency") == 0


def test_the_features_of_the_first_version_come_first() -> None:
    seen = _builder([900, 100]).first(stacked([SamplingWeights(np.array([0.5, 0.5]), class_importance=0.5)]))
    old = seen.v0()
    assert old.flat().shape == (1, observation_size(2, version=0)) == (1, 2 * len(PER_CLASS_FEATURES_V0) + len(SHARED_FEATURES_V0))
    np.testing.assert_array_equal(old.per_class, seen.per_class[..., : len(PER_CLASS_FEATURES_V0)])
    np.testing.assert_array_equal(old.shared, seen.shared[..., : len(SHARED_FEATURES_V0)])
    assert PER_CLASS_FEATURES[: len(PER_CLASS_FEATURES_V0)] == PER_CLASS_FEATURES_V0
    assert SHARED_FEATURES[: len(SHARED_FEATURES_V0)] == SHARED_FEATURES_V0


def test_a_state_of_version_0_1_takes_its_last_epoch_as_the_best() -> None:
    one, two = _builder([900, 100]), _builder([900, 100])
    weights = stacked([SamplingWeights(np.array([0.5, 0.5]))])
    one.after_epoch(_scored(1, 2), _scored(1, 2, 1), weights)
    state = one.state_dict()
    del state["best"], state["since_best"]
    two.load_state_dict(json.loads(json.dumps(state)))
    assert two.best.tolist() == one.average_precision.tolist()
    assert two.since_best.tolist() == [0.0]


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
