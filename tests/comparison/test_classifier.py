"""The classifier as student: it fits as balancer train does, goes on from a checkpoint, and leaves nothing of the thinned rows in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from balancer.comparison.classifier import SequenceStudent, thinned_train
from balancer.comparison.treatments import Trained, fixed_arm
from balancer.comparison.windows import WindowedTable
from balancer.data.dataset import Dataset
from balancer.data.simulation.stream import simulate
from balancer.data.split import Split
from balancer.options.train import TrainConfig
from balancer.training.trainer import ClassifierStudent

CONFIG = TrainConfig(Path("t"), epochs=2, steps_per_epoch=4, batch_size=64, history_length=4, d_model=16, layers=1)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    table = WindowedTable(simulate(4_000, seed=3, fraud_rate=0.05), windows=1, roles={"gap": "1d"})
    return table.load(table.windows[0])


def _train(dataset: Dataset, folder: Path, names: tuple[str, ...], told: list[str] | None = None) -> Trained:
    student = SequenceStudent(dataset, CONFIG, folder=folder)
    arms = [fixed_arm(name, student.counts, 5) for name in names]
    return student.train(arms, 5, told.append if told is not None else lambda text: None)


def test_arms_differ_and_are_scored_on_all_rows(dataset: Dataset, tmp_path: Path) -> None:
    names = ("none", "one_to_one", "under", "class_weight", "rule", "constant:share=.2,hardness=1")
    told: list[str] = []
    trained = _train(dataset, tmp_path, names, told)
    assert "2 of 6, epoch 2" in told
    scores = trained.scores(range(len(names)))
    assert {(len(t), len(s)) for t, s in scores} == {(len(dataset.rows(Split.THRESHOLD)), len(dataset.rows(Split.TEST)))}
    assert len({s.tobytes() for _, s in scores}) == len(names)
    assert trained.minority_share[[1, 2, 5]] == pytest.approx([0.5, 0.5, 0.2])
    assert trained.hardness[5] == 1
    assert ((trained.reward > 0) & (trained.reward <= 1)).all()


def test_goes_on_from_the_checkpoint_to_the_same_bits(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _train(dataset, tmp_path / "a", ("rule",)).scores([0])[0][1]
    fit = ClassifierStudent.fit
    calls = 0

    def stopping(self: ClassifierStudent, rows: np.ndarray, extra: dict[str, np.ndarray] | None = None) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return fit(self, rows, extra)

    monkeypatch.setattr(ClassifierStudent, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        _train(dataset, tmp_path / "b", ("rule",))
    resumed = _train(dataset, tmp_path / "b", ("rule",)).scores([0])[0][1]
    assert calls == 3  # the first epoch is not made again
    assert resumed.tobytes() == whole.tobytes()


def test_under_sampling_keeps_the_frauds_and_the_rest_as_history(dataset: Dataset) -> None:
    thin = thinned_train(dataset, 5)
    label, train = dataset.store.label, dataset.rows(Split.TRAIN)
    kept = thin.rows(Split.TRAIN)
    assert set(kept) <= set(train)
    assert (label[kept] > 0).sum() == (label[train] > 0).sum() == (label[kept] == 0).sum()
    for split in (Split.THRESHOLD, Split.TEST):
        np.testing.assert_array_equal(thin.rows(split), dataset.rows(split))
    assert thin.store is dataset.store
