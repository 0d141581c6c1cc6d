"""What samplers show of their core: the loss for validation, and figures without an update."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from balancer.errors import InputError
from balancer.sampling.torch_sampler import AdaptiveBatchSampler, AdaptiveSampler


@pytest.mark.parametrize("prior", ["natural", "balanced", (0.2, 0.5, 0.3)], ids=str)
def test_the_validation_loss_is_that_of_the_probabilities(prior: str | tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], 300, p=[0.1, 0.6, 0.3])
    sampler = AdaptiveBatchSampler(labels, batch_size=20, epochs=2)
    logits, code = torch.as_tensor(rng.normal(size=(40, 3)), dtype=torch.float32), rng.integers(3, size=40)
    p = np.asarray(sampler.probabilities(logits, prior))
    each = -np.log(p[np.arange(40), code])
    for target in (code, np.array(["a", "b", "c"])[code]):
        np.testing.assert_allclose(sampler.validation_loss(logits, target, prior=prior, reduction="none"), each, rtol=1e-5)
    assert float(sampler.validation_loss(logits, code, prior=prior)) == pytest.approx(each.mean(), rel=1e-5)
    assert not sampler.compensated  # it says nothing about the loss of the training
    with pytest.raises(InputError, match="a tensor"):
        sampler.validation_loss(logits.numpy(), code)  # type: ignore[arg-type]


def test_figures_can_be_measured_without_an_update() -> None:
    y = np.repeat([0, 1], [90, 10])
    sampler = AdaptiveSampler(y, epochs=3, policy="rule")
    score = np.random.default_rng(0).random(100)
    measured = sampler.measure(y, score)
    assert sampler._core.updates == 0 and sampler.metrics["average_precision"] == 0
    sampler.update(y, score)
    assert measured == pytest.approx(sampler.metrics)
    with pytest.raises(InputError, match="class 0 only"):
        sampler.measure([0, 0], [0.1, 0.2])


def test_probabilities_belong_to_the_model_of_the_best_epoch_once_it_is_restored() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(2000) < 0.05).astype(int)
    sampler = AdaptiveSampler(y, epochs=5, policy="constant:share=.3,hardness=2,class_importance=.5", compensated=True)
    logits = torch.as_tensor(rng.normal(size=50), dtype=torch.float32)

    def epoch(noise: float) -> np.ndarray:
        list(sampler)
        sampler.loss(logits, np.zeros(50, dtype=int))
        after = np.asarray(sampler.probabilities(logits))  # of the model that has just been trained
        score = 1 / (1 + np.exp(-(4.0 * y - 2.0 + noise * rng.normal(size=2000))))
        sampler.update(y, score, rows=np.arange(2000), row_score=score)
        np.testing.assert_array_equal(sampler.probabilities(logits), after)
        return after

    epoch(1.0)
    best = epoch(0.5)
    last = epoch(4.0)
    assert sampler.best_epoch == 1 and np.abs(last - best).max() > 1e-3
    again = AdaptiveSampler(y, epochs=5, policy="constant:share=.3,hardness=2,class_importance=.5", compensated=True)
    again.load_state_dict(sampler.state_dict())
    for restored in (sampler, again):
        restored.use_best_epoch()
        np.testing.assert_array_equal(restored.probabilities(logits), best)
    list(sampler)
    assert np.abs(np.asarray(sampler.probabilities(logits)) - best).max() > 1e-3
