"""How drawn rows count: loss weights, offsets, probabilities, the mass of rows, scores to start from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.sampling.constant_policy import COMPENSATED, PLAIN
from balancer.sampling.core import SamplerCore
from balancer.sampling.weights import SamplingWeights, class_weights


def _sampler(policy: Any = "constant:share=.3,hardness=1.5") -> SamplerCore:
    """Three classes; their sorted order is not that of their rows."""
    return SamplerCore(["ok"] * 940 + ["theft"] * 40 + ["fraud"] * 20, policy=policy, epochs=4, num_samples=300)


def _core(**options: Any) -> SamplerCore:
    return SamplerCore([0] * 970 + [1] * 30, **({"epochs": 4} | options))


def scored_sampler(weights: SamplingWeights, labels: np.ndarray) -> SamplerCore:
    sampler = SamplerCore(labels, policy=weights, epochs=4, num_samples=500)
    score = np.random.default_rng(1).dirichlet(np.ones(len(sampler.classes_)), len(labels))
    sampler.update(labels, score, rows=np.arange(len(labels)), row_score=score)
    return sampler


@pytest.mark.parametrize("exponents", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (0.3, 0.9)])
def test_effective_weights_are_expected_draws_times_loss_weights(exponents: tuple[float, float]) -> None:
    labels = np.repeat([0, 1, 2], [900, 80, 20])
    sampler = scored_sampler(SamplingWeights(np.array([0.5, 0.3, 0.2]), 1.0, 0.05, *exponents), labels)
    mass = sampler.effective_weights()
    np.testing.assert_allclose(mass, sampler.row_weights() * sampler.sample_weight(np.arange(1000)), rtol=1e-6)
    assert mass.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(np.bincount(labels, mass) / 1000, np.exp(sampler.logit_offset), rtol=1e-6)


def test_full_importance_is_the_natural_stream() -> None:
    labels = np.repeat([0, 1], [950, 50])
    sampler = scored_sampler(SamplingWeights(np.array([0.5, 0.5]), 1.0, 0.05, 1.0, 1.0), labels)
    np.testing.assert_allclose(sampler.effective_weights(), 1.0, rtol=1e-6)


def test_rows_without_a_label_have_no_mass() -> None:
    sampler = SamplerCore([0] * 90 + [1] * 5 + [-1] * 5, unlabelled=-1, epochs=2)
    mass = sampler.effective_weights()
    assert mass[-5:].tolist() == [0.0] * 5 and mass[:95].mean() == pytest.approx(1.0)


def test_init_score_is_the_offset_of_the_logits() -> None:
    two = SamplerCore(["fraud"] * 10 + ["ok"] * 90, epochs=2)
    assert two.init_score().shape == (100,) and two.init_score(3).shape == (3,)
    odds = np.exp(two.logit_offset)
    assert two.init_score(1)[0] == pytest.approx(np.log(odds[1] / odds[0]))
    three = SamplerCore([0] * 80 + [1] * 15 + [2] * 5, epochs=2)
    np.testing.assert_allclose(three.init_score(4), np.tile(three.logit_offset, (4, 1)))
    with pytest.raises(InputError, match="num_rows"):
        two.init_score(-1)


def test_held_out_rows_count_by_their_weights() -> None:
    labels, rng = np.repeat([0, 1], [90, 10]), np.random.default_rng(0)
    score, counts = rng.random(100), rng.integers(1, 4, 100)
    weighted, repeated = SamplerCore(labels, epochs=2), SamplerCore(labels, epochs=2)
    weighted.update(labels, score, y_weight=counts)
    repeated.update(labels.repeat(counts), score.repeat(counts))
    assert weighted.metrics == pytest.approx(repeated.metrics)
    assert weighted.metrics == pytest.approx(weighted.measure(labels, score, counts))
    assert weighted.metrics["average_precision"] != pytest.approx(weighted.measure(labels, score)["average_precision"])
    for bad in ([1.0] * 99, [-1.0] * 100, [0.0] * 100, [np.nan] * 100):
        with pytest.raises(InputError, match="y_weight must be 100"):
            weighted.update(labels, score, y_weight=bad)
    assert weighted.updates == 1


def _equal(weights: SamplingWeights, other: SamplingWeights) -> bool:
    """Whether weights are the same; a policy sees the prior in single precision."""
    return np.allclose(weights.share, other.share, rtol=1e-6) and weights.to_dict() | {"share": 0} == other.to_dict() | {"share": 0}


def test_compensation_is_found_out_given_or_refused() -> None:
    found, given, refused = _core(), _core(compensated=True), _core(compensated=False)
    prior = np.array([0.97, 0.03])
    assert _equal(found.weights, PLAIN.weights(prior)) and _equal(refused.weights, PLAIN.weights(prior))
    assert _equal(given.weights, COMPENSATED.weights(prior))
    assert [sampler.compensated for sampler in (found, given, refused)] == [False, True, False]
    for sampler in (found, given, refused):
        sampler.draw()
        assert sampler.class_weight.shape == (2,)  # a loop that uses it
        sampler.update([0, 1], [0.1, 0.9])
    assert _equal(found.weights, COMPENSATED.weights(prior)) and _equal(given.weights, COMPENSATED.weights(prior))
    assert _equal(refused.weights, PLAIN.weights(prior))
    assert [sampler.compensated for sampler in (found, given, refused)] == [True, True, False]
    assert found.notes == given.notes == []
    assert ["compensated=False was given" in note for note in refused.notes] == [True]
    with pytest.raises(InputError, match="compensated must be"):
        _core(compensated="yes")


def test_compensation_that_is_asked_for_before_the_first_draw_has_an_effect_at_once() -> None:
    early, late = _core(), _core()
    early.use_compensation()
    assert early.weights.to_dict() == _core(compensated=True).weights.to_dict()
    late.draw()
    late.use_compensation()
    assert late.weights.to_dict() == _core().weights.to_dict()
    assert late.compensated
    resumed = _core()
    resumed.load_state_dict(late.state_dict())
    assert resumed.compensated
    assert resumed.weights.to_dict() == late.weights.to_dict()
    resumed.update([0, 1], [0.1, 0.9])
    late.update([0, 1], [0.1, 0.9])
    assert resumed.weights.to_dict() == late.weights.to_dict() != _core().weights.to_dict()


def test_a_loop_without_the_loss_is_told_that_weights_have_no_effect() -> None:
    sampler = _core(policy="constant:share=.2,class_importance=.5", compensated=False)
    assert ["does not" in note for note in sampler.notes] == [True]
    assert _core(policy="constant:share=.2,class_importance=.5").notes == []


def test_class_weights_and_offsets_have_the_order_of_the_classes() -> None:
    sampler = _sampler(SamplingWeights(np.array([0.3, 0.3, 0.4]), class_importance=0.5))
    prior = np.array([0.02, 0.94, 0.04])
    np.testing.assert_allclose(sampler.prior, prior)
    np.testing.assert_allclose(sampler.class_weight, class_weights(np.array([0.3, 0.3, 0.4]), 0.5, prior))
    np.testing.assert_allclose(np.exp(sampler.logit_offset), np.array([0.3, 0.3, 0.4]) * sampler.class_weight)
    rows = np.array([0, 945, 990])  # ok, theft, fraud
    np.testing.assert_allclose(sampler.sample_weight(rows), sampler.class_weight[[1, 2, 0]])
    np.testing.assert_allclose(sampler.sample_weight(torch.as_tensor(rows)[:, None]), sampler.sample_weight(rows.tolist()))
    with pytest.raises(InputError, match="from 0 to 999"):
        sampler.sample_weight([1_000])


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


@given(st.integers(0, 99), st.sampled_from(["natural", "balanced", "own"]))
def test_probabilities_are_a_softmax_with_the_prior(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    sampler, logits = _sampler(), rng.normal(size=(5, 3)) * 10
    prior = {"natural": sampler.prior, "balanced": np.full(3, 1 / 3), "own": rng.dirichlet(np.ones(3)) + 1e-3}[kind]
    found = sampler.probabilities(logits, kind if kind != "own" else 7 * prior)
    np.testing.assert_allclose(found, _softmax(logits + np.log(prior / prior.sum())), rtol=1e-9, atol=1e-12)
    assert found.sum(axis=1) == pytest.approx(np.ones(5))


def test_one_logit_is_the_log_odds_of_the_second_class() -> None:
    sampler = _core()
    logits = np.array([-1.0, 0.0, 2.0])
    by_hand = 1 / (1 + 0.97 / 0.03 * np.exp(-logits))
    for form in (logits, logits[:, None], np.stack([np.zeros(3), logits], axis=1), logits.tolist(), torch.tensor(logits).requires_grad_()):
        np.testing.assert_allclose(sampler.probabilities(form)[:, 1], by_hand)
    np.testing.assert_allclose(sampler.probabilities(logits, "balanced")[:, 1], 1 / (1 + np.exp(-logits)))
    np.testing.assert_allclose(sampler.probabilities([1000.0, -1000.0])[:, 1], [1, 0], atol=1e-12)
    assert sampler.probabilities(logits, [1.0, 0.0])[:, 1].max() < 1e-9  # a stream without the class


@pytest.mark.parametrize(
    ("logits", "prior", "message"),
    [
        (np.zeros((2, 3)), "natural", r"logits must have the shape \(n, 2\), not \(2, 3\)"),
        (np.zeros((2, 2, 2)), "natural", "logits must have the shape"),
        (["a"], "natural", "logits must be numbers"),
        ([[1, 2], [3]], "natural", "different lengths"),
        (np.zeros(2), "flat", "natural, balanced or 2 numbers, not 'flat'"),
        (np.zeros(2), [0.2, 0.3, 0.5], "prior must be 2 numbers"),
        (np.zeros(2), [-0.1, 1.1], "prior must be 2 numbers"),
        (np.zeros(2), [0.0, 0.0], "prior must be 2 numbers"),
        (np.zeros(2), [np.nan, 1.0], "prior must be 2 numbers"),
    ],
)
def test_refuses_logits_and_priors(logits: Any, prior: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _core().probabilities(logits, prior)


def test_notes_say_where_the_weights_are_not_used() -> None:
    y = np.array([0] * 90 + [1] * 10)
    sampler = SamplerCore(y, epochs=3, policy="constant:share=root,class_importance=.5")
    assert sampler.notes == []
    sampler.update(y, np.linspace(0, 1, 100))
    assert any("sampler.loss" in note for note in sampler.notes)
    sampler.use_compensation()
    assert sampler.notes == []


def test_a_learned_policy_waits_for_the_loss_without_a_warning() -> None:
    y = np.array([0] * 900 + [1] * 100)
    sampler = SamplerCore(y, epochs=4, policy="ppo")  # a warning is an error in these tests
    assert sampler.notes == []
    sampler.use_compensation()
    sampler.draw()
    sampler.update(y, np.linspace(0, 1, 1000))
    assert not any("sampler.loss" in note for note in sampler.notes)


def test_infinite_logits_are_certain() -> None:
    sampler = SamplerCore(np.array([0] * 90 + [1] * 10), epochs=3)
    assert sampler.probabilities([np.inf, -np.inf]).tolist() == [[0.0, 1.0], [1.0, 0.0]]
