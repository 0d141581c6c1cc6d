"""Treatments: their shares, rows and losses, and what the classifier can't be trained under."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.simulation.stream import simulate
from balancer.errors import UnsupportedError
from balancer.options.fit import Budget, FitOptions
from balancer.options.model import ModelOptions
from balancer.sampling.controller import SamplingController
from balancer.sampling.policies import ConstantPolicy, DefaultPolicy, RulePolicy, SchedulePolicy, load_policy
from balancer.training.fitting import Pools, fit_classifier
from balancer.training.preparation import model_config
from balancer.training.treatment import FIXED, Treatment, balanced_class_weight, fixed_treatment, policy_treatment

COUNTS = np.array([900, 60, 40])
STORED = Path(__file__).parents[1] / "stored" / "0.1" / "policy"
"""A policy of version 0.1."""


@pytest.mark.parametrize("name", FIXED)
def test_fixed_treatments(name: str) -> None:
    treatment = fixed_treatment(name, COUNTS)
    kind = name.removesuffix("_zero_bias")
    weights = treatment.fixed_weights
    assert weights is not None
    balanced = name in ("one_to_one", "under", "smote")
    np.testing.assert_allclose(weights.share, [0.5, 0.3, 0.2] if balanced else [0.9, 0.06, 0.04])
    assert (weights.hardness, weights.floor) == (0.0, 0.0)
    assert treatment.rows == (name if name in ("under", "smote") else "all")
    assert treatment.loss == (kind if kind in ("class_weight", "focal", "logit_adjustment") else "plain")
    assert treatment.bias == ("fitting" if kind == name else "zero")


@pytest.mark.parametrize("name", FIXED)
def test_fixed_treatments_start_with_the_bias_that_fits_them(name: str) -> None:
    treatment = fixed_treatment(name, COUNTS)
    first = treatment.first_weights(COUNTS, COUNTS, epochs=3, batch_budget=100)
    assert first is treatment.fixed_weights or first.to_dict() == treatment.fixed_weights.to_dict()  # type: ignore[union-attr]
    counts = np.array([100, 60, 40]) if name in ("under", "smote") else COUNTS
    odds = np.exp(treatment.initial_bias(counts, first))
    expected = {"none": [0.9, 0.06, 0.04], "focal": [0.9, 0.06, 0.04], "one_to_one": [0.5, 0.3, 0.2]}
    expected |= {"under": [0.5, 0.3, 0.2], "smote": [0.5, 0.3, 0.2]}
    np.testing.assert_allclose(odds / odds.sum(), expected.get(name, [1 / 3] * 3))


def test_policies_start_with_the_bias_of_their_first_weights() -> None:
    options = {"epochs": 5, "batch_budget": 5_000}
    for policy, loss in ((RulePolicy(), "plain"), (DefaultPolicy(), "plain"), (SchedulePolicy(), "plain"), (DefaultPolicy(), "sampler")):
        treatment = Treatment("policy", policy, loss=loss)  # type: ignore[arg-type]
        first = treatment.first_weights(COUNTS, COUNTS, **options)
        given: dict[str, Any] = options | {"train_counts": COUNTS, "reward_counts": COUNTS, "compensated": loss == "sampler"}
        assert first.to_dict() == SamplingController(COUNTS / 1000, policy, **given).weights.to_dict()
        bias = treatment.initial_bias(COUNTS, first)
        if loss == "sampler":
            assert not bias.any()
        else:
            np.testing.assert_allclose(np.exp(bias) / 3, first.share)
    assert policy_treatment("auto", DefaultPolicy()).loss == "sampler"
    assert policy_treatment("rule", RulePolicy()).loss == "plain"


def test_policies_of_version_0_1_are_trained_with_the_loss_they_were_made_for(dataset: Dataset, tmp_path: Path) -> None:
    old = load_policy(STORED, num_classes=2)
    treatment = policy_treatment("old", old)
    assert treatment.loss == "plain"
    counts, reward_counts = Pools.of(dataset).train_counts, Pools.of(dataset).reward_counts
    first = treatment.first_weights(counts, reward_counts, epochs=2, batch_budget=1024)
    assert not first.compensated
    np.testing.assert_allclose(np.exp(treatment.initial_bias(counts, first)) / 2, first.share)
    model = model_config(dataset, ModelOptions(history_length=3, d_model=8, layers=1), seed=0)
    options: dict[str, Any] = {"seed": 0, "device": "cpu", "checkpoint": tmp_path / "c.safetensors", "after_epoch": lambda *_: None}
    _, figures = fit_classifier(dataset, model, treatment, Budget(2, 2), FitOptions(), **options)
    np.testing.assert_allclose(figures[0]["share"], first.share)
    assert [line["class_importance"] for line in figures] == [0.0, 0.0]


def test_policies_that_depend_on_scores_have_no_fixed_weights() -> None:
    assert Treatment("rule", RulePolicy()).fixed_weights is None
    assert Treatment("constant", ConstantPolicy()).fixed_weights is None


def test_class_weights_are_those_of_scikit_learn() -> None:
    label = np.repeat(np.arange(3), COUNTS)
    np.testing.assert_allclose(balanced_class_weight(COUNTS), compute_class_weight("balanced", classes=np.arange(3), y=label))
    assert balanced_class_weight(np.array([5, 0, 5])).tolist() == [1.0, 0.0, 1.0]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    frame = simulate(3_000, seed=3, fraud_rate=0.05)
    return load_dataset(frame, resolve_spec(frame, overrides={"gap": "1d"}))


@pytest.mark.parametrize("name", ["smote", "focal", "focal_zero_bias", "logit_adjustment"])
def test_the_classifier_refuses_what_it_can_not_do(dataset: Dataset, name: str, tmp_path: Path) -> None:
    model = model_config(dataset, ModelOptions(history_length=3, d_model=8, layers=1), seed=0)
    with pytest.raises(UnsupportedError, match=name):
        fit_classifier(
            dataset,
            model,
            fixed_treatment(name, COUNTS),
            Budget(1, 1),
            FitOptions(),
            seed=0,
            device="cpu",
            checkpoint=tmp_path / "c.safetensors",
            after_epoch=lambda epoch, figures: None,
        )
