"""A table whose only signal is which numbers are missing: every learner sees it, and tasks have its class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import average_precision_score

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.spec import DAY, Spec
from balancer.data.split import Split
from balancer.deployment.distil import light_config
from balancer.envs.problem import dataset_problem
from balancer.evaluation.baselines import fit_lightgbm
from balancer.evaluation.drift import Reference
from balancer.inference.attribution import hidden_log_odds
from balancer.models import ModelConfig, SequenceBatch
from balancer.options.model import ModelOptions
from balancer.training.auxiliary_targets import make_task, task_targets
from balancer.training.preparation import model_config
from balancer.training.trainer import ClassifierTrainer
from balancer.training.tree_fitting import fit_fold
from balancer.trees import TreeEnsemble

SPEC = Spec(time="time", entity="card", label="fraud", amount="amount", numeric=("email", "other"), label_delay=DAY)
FIELD = "email"


def table(rows: int = 6_000, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    fraud = rng.random(rows) < 0.08
    lost = np.where(rng.random(rows) < 0.9, fraud, rng.random(rows) < 0.05)
    email = np.where(lost, np.nan, rng.normal(size=rows))
    other = np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows))
    return pl.DataFrame(
        {
            "time": np.sort(rng.random(rows)) * 60 * DAY,
            "card": rng.integers(0, 300, rows),
            "amount": rng.lognormal(3, 1, rows),
            FIELD: pl.Series(email).fill_nan(None),
            "other": pl.Series(other).fill_nan(None),
            "fraud": fraud.astype(np.int8),
        }
    )


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(table(), SPEC)


@pytest.fixture(scope="module")
def config(data: Dataset) -> ModelConfig:
    return model_config(data, ModelOptions(d_model=16, layers=1, history_length=4), seed=0)


def test_the_model_knows_the_fields(data: Dataset, config: ModelConfig) -> None:
    assert data.schema.missing == config.missing == (FIELD, "other")
    assert light_config(config).missing == config.missing
    assert all(np.isfinite(edges).all() for edges in config.edges)


def test_the_network_learns_it(data: Dataset, config: ModelConfig) -> None:
    trainer = ClassifierTrainer(data, config, seed=0, total_steps=300, learning_rate=5e-3)
    rng = np.random.default_rng(0)
    train, test = data.rows(Split.TRAIN), data.rows(Split.TEST)
    trainer.fit(rng.choice(train, 300 * 256))
    label = data.store.label[test] > 0
    assert average_precision_score(label, trainer.score(test)[:, 1]) > 0.75
    row = int(test[label & np.isnan(data.store.values[test, data.schema.numeric_fields.index(FIELD)])][0])
    found = hidden_log_odds(trainer.model, data, row, device=torch.device("cpu"))
    changes = found[0] - found[1:]
    assert int(np.argmax(changes)) == data.schema.numeric_fields.index(FIELD) and changes.max() > 1


def test_trees_learn_it_with_lightgbms_bits(data: Dataset) -> None:
    result = fit_lightgbm(data, seed=0, threads=1)
    assert average_precision_score(data.store.label[data.rows(Split.TEST)] > 0, result.test_score) > 0.75
    import lightgbm as lgb

    text = fit_fold(data, 0, seed=0, threads=1, progress=lambda *_: None)
    trees, booster = TreeEnsemble.from_text(text), lgb.Booster(model_str=text)
    values = data.store.values[data.rows(Split.TEST)]
    assert np.isnan(values).any()
    np.testing.assert_array_equal(trees.raw(values), booster.predict(values, raw_score=True))
    contributions = trees.contributions(values[:50])
    np.testing.assert_allclose(contributions, booster.predict(values[:50], pred_contrib=True), atol=1e-9)


def test_policies_are_trained_on_it(data: Dataset) -> None:
    problem, _ = dataset_problem(data, 0)
    assert np.isfinite(problem.x_train).all() and np.isfinite(problem.x_val).all()


def test_drift_counts_it(data: Dataset) -> None:
    train = data.store.values[data.split == Split.TRAIN]
    reference = Reference.of(data.schema.numeric_fields, (), train, np.random.default_rng(0).random(100))
    shares = dict(zip(reference.names, reference.missing, strict=True))
    assert shares[FIELD] == pytest.approx(np.isnan(train[:, data.schema.numeric_fields.index(FIELD)]).mean())
    assert shares["hour"] == 0


def test_tasks_have_a_class_for_it(data: Dataset, config: ModelConfig) -> None:
    place, rows = config.numeric_fields.index(FIELD), np.arange(len(data.store))
    missing = np.isnan(data.store.values[:, place])
    for name in ("masked_fields", "next_fields"):
        task = make_task(name, data, config)
        assert task.sizes[place] == len(config.edges[place])
        assert task.sizes[0] == max(2, len(config.edges[0]) - 1)
    codes = task_targets(data, config, make_task("masked_fields", data, config), rows)
    assert (codes[missing, place] == len(config.edges[place]) - 1).all()
    assert codes[~missing, place].max() < len(config.edges[place]) - 1
    plain = task_targets(data, replace(config, missing=()), make_task("masked_fields", data, replace(config, missing=())), rows)
    assert (plain[missing, place] == -1).all()


def test_a_masked_field_is_hidden_and_not_missing(data: Dataset, config: ModelConfig) -> None:
    trainer = ClassifierTrainer(data, config, seed=0, total_steps=1)
    rows = data.rows(Split.TRAIN)[:6]
    values, lengths = data.store.windows(rows, config.history_length)
    batch = SequenceBatch.from_windows(values, lengths)
    chosen = np.zeros((6, values.shape[2]), dtype=bool)
    chosen[:, config.numeric_fields.index(FIELD)] = True
    hidden = trainer._hide(batch, (torch.arange(6), batch.lengths - 1), chosen)
    assert hidden.hidden is not None and hidden.hidden.sum() == 6
    with torch.no_grad():
        trainer.model.embedding.missing.weight.normal_()
        trainer.model.eval()
        other = SequenceBatch(hidden.values, hidden.lengths, hidden.mask)
        assert not torch.allclose(trainer.model(hidden), trainer.model(other))
