"""HardnessTilt: against the probabilities of rows, its equation solved, the shift of scores, JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.sampling.core import SamplerCore
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.tilt import HardnessTilt, are_natural
from balancer.sampling.weights import SamplingWeights


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _table(num_classes: int, seed: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Labels that are drawn by calibrated probabilities (rows, K), and these."""
    rng = np.random.default_rng(seed)
    p = _softmax(rng.normal(size=(rows, num_classes)) * 1.5 - np.arange(num_classes))
    label = (p.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    label[:num_classes] = np.arange(num_classes)
    return label, p


WEIGHTS = st.tuples(st.floats(0.1, 3), st.floats(0.01, 0.9), st.floats(0, 1))


@settings(max_examples=50, deadline=None)
@given(num_classes=st.integers(2, 5), numbers=WEIGHTS, draws=st.integers(20, 2_000), counted=st.booleans(), seed=st.integers(0, 50))
def test_the_tilt_is_how_often_a_row_is_drawn_times_how_much_it_counts(
    num_classes: int, numbers: tuple[float, float, float], draws: int, counted: bool, seed: int
) -> None:
    label, p = _table(num_classes, seed)
    sampler = RowSampler(label, num_classes)
    share = np.bincount(label, minlength=num_classes) ** 0.5
    weights = SamplingWeights(share / share.sum(), numbers[0], numbers[1], 0.5, numbers[2])
    assert sampler.tilt(weights, draws, counted=counted) is None  # no scores yet
    sampler.refresh(np.arange(len(label)), p)
    tilt = sampler.tilt(weights, draws, counted=counted)
    assert tilt is not None
    found = tilt.log_mass(p)[np.arange(len(label)), label]
    mass = sampler.probabilities(weights, draws) / weights.share[label] * sampler.counts[label]
    if counted:
        mass *= sampler.loss_weights(np.arange(len(label)), weights, draws) / weights.class_weight(sampler.prior)[label]
    np.testing.assert_allclose(found, np.log(mass), atol=2e-3)
    even = weights.share > sampler.prior * 1.001  # hardness does not act there
    assert not found[even[label]].any()
    assert np.isnan(tilt.terms[0]).tolist() == even.tolist()


def test_scored_and_unscored_rows_are_mixed() -> None:
    label, p = _table(2, 0)
    sampler = RowSampler(label, 2)
    scored = np.arange(100)
    sampler.refresh(scored, p[scored])
    weights = SamplingWeights(sampler.prior, 1.0, 0.1)
    tilt = sampler.tilt(weights, 60, counted=False)
    assert tilt is not None
    relative = sampler.probabilities(weights, 60) / weights.share[label] * sampler.counts[label]
    part = np.array([(label[scored] == c).sum() for c in range(2)]) / sampler.counts
    unscored = [relative[100:][label[100:] == c][0] for c in range(2)]
    expected = part[label] * relative + (1 - part[label]) * np.array(unscored)[label]
    np.testing.assert_allclose(np.exp(tilt.log_mass(p)[scored, label[scored]]), expected[scored], rtol=1e-3)


@settings(max_examples=60, deadline=None)
@given(num_classes=st.integers(2, 6), numbers=WEIGHTS, draws=st.integers(20, 4_000), counted=st.booleans(), seed=st.integers(0, 50))
def test_raw_scores_undo_the_correction(
    num_classes: int, numbers: tuple[float, float, float], draws: int, counted: bool, seed: int
) -> None:
    label, p = _table(num_classes, seed)
    sampler = RowSampler(label, num_classes)
    sampler.refresh(np.arange(len(label)), p)
    tilt = sampler.tilt(SamplingWeights(sampler.prior, numbers[0], numbers[1], 0.5, numbers[2]), draws, counted=counted)
    assert tilt is not None
    logits = np.log(_table(num_classes, seed + 1)[1])
    natural = _softmax(logits + tilt.correction(logits) + np.log(sampler.prior))
    np.testing.assert_allclose(tilt.raw_scores(natural, sampler.prior), _softmax(logits), atol=1e-3)
    np.testing.assert_allclose(tilt.correction(logits), -tilt.log_mass(_softmax(logits)))


def test_far_logits_and_strong_hardness_stay_finite() -> None:
    for num_classes in (2, 3):
        label, p = _table(num_classes, 0)
        sampler = RowSampler(label, num_classes)
        sampler.refresh(np.arange(len(label)), p)
        tilt = sampler.tilt(SamplingWeights(sampler.prior, 3.0, 0.0), 100, counted=False)
        assert tilt is not None
        logits = np.zeros((5, num_classes))
        logits[:, 1] = [-1e4, -30, 0, 30, 1e4]
        natural = _softmax(logits + tilt.correction(logits) + np.log(sampler.prior))
        assert np.isfinite(natural).all()
        assert (np.diff(natural[:, 1]) >= 0).all()  # the ranking of the rows is kept
        assert np.isfinite(tilt.raw_scores(natural, sampler.prior)).all()


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("thinned", [False, True])
def test_it_is_seen_whether_scores_are_natural(num_classes: int, thinned: bool) -> None:
    label, p = _table(num_classes, 3, 20_000)
    prior = np.bincount(label) / len(label)
    rows = np.arange(len(label))
    if thinned:  # equally many of each class
        rows = np.concatenate([np.flatnonzero(label == c)[: np.bincount(label).min()] for c in range(num_classes)])
    noise = np.random.default_rng(0).normal(size=num_classes) * 0.2
    for part, natural in ((0.0, True), (0.3, True), (0.7, False), (1.0, False)):
        scores = _softmax(np.log(p) - part * np.log(prior) + noise)
        assert are_natural(label[rows], scores[rows], prior) == natural
    assert are_natural(np.array([0, 0, 1]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([1.0, 0.0])) in (True, False)


def test_json_is_exact() -> None:
    label, p = _table(3, 0)
    sampler = RowSampler(label, 3)
    sampler.refresh(np.arange(len(label)), p)
    tilt = sampler.tilt(SamplingWeights(np.array([0.2, 0.4, 0.4]), 1.5, 0.1, 0.5, 0.5), 100, counted=True)
    assert tilt is not None
    back = HardnessTilt.from_dict(json.loads(json.dumps(tilt.to_dict(), allow_nan=False)), 3)
    np.testing.assert_array_equal(back.terms, tilt.terms)
    np.testing.assert_array_equal(back.log_mass(p), tilt.log_mass(p))
    with pytest.raises(ValueError, match="for 2 classes"):
        HardnessTilt.from_dict(tilt.to_dict(), 2)


def _core(policy: str = "constant:share=.3,hardness=1", **options: Any) -> SamplerCore:
    return SamplerCore([0] * 900 + [1] * 100, policy=policy, epochs=4, num_samples=200, **options)


def test_a_sampler_corrects_for_the_rows_that_the_model_was_trained_on() -> None:
    rng = np.random.default_rng(0)
    logits, prior = rng.normal(size=9), np.log(np.array([0.9, 0.1]))
    plain = _softmax(np.stack([np.zeros(9), logits], axis=1) + prior)
    scores = {"rows": np.arange(1_000), "row_score": np.concatenate([rng.random(900) ** 4, rng.random(100)])}
    sampler = _core()
    sampler.draw()
    np.testing.assert_allclose(sampler.probabilities(logits), plain)  # the first epoch has no scores
    sampler.update([0, 1], [0.2, 0.7], **scores)
    np.testing.assert_allclose(sampler.probabilities(logits), plain)  # the model was trained without hardness
    sampler.draw()
    trained = sampler.probabilities(logits)
    assert (trained[:, 1] != plain[:, 1]).all()
    sampler.update([0, 1], [0.2, 0.7], rows=np.arange(1_000), row_score=rng.random(1_000))
    np.testing.assert_allclose(sampler.probabilities(logits), trained)  # the scores are new, the model is not
    other = _core()
    other.load_state_dict(json.loads(json.dumps(sampler.state_dict(), default=lambda array: array.tolist())))
    np.testing.assert_allclose(other.probabilities(logits), trained)
    sampler.draw()
    assert not np.allclose(sampler.probabilities(logits), trained)
    middle = _core()
    middle.load_state_dict(sampler.state_dict())
    np.testing.assert_allclose(middle.probabilities(logits), sampler.probabilities(logits))
    np.testing.assert_allclose(_core("constant:share=.3,hardness=0").probabilities(logits), plain)


def _rows_scores(natural: np.ndarray) -> dict[str, Any]:
    return {"rows": np.arange(1_000), "row_score": natural}


@pytest.mark.parametrize("compensated", [True, False])
def test_hardness_draws_by_the_raw_scores_whatever_is_given(compensated: bool) -> None:
    """Natural probabilities and the softmax of raw logits lead to the same draws where the loss is used."""
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(size=900) - 1, rng.normal(size=100) + 2])
    raw = 1 / (1 + np.exp(-logits))
    by_raw, by_natural = (_core(compensated=compensated) for _ in range(2))
    for _ in range(3):
        assert (by_raw.draw() == by_natural.draw()).all() or not compensated
        by_raw.update([0, 1], [0.2, 0.7], **_rows_scores(raw))
        by_natural.update([0, 1], [0.2, 0.7], **_rows_scores(by_natural.probabilities(logits)[:, 1]))
        same = np.allclose(by_raw.row_weights(), by_natural.row_weights(), rtol=1e-3)
        assert same == compensated
        logits = logits + rng.normal(size=1_000) * 0.1
        raw = 1 / (1 + np.exp(-logits))


def test_rows_that_count_by_their_own_weights_need_no_correction() -> None:
    sampler = _core("constant:share=.3,hardness=1,hardness_importance=1")
    score = np.random.default_rng(0).random(1_000)
    sampler.update([0, 1], [0.2, 0.7], rows=np.arange(1_000), row_score=score)
    sampler.draw()
    logits = np.array([-2.0, 0.0, 1.0])
    by_class = sampler.probabilities(logits)
    sampler.sample_weight([0, 1])  # now the loss counts rows
    by_row = sampler.probabilities(logits)
    np.testing.assert_allclose(by_row[:, 1], 1 / (1 + 9 * np.exp(-logits)), rtol=1e-5)
    assert not np.allclose(by_row, by_class)


@pytest.mark.parametrize("broken", [{"tilt": {"terms": [[0.0]]}}, {"tilt": 3}, {"trained": None}])
def test_a_broken_tilt_in_a_state_is_refused(broken: dict[str, Any]) -> None:
    from balancer.errors import InputError

    sampler = _core()
    with pytest.raises(InputError, match="corrupt"):
        sampler.load_state_dict(sampler.state_dict() | broken)
