"""Searches for constants: the budget, the best on the reward half, TPE against chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
import pytest

from balancer.comparison.search import constant_grid, search, share_grid
from balancer.comparison.treatments import ScorePair, Tick, Trained
from balancer.sampling.policies import ConstantPolicy
from balancer.training.treatment import Treatment

COUNTS = np.array([9_900.0, 100.0])


class _Fake:
    """A trainer with a known reward of (log share, hardness); its scores are the constant of the training."""

    side_by_side = True

    def __init__(self) -> None:
        self.trained: list[list[ConstantPolicy]] = []
        self.scored: list[int] = []

    @property
    def counts(self) -> np.ndarray:
        return COUNTS

    def train(self, treatments: Sequence[Treatment], seed: int, tick: Tick) -> Trained:
        constants = [treatment.policy for treatment in treatments]
        assert all(isinstance(c, ConstantPolicy) for c in constants)
        self.trained.append(constants)  # type: ignore[arg-type]
        share, hardness = (np.array([getattr(c, name) for c in constants]) for name in ("share", "hardness"))
        reward = 1.0 - np.abs(np.log(share / 0.12)) / 4 - np.abs(hardness - 1.0) / 4

        def scores(wanted: Sequence[int]) -> list[ScorePair]:
            self.scored += list(wanted)
            return [(np.array([share[i], hardness[i]]), np.array([reward[i]])) for i in wanted]

        return Trained(reward, share, hardness, tuple(() for _ in treatments), scores)


def _quiet(text: str) -> None:
    del text


@pytest.mark.parametrize("name", ["constant_share", "constant", "tpe"])
@pytest.mark.parametrize("trials", [1, 4, 20])
def test_budget_is_kept_and_the_best_wins(name: str, trials: int) -> None:
    student = _Fake()
    found = search(name, student, 3, trials, _quiet)
    tried = [c for batch in student.trained for c in batch]
    assert len(tried) == found.trainings <= trials
    assert trials - found.trainings <= 3
    assert found.constant in tried
    np.testing.assert_array_equal(found.scores[0], [found.constant.share, found.constant.hardness])
    assert found.reward == pytest.approx(float(found.scores[1][0]))
    assert len(student.scored) == 1  # the test rows are scored for the winner alone
    again = _Fake()
    assert search(name, again, 3, trials, _quiet).constant == found.constant


def test_tpe_learns() -> None:
    first, last = [], []
    for seed in range(8):
        student = _Fake()
        search("tpe", student, seed, 20, _quiet)
        rewards = [1.0 - abs(np.log(c.share / 0.12)) / 4 - abs(c.hardness - 1.0) / 4 for batch in student.trained for c in batch]  # type: ignore[operator]
        first.append(np.mean(rewards[:5]))
        last.append(np.mean(rewards[-5:]))
    assert np.mean(last) > np.mean(first) + 0.05
    assert optuna.logging.get_verbosity() == optuna.logging.INFO  # as it was


def test_grids() -> None:
    shares = [c.share for c in share_grid(0.01, 20)]
    assert shares[0] == pytest.approx(0.01)
    assert shares[-1] == pytest.approx(0.5)
    assert {c.hardness for c in share_grid(0.01, 20)} == {0.0}
    assert len({(c.share, c.hardness) for c in constant_grid(20)}) == 20
    assert share_grid(0.7, 3)[0].share == pytest.approx(0.5)  # for a minority of 70 %, it keeps the prior
