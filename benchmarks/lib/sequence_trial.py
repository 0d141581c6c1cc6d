"""Train one classifier on whole histories with fixed sampling weights, without a run folder."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.devices import torch_threads
from balancer.models import Classifier
from balancer.models.attention.core import SparseCore
from balancer.models.attention.functional import resolve
from balancer.options.fit import FitOptions
from balancer.options.model import ModelOptions
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.seeding import generator
from balancer.sampling.weights import SamplingWeights
from balancer.training.fitting import Pools
from balancer.training.preparation import model_config
from balancer.training.trainer import ClassifierTrainer

SHARE = 0.12
"""Share of frauds among the drawn rows, with hardness 0; the same in every trial."""
DRAWS = 8
"""How many times rows are drawn; each draw serves an eighth of the steps."""


def train_trial(
    dataset: Dataset,
    *,
    attention: str,
    history_length: int,
    attention_window: int,
    num_global: int,
    seed: int,
    steps: int,
    warmup: float,
    threads: int,
) -> dict[str, Any]:
    """Train on the training rows of ``dataset`` in the form ``histories`` and score its test rows.

    Args:
        dataset: a data set that has been split.
        attention: ``dense`` or ``sparse``.
        history_length: transactions of an entity that the model reads at most.
        attention_window: transactions that sparse attention looks back.
        num_global: global nodes of sparse attention.
        seed: seed of everything random.
        steps: optimizer steps.
        warmup: share of the steps in which sparse attention is dense.
        threads: CPU threads.

    Returns:
        ``average_precision`` on the test rows, ``seconds_train``, ``seconds_score``, ``rows_scored``, and the
        ``backend`` that sparse attention scores with, None for dense attention.
    """
    with torch_threads(threads):
        model = ModelOptions(
            attention=attention,
            form="histories",
            history_length=history_length,
            attention_window=attention_window,
            global_nodes=num_global,
        )
        fit = FitOptions()
        pools = Pools.of(dataset)
        student = ClassifierTrainer(
            dataset,
            model_config(dataset, model, seed=seed),
            seed=seed,
            total_steps=steps,
            batch_size=fit.batch_size,
            learning_rate=fit.learning_rate,
            warmup=warmup,
        )
        labels = np.full(len(dataset.store.label), -1, dtype=np.int64)
        labels[pools.train] = dataset.store.label[pools.train]
        sampler = RowSampler(labels, len(dataset.schema.classes))
        share = np.concatenate([[1 - SHARE], SHARE * sampler.prior[1:] / sampler.prior[1:].sum()])
        started = time.perf_counter()
        for draw in range(DRAWS):
            done, until = (steps * part // DRAWS for part in (draw, draw + 1))
            weights = SamplingWeights(share, 0.0, 0.0)
            student.fit(sampler.draw((until - done) * fit.batch_size, weights, generator(seed, "draw", draw)))
        trained = time.perf_counter()
        rows = dataset.rows(Split.TEST)
        score = 1.0 - student.score(rows)[:, 0]
        scored = time.perf_counter()
        return {
            "average_precision": float(average_precision_score(dataset.store.label[rows] > 0, score)),
            "seconds_train": trained - started,
            "seconds_score": scored - trained,
            "rows_scored": len(rows),
            "backend": _backend(student.model),
        }


def _backend(model: Classifier) -> str | None:
    config, core = model.config, next((module for module in model.modules() if isinstance(module, SparseCore)), None)
    if core is None:
        return None
    query = torch.empty(1, config.history_length, config.num_heads, config.d_model // config.num_heads)
    return resolve(core.backend, query, core.layout, core.num_global)
