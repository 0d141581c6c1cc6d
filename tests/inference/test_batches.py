"""Every target once, at its position, in batches of bounded size; a classifier on whole histories against one
history at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.split import Split
from balancer.inference import batches as sequence_batches
from balancer.inference.batches import history_batches, minibatches
from balancer.models import ModelConfig, SequenceBatch
from balancer.options.model import ModelOptions
from balancer.training.preparation import model_config
from balancer.training.trainer import ClassifierTrainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tiny_table: Path) -> Dataset:
    return load_dataset(tiny_table, resolve_spec(tiny_table))


def config(dataset: Dataset, **given: object) -> ModelConfig:
    flags = {"form": "histories", "history_length": 20, "d_model": 16, "layers": 2, "attention": "dense"} | given
    return model_config(dataset, ModelOptions(**flags), seed=0)  # type: ignore[arg-type]


def test_parts_hold_every_target_once_and_stay_small(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence_batches, "MAX_TOKENS", 100)
    rng = np.random.default_rng(0)
    rows = rng.choice(len(dataset.store), 500)  # some rows several times
    seen = []
    for part in history_batches(dataset.store, rows, 20, CPU):
        count, width = part.batch.mask.shape
        assert count * width <= 100
        row, position = (x.numpy() for x in part.targets)
        assert part.batch.mask[part.targets].all()
        np.testing.assert_array_equal(part.first[row] + position, rows[part.index])
        np.testing.assert_array_equal(part.batch.values[row, position], dataset.store.values[rows[part.index]])
        seen.append(part.index)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(500))


def test_minibatches_hold_every_target_once_and_whole_histories(dataset: Dataset) -> None:
    rows = np.random.default_rng(0).choice(dataset.rows(Split.TRAIN), 1000)
    steps = list(minibatches(dataset.store, rows, 20, 64, np.random.default_rng(1)))
    assert len(steps) == 16
    np.testing.assert_array_equal(np.sort(np.concatenate(steps)), np.arange(1000))
    segments = dataset.store.segments(rows, 20)
    owners = [set(segments.segment[step]) for step in steps]
    assert sum(map(len, owners)) == len(set.union(*owners))
    other = list(minibatches(dataset.store, rows, 20, 64, np.random.default_rng(2)))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(steps, other, strict=True))


@pytest.mark.parametrize("attention", ["dense", "window", "sparse"])
def test_scores_are_those_of_each_history_by_itself(dataset: Dataset, attention: str) -> None:
    student = ClassifierTrainer(dataset, config(dataset, attention=attention, attention_window=4, global_nodes=2), seed=0, total_steps=1)
    rows = dataset.rows(Split.TEST)[:40]
    scores = student.score(rows)
    segments = dataset.store.segments(rows, 20)
    for index, row in enumerate(rows):
        first = segments.first[segments.segment[index]]
        alone = torch.from_numpy(dataset.store.values[first : row + 1])[None]
        lengths = np.array([alone.shape[1]])
        with torch.no_grad():
            expected = student.model.probabilities(SequenceBatch.from_windows(alone, lengths))  # the last position
        np.testing.assert_allclose(scores[index], expected[0].numpy(), atol=2e-6)


def test_gradient_does_not_depend_on_the_passes(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).choice(dataset.rows(Split.TRAIN), 64)
    gradients = []
    for tokens in (32_768, 60):
        monkeypatch.setattr(sequence_batches, "MAX_TOKENS", tokens)
        student = ClassifierTrainer(
            dataset,
            config(dataset, dropout=0.0, field_dropout=0.0),
            seed=0,
            total_steps=1,
            class_weight=np.array([0.5, 4.0]),
        )
        student.model.eval()  # no category is hidden at random
        loss = student._gradients((rows,), ())
        gradients.append((loss, [p.grad for p in student.model.parameters() if p.grad is not None]))
    (loss, one), (other_loss, other) = gradients
    assert one
    torch.testing.assert_close(loss, other_loss)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_training_repeats_and_continues_to_the_same_bits(dataset: Dataset, attention: str) -> None:
    rows = np.random.default_rng(0).choice(dataset.rows(Split.TRAIN), (2, 256))
    made = config(dataset, attention=attention, attention_window=4, global_nodes=2)

    def student() -> ClassifierTrainer:
        return ClassifierTrainer(dataset, made, seed=5, total_steps=4, batch_size=128, warmup=0.5)

    whole = student()
    losses = [whole.fit(part) for part in rows]
    assert np.isfinite(losses).all()
    broken = student()
    broken.fit(rows[0])
    resumed = student()
    resumed.load_state_dict(broken.state_dict())
    resumed.fit(rows[1])
    for name, value in whole.state_dict().items():
        np.testing.assert_array_equal(value, resumed.state_dict()[name], err_msg=name)
