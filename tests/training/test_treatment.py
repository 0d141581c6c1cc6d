"""Treatments: their shares, rows and losses, and what the classifier can't be trained under."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.simulation.stream import simulate
from balancer.errors import UnsupportedError
from balancer.options.fit import Budget, FitOptions
from balancer.options.model import ModelOptions
from balancer.sampling.policies import ConstantPolicy, RulePolicy
from balancer.training.fitting import fit_classifier
from balancer.training.preparation import model_config
from balancer.training.treatment import FIXED, Treatment, balanced_class_weight, fixed_treatment

COUNTS = np.array([900, 60, 40])


@pytest.mark.parametrize("name", FIXED)
def test_fixed_treatments(name: str) -> None:
    treatment = fixed_treatment(name, COUNTS)
    weights = treatment.fixed_weights
    assert weights is not None
    balanced = name in ("one_to_one", "under", "smote")
    np.testing.assert_allclose(weights.share, [0.5, 0.3, 0.2] if balanced else [0.9, 0.06, 0.04])
    assert (weights.hardness, weights.floor) == (0.0, 0.0)
    assert treatment.rows == (name if name in ("under", "smote") else "all")
    assert treatment.loss == (name if name in ("class_weight", "focal", "logit_adjustment") else "plain")


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


@pytest.mark.parametrize("name", ["smote", "focal", "logit_adjustment"])
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
