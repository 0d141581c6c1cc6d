"""What the page Weights says of a run: what was drawn, what counted, and verdicts that know the noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from balancer.app.weights_summary import (
    class_shares,
    drawn_and_counted,
    game_verdict,
    map_marks,
    map_verdict,
    nearest_cell,
    noise_of,
    run_verdict,
    students_verdict,
    validation_frauds,
)
from balancer.sampling.weights import SamplingWeights

EPOCHS = pl.DataFrame(
    {
        "model": ["run", "run", "none", "none", "one_to_one"],
        "epoch": [1, 2, 1, 2, 1],
        "average_precision": [0.50, 0.60, 0.40, 0.41, 0.45],
        "class_importance": [0.5, 0.0, 0.0, 0.0, 0.0],
        "share_0": [0.8, 0.7, 0.98, 0.98, 0.5],
        "share_a": [0.15, 0.2, 0.015, 0.015, 0.3],
        "share_b": [0.05, 0.1, 0.005, 0.005, 0.2],
    }
)
RUN = EPOCHS.filter(pl.col("model") == "run")
PARTS: dict[str, Any] = {
    "run": {"data": {"parts": {"train": {"classes": {"0": 98, "a": 1, "b": 1}}, "reward": {"classes": {"0": 500, "a": 60, "b": 40}}}}}
}
SURFACE = pl.DataFrame(
    {"share": [0.02, 0.02, 0.5, 0.5], "hardness": [0.0, 1.0] * 2, "average_precision": [0.3, 0.5, 0.4, 0.2], "f1": [0.6] + [0.1] * 3}
)
PATH = pl.DataFrame({"epoch": [1, 2], "share": [0.02, 0.4], "hardness": [0.0, 0.1]})


def test_what_counted_is_what_the_loss_weighs() -> None:
    prior = class_shares(EPOCHS, {})
    assert prior == [0.98, 0.015, 0.005]
    found = drawn_and_counted(RUN, prior)
    assert found["drawn"].to_list() == pytest.approx([0.2, 0.3])
    for row, importance in zip(found.to_dicts(), (0.5, 0.0), strict=True):
        share = RUN.filter(pl.col("epoch") == row["epoch"]).select("share_0", "share_a", "share_b").to_numpy()[0]
        weights = SamplingWeights(share, class_importance=importance)
        mass = share * weights.class_weight(np.array(prior))
        assert row["counted"] == pytest.approx(1 - mass[0] / mass.sum())
        assert row["table"] == pytest.approx(0.02)
    assert found["counted"][1] == pytest.approx(found["drawn"][1]), "without importance, every drawn row counts alike"


def test_shares_of_the_table_come_from_the_report_or_are_not_known() -> None:
    alone = EPOCHS.filter(pl.col("model") == "run")
    assert class_shares(alone, PARTS) == [0.98, 0.01, 0.01]
    assert class_shares(alone, {}) is None
    assert drawn_and_counted(alone, None).columns == ["epoch", "drawn"]
    assert drawn_and_counted(alone.drop("class_importance"), [0.98, 0.015, 0.005])["counted"].to_list() == pytest.approx([0.2, 0.3])
    assert validation_frauds(PARTS) == 100
    assert validation_frauds({"run": {}}) is None


@pytest.mark.parametrize(
    ("frauds", "outcome", "words"),
    [(10_000, "better", "are better"), (30, "unclear", "No clear difference"), (None, "unclear", "not known")],
)
def test_a_difference_within_the_noise_is_no_clear_difference(frauds: int | None, outcome: str, words: str) -> None:
    found = run_verdict(EPOCHS, frauds=frauds, on_trees=False)
    assert found is not None
    assert (found.outcome, words in found.sentence) == (outcome, True)
    assert "0.600 against 0.450 of 1:1 over-sampling" in found.sentence


def test_worse_weights_are_called_worse_and_a_start_from_trees_is_said() -> None:
    worse = run_verdict(EPOCHS.with_columns(average_precision=1 - pl.col("average_precision")), frauds=10_000, on_trees=True)
    assert worse is not None and worse.outcome == "worse" and "trees" not in worse.sentence
    better = run_verdict(EPOCHS, frauds=10_000, on_trees=True)
    assert better is not None and "scores of the trees" in better.sentence
    assert run_verdict(RUN, frauds=10, on_trees=False) is None


@pytest.mark.parametrize(("error", "outcome"), [(0.001, "worse"), (0.1, "unclear"), (None, "unclear")])
def test_the_policy_is_compared_with_the_best_of_the_others(error: float | None, outcome: str) -> None:
    figures = {"ppo": {"f1": 0.60}, "constant": {"f1": 0.58}, "start": {"f1": 0.61}}
    found = students_verdict(figures, {"start": "its initial weights"}, "f1", error)
    assert found.outcome == outcome
    assert "0.600 against 0.610 of its initial weights" in found.sentence


def test_the_map_names_its_best_constant_and_says_where_that_is_no_sampling() -> None:
    assert map_marks(SURFACE, "average_precision") == {"best constant on the map": (0.02, 1.0), "no sampling": (0.02, 0.0)}
    assert map_marks(SURFACE, "f1") == {"best constant on the map: no sampling": (0.02, 0.0)}
    assert "which is no sampling" in map_verdict(SURFACE, PATH, "f1", 100).sentence
    found = map_verdict(SURFACE, PATH, "average_precision", 10_000)
    assert "clearly better than no sampling (0.300)" in found.sentence
    assert found.outcome == "better"
    assert "no clear difference from no sampling" in map_verdict(SURFACE, PATH, "average_precision", 4).sentence
    assert nearest_cell(SURFACE, {"share": 0.4, "hardness": 0.1})["average_precision"] == 0.4


@pytest.mark.parametrize(("yours", "outcome", "sign"), [(0.9, "better", "+0.300"), (0.2, "worse", "-0.400"), (0.59, "unclear", "-0.010")])
def test_a_loss_in_the_game_is_no_success(yours: float, outcome: str, sign: str) -> None:
    found = game_verdict({"you": yours, "no sampling": 0.6, "1:1 over-sampling": 0.1}, "you", 200)
    assert found.outcome == outcome
    assert sign in found.sentence and "no sampling" in found.sentence
    assert noise_of(0.5, 100) == pytest.approx(0.1)
