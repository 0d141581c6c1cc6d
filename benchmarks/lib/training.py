"""Load the tables of the benchmarks and train classifiers on them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.simulation.stream import simulate
from balancer.data.split import Split
from balancer.models import Classifier, ModelConfig, fit_edges
from balancer.options.fit import Budget, FitOptions
from balancer.options.model import ModelOptions
from balancer.training.fitting import fit_classifier
from balancer.training.trainer import ClassifierTrainer
from balancer.training.treatment import Treatment
from benchmarks.lib.streams import STREAMS


def load_stream(name: str, label: str | None = None) -> Dataset:
    """The stream ``name``, with ``label`` as its label column instead of the spec's where one is named."""
    stream = STREAMS[name]
    overrides = {} if label is None else {"label": label, "negative": "0"}
    return load_dataset(stream.table, resolve_spec(stream.table, spec_file=stream.spec, overrides=overrides))


def simulated_dataset(rows: int, *, seed: int, fraud_rate: float) -> Dataset:
    """A simulated table with the roles that the names of its columns give."""
    table = simulate(rows, seed=seed, fraud_rate=fraud_rate)
    return load_dataset(table, resolve_spec(table))


def default_model(dataset: Dataset, *, edges_seed: int) -> ModelConfig:
    """The default classifier of a run on ``dataset``; its bin edges are fitted with ``edges_seed``."""
    options = ModelOptions()
    store, schema, train = dataset.store, dataset.schema, dataset.rows(Split.TRAIN)
    return ModelConfig(
        schema.numeric_fields,
        schema.categorical_fields,
        schema.cardinalities,
        fit_edges(store.values[train, : store.num_numeric], store.label[train].astype(np.int64), seed=edges_seed),
        classes=schema.classes,
        dropout=options.dropout,
        field_dropout=options.field_dropout,
    )


def train_classifier(
    dataset: Dataset,
    model: ModelConfig,
    treatment: Treatment,
    budget: Budget,
    options: FitOptions,
    *,
    seed: int = 0,
    device: str = "cpu",
    start: Callable[[], Classifier] | None = None,
    after_epoch: Callable[[int, dict[str, Any]], None] = lambda epoch, figures: None,
    train_only: Collection[str] | None = None,
    task_weights: Mapping[str, float] | None = None,
) -> tuple[ClassifierTrainer, list[dict[str, Any]]]:
    """Train a classifier as :func:`balancer.training.fitting.fit_classifier` does, without a checkpoint.

    Returns:
        The trained classifier and the figures of every epoch.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.safetensors"
        return fit_classifier(
            dataset,
            model,
            treatment,
            budget,
            options,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
            start=start,
            after_epoch=after_epoch,
            train_only=train_only,
            task_weights=task_weights,
        )
