"""One training that is read in several ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from balancer.data.split import Split
from balancer.inference.detector import log_odds
from balancer.options.fit import Budget, FitOptions
from balancer.training.fitting import Pools, fit_classifier
from balancer.training.treatment import fixed_treatment
from benchmarks.lib.network_trial import READINGS, Training, train_and_read
from benchmarks.lib.training import default_model, simulated_dataset

BUDGET = Budget(epochs=4, steps_per_epoch=3)


def test_readings_are_of_the_training_that_balancer_does(tmp_path: Path) -> None:
    dataset = simulated_dataset(8_000, seed=0, fraud_rate=0.05)
    model = replace(default_model(dataset, edges_seed=0), d_model=16, num_layers=1, history_length=4)
    treatment = fixed_treatment("one_to_one", Pools.of(dataset).train_counts)
    training = Training(dataset, model, treatment, BUDGET, FitOptions(batch_size=64), others={"same": dataset})
    found, _, kept = train_and_read(training, 3, (*READINGS, "same"))
    checkpoint = tmp_path / "checkpoint.safetensors"
    trainer, figures = fit_classifier(
        dataset,
        model,
        treatment,
        BUDGET,
        training.options,
        seed=3,
        device="cpu",
        checkpoint=checkpoint,
        after_epoch=lambda *_: None,
    )
    expected = log_odds(trainer.score(dataset.rows(Split.TEST))).astype(np.float32)
    last = found["last"][Split.TEST]
    np.testing.assert_array_equal(last, expected)
    np.testing.assert_array_equal(found["same"][Split.TEST], last)
    assert all(
        np.array_equal(mine.detach(), other.detach()) for mine, other in zip(kept.parameters(), trainer.model.parameters(), strict=True)
    )
    assert len(figures) == BUDGET.epochs
    for reading in ("ema", "snapshots"):
        distance = np.abs(found[reading][Split.TEST] - last).mean()
        assert 0 < distance < np.abs(last).mean(), reading
