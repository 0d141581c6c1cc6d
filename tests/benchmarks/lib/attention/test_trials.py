"""Trainings with dense and sparse attention: cells, pairs by seed, and streams that are missing. Nothing is
trained here.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.lib import streams
from benchmarks.lib.attention import trials

DENSE_PRECISION, SPARSE_PRECISION = [0.80, 0.81, 0.79], [0.795, 0.811, 0.788]


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stream is there and need not be read."""
    monkeypatch.setattr(trials, "missing", lambda _data: None)
    monkeypatch.setattr(trials, "dataset", lambda data: data)


class Trainer:
    """Replaces `train_trial`: it returns figures without training, and remembers its arguments."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, dataset: Any, **given: Any) -> dict[str, Any]:
        self.asked.append({"dataset": dataset} | given)
        sparse = given["attention"] == "sparse"
        return {
            "average_precision": (SPARSE_PRECISION if sparse else DENSE_PRECISION)[given["seed"]] - given["num_global"] / 1000,
            "seconds_train": 2.0,
            "seconds_score": given["attention_window"] / 64 if sparse else 4.0,
            "rows_scored": 100,
            "backend": "auto" if sparse else None,
        }


@pytest.mark.usefixtures("stream")
def test_quality_is_paired_by_seed_and_goes_on_from_finished_cells(tmp_path: Path) -> None:
    train, effort = Trainer(), trials.Effort(tmp_path / "work", steps=5)
    first = trials.quality("handbook", (256,), range(2), effort, train)
    assert len(train.asked) == 4
    found = trials.quality("handbook", (256,), range(3), effort, train)
    assert len(train.asked) == 6
    assert first["histories"]["256"]["average_precision"]["dense"] == found["histories"]["256"]["average_precision"]["dense"][:2]
    figures = found["histories"]["256"]
    truth = stats.ttest_rel(np.array(SPARSE_PRECISION), np.array(DENSE_PRECISION)).confidence_interval()
    assert (figures["difference"]["low"], figures["difference"]["high"]) == pytest.approx((truth.low, truth.high))
    assert figures["relative"]["difference"] == pytest.approx(figures["difference"]["difference"] / figures["mean"]["dense"])
    assert figures["claim"]["holds"] == "met, within noise"
    assert figures["backend"] == "auto"


def test_another_effort_is_another_cell(tmp_path: Path) -> None:
    cell = trials.Cell("handbook", "sparse", 256, 64, 8, 0)
    names = [cell.name(trials.Effort(tmp_path, steps, warmup)) for steps, warmup in ((5, 0.4), (6, 0.4), (5, 0.3))]
    assert len(set(names)) == 3
    # Dense attention has no window, so its cell serves every one.
    other = trials.Cell("handbook", "dense", 256, 128, 2, 0)
    assert other.name(trials.Effort(tmp_path, 5)) == trials.Cell("handbook", "dense", 256, 64, 8, 0).name(trials.Effort(tmp_path, 5))


@pytest.mark.usefixtures("stream")
def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    figures = trials.quality("handbook", (256,), range(1), trials.Effort(tmp_path, steps=5), Trainer())["histories"]["256"]
    assert figures["relative"]["low"] is None
    assert figures["claim"]["holds"] == "met"


@pytest.mark.usefixtures("stream")
def test_sweep_shares_cells_with_quality(tmp_path: Path) -> None:
    train, effort = Trainer(), trials.Effort(tmp_path, steps=5)
    trials.quality("sparkov", (trials.SWEEP_HISTORY,), range(1), effort, train)
    found = trials.sweep("sparkov", (32, 64), (0, 8), 0, effort, lambda shapes: [256 / window for window, _ in shapes], train)
    assert len(train.asked) == 2 + 3  # dense, and w 64 with 8 nodes, were there
    by_shape = {(point["window"], point["global_nodes"]): point for point in found["points"]}
    assert {shape: point["times_faster"] for shape, point in by_shape.items()} == {(32, 0): 8.0, (32, 8): 8.0, (64, 0): 4.0, (64, 8): 4.0}
    assert by_shape[32, 0]["average_precision"] == pytest.approx(0.795)


def test_a_stream_that_is_missing_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(streams.STREAMS, "handbook", streams.Stream(tmp_path / "transactions.parquet", None, "quick"))
    effort = trials.Effort(tmp_path, steps=5)
    for found in (trials.quality("handbook", (256,), range(1), effort), trials.sweep("handbook", (16,), (0,), 0, effort, list)):
        assert "is not there" in found["skipped"]


@pytest.mark.usefixtures("stream")
def test_the_trainer_takes_what_is_asked(tmp_path: Path) -> None:
    train = Trainer()
    trials.quality("handbook", (256,), range(1), trials.Effort(tmp_path, steps=5), train)
    for asked in train.asked:
        inspect.signature(trials.train_trial).bind(**asked)
