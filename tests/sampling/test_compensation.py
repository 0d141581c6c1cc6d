"""How drawn rows count: the mass of each row, and the raw scores that boosted trees start from."""

from __future__ import annotations

import numpy as np
import pytest

from balancer.errors import InputError
from balancer.sampling.core import SamplerCore
from balancer.sampling.weights import SamplingWeights


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
