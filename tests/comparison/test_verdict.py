"""The verdict on learned weights: against the best fixed ratio, with its interval."""

from __future__ import annotations

import pytest

from balancer.comparison.statistics import means
from balancer.comparison.verdict import best_fixed, kind_of, learned_verdict, title_of
from tests.comparison.test_summary import _results as results


def test_learned_weights_that_beat_the_best_fixed_ratio() -> None:
    cells = results({"one_to_one": 0.0, "none": -0.05, "auto": 0.02, "ppo": 0.06, "lightgbm": 0.2})
    assert best_fixed(means(cells)) == "auto"
    found = learned_verdict(cells)
    assert (found.outcome, found.learned, found.fixed) == ("better", "ppo", "auto")
    assert found.sentence.startswith("Learned weights (PPO) beat the best fixed ratio here, the constant of the package (auto), by 0.04")
    assert "95 % interval +0.0" in found.sentence


def test_learned_weights_that_lose_and_noise() -> None:
    lost = learned_verdict(results({"one_to_one": 0.0, "bandit": -0.1}))
    assert lost.outcome == "worse"
    assert "do not beat the best fixed ratio here, 1:1 over-sampling: they are lower by 0.1" in lost.sentence
    noise = learned_verdict(results({"one_to_one": 0.0, "ppo": 0.004}, wobble=0.05))
    assert noise.outcome == "unclear"
    assert "no clear difference" in noise.sentence


@pytest.mark.parametrize(("folds", "said"), [(1, "one time fold"), (3, "3 folds are too few")])
def test_a_result_that_rests_on_little_says_so(folds: int, said: str) -> None:
    assert said in learned_verdict(results({"one_to_one": 0.0, "ppo": 0.06}, folds=folds, seeds=3)).sentence


def test_one_training_is_no_clear_difference() -> None:
    found = learned_verdict(results({"one_to_one": 0.0, "ppo": 0.06}, folds=1, seeds=1))
    assert found.outcome == "unclear"
    assert "no interval" in found.sentence


@pytest.mark.parametrize("treatments", [("one_to_one", "none"), ("ppo", "lightgbm")])
def test_without_both_sides_there_is_no_verdict(treatments: tuple[str, str]) -> None:
    found = learned_verdict(results(dict.fromkeys(treatments, 0.0)))
    assert found.outcome == "missing"
    assert "no verdict" in found.sentence


def test_kinds_and_titles() -> None:
    assert [kind_of(name) for name in ("plain:auto", "policies/mine", "smote", "rule")] == [
        "fixed ratio",
        "learned weights",
        "other method",
        "other method",
    ]
    assert title_of("constant:share=.2") == "constant:share=.2"
