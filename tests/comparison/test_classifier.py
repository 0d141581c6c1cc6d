"""Treatments of the classifier: the fit of balancer train, checkpoints, under-sampling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from balancer.comparison.classifier import SequenceTrainer
from balancer.comparison.folds import FoldedTable
from balancer.comparison.treatments import Trained, named_treatment
from balancer.data.dataset import Dataset
from balancer.data.simulation.stream import simulate
from balancer.data.split import Split
from balancer.options.fit import FitOptions
from balancer.options.model import ModelOptions
from balancer.training.trainer import ClassifierTrainer
from balancer.training.treatment import under_sampled

MODEL = ModelOptions(history_length=4, d_model=16, layers=1)
FIT = FitOptions(epochs=2, steps_per_epoch=4, batch_size=64)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    table = FoldedTable(simulate(4_000, seed=3, fraud_rate=0.05), folds=1, roles={"gap": "1d"})
    return table.load(table.folds[0])


def _train(dataset: Dataset, folder: Path, names: tuple[str, ...], texts: list[str] | None = None) -> Trained:
    trainer = SequenceTrainer(dataset, MODEL, FIT, seed=0, folder=folder)
    treatments = [named_treatment(name, trainer.counts, 5) for name in names]
    return trainer.train(treatments, 5, texts.append if texts is not None else lambda text: None)


def test_treatments_differ_and_are_scored_on_all_rows(dataset: Dataset, tmp_path: Path) -> None:
    names = ("none", "one_to_one", "under", "class_weight", "rule", "constant:share=.2,hardness=1")
    texts: list[str] = []
    trained = _train(dataset, tmp_path, names, texts)
    assert "2 of 6, epoch 2" in texts
    scores = trained.scores(range(len(names)))
    assert {(len(t), len(s)) for t, s in scores} == {(len(dataset.rows(Split.THRESHOLD)), len(dataset.rows(Split.TEST)))}
    assert len({s.tobytes() for _, s in scores}) == len(names)
    assert trained.minority_share[[1, 2, 5]] == pytest.approx([0.5, 0.5, 0.2])
    assert trained.hardness[5] == 1
    assert ((trained.reward > 0) & (trained.reward <= 1)).all()


def test_goes_on_from_the_checkpoint_to_the_same_bits(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _train(dataset, tmp_path / "a", ("rule",)).scores([0])[0][1]
    fit = ClassifierTrainer.fit
    calls = 0

    def stopping(self: ClassifierTrainer, rows: np.ndarray, extra: dict[str, np.ndarray] | None = None) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return fit(self, rows, extra)

    monkeypatch.setattr(ClassifierTrainer, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        _train(dataset, tmp_path / "b", ("rule",))
    resumed = _train(dataset, tmp_path / "b", ("rule",)).scores([0])[0][1]
    assert calls == 3  # the first epoch is not made again
    assert resumed.tobytes() == whole.tobytes()


def test_under_sampling_keeps_the_frauds_and_the_rest_as_history(dataset: Dataset) -> None:
    thin = under_sampled(dataset, 5)
    label, train = dataset.store.label, dataset.rows(Split.TRAIN)
    kept = thin.rows(Split.TRAIN)
    assert set(kept) <= set(train)
    assert (label[kept] > 0).sum() == (label[train] > 0).sum() == (label[kept] == 0).sum()
    for split in (Split.THRESHOLD, Split.TEST):
        np.testing.assert_array_equal(thin.rows(split), dataset.rows(split))
    assert thin.store is dataset.store
