"""A person compared with policies on the small students, and the map of constants."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from balancer.envs.problem import PopulationProblem
from balancer.errors import InputError
from balancer.policy_learning.playground import YOU, Playground, response_surface
from balancer.sampling.constant_policy import COMPENSATED
from balancer.sampling.policies import ConstantPolicy, DefaultPolicy, RulePolicy
from balancer.sampling.weights import SamplingWeights, proportional_share


@pytest.fixture(scope="module")
def problem() -> PopulationProblem:
    rng = np.random.default_rng(0)
    y = (rng.random(1500) < 0.05).astype(np.int64)
    x = (rng.normal(size=(1500, 4)) + 1.2 * y[:, None]).astype(np.float32)
    one = np.ones(750)
    return PopulationProblem(x[:750], y[:750], x[750:], y[750:], one, one, 2)


def game(problem: PopulationProblem, **given: int) -> Playground:
    rivals = {"constant": ConstantPolicy(0.2, 1.0), "none": ConstantPolicy(None, 0.0)}
    return Playground(problem, rivals, epochs=3, steps_per_epoch=5, groups=2, **given)


def test_who_plays_as_a_policy_does_gets_what_it_gets(problem: PopulationProblem) -> None:
    play = game(problem)
    prior = play.prior
    while not play.over:
        rows = play.play(SamplingWeights(prior, 0.0, 0.05))
    by_player = {row["player"]: row for row in rows}
    assert by_player[YOU]["average_precision"] == by_player["none"]["average_precision"]  # siblings
    assert by_player[YOU]["average_precision"] != by_player["constant"]["average_precision"]
    assert [row["epoch"] for row in play.rows] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert by_player["constant"]["share"] == pytest.approx(0.2)
    with pytest.raises(InputError, match="over"):
        play.play(SamplingWeights(prior))


def test_the_same_seed_plays_the_same(problem: PopulationProblem) -> None:
    weights = SamplingWeights(np.array([0.7, 0.3]), 1.0, 0.1)
    first, again, other = (game(problem, seed=seed).play(weights) for seed in (1, 1, 2))
    assert first == again != other


def test_the_map_agrees_with_a_player_on_one_of_its_points(problem: PopulationProblem) -> None:
    seen: list[int] = []
    surface = response_surface(
        problem, shares=(0.1, 0.4), hardness=(0.0, 1.0), epochs=3, steps_per_epoch=5, groups=2, progress=lambda done, _: seen.append(done)
    )
    assert seen == [1, 2, 3]
    assert surface.select("share", "hardness").rows() == [(0.1, 0.0), (0.1, 1.0), (0.4, 0.0), (0.4, 1.0)]
    play = game(problem)
    while not play.over:
        rows = play.play(SamplingWeights(proportional_share(play.prior, 0.4), 1.0, class_importance=0.5))
    assert surface["class_importance"].to_list() == [0.5] * 4
    assert surface["average_precision"][3] == pytest.approx(rows[0]["average_precision"], abs=1e-6)
    assert response_surface(problem, hardness=(0.0,), epochs=1, steps_per_epoch=2, groups=1)["share"].max() == pytest.approx(0.5)


def test_importance_and_half_life_change_what_is_learned(problem: PopulationProblem) -> None:
    """All players have the sampler's loss; a plain policy keeps its own, and rows tell the weights."""
    aged = dataclasses.replace(problem, train_age=np.linspace(1, 0, 750).astype(np.float32))
    share, found = np.array([0.6, 0.4]), []
    for weights in (SamplingWeights(share), SamplingWeights(share, class_importance=1.0), SamplingWeights(share, half_life=0.05)):
        play = Playground(aged, {"auto": DefaultPolicy(), "rule": RulePolicy()}, epochs=2, steps_per_epoch=10, groups=2)
        assert play._episode.stack.compensated.tolist() == [True, True, False] * 2
        play.play(weights)
        found.append(play.play(weights))
    figures = [[row["average_precision"] for row in rows] for rows in found]
    assert len({rows[0] for rows in figures}) == 3
    for other in figures[1:]:  # the others don't notice
        assert other[1:] == figures[0][1:]
    you, auto, rule = found[1]
    assert (you["class_importance"], you["half_life"], found[2][0]["half_life"]) == (1.0, None, 0.05)
    assert (auto["class_importance"], auto["hardness"]) == (COMPENSATED.class_importance, COMPENSATED.hardness)
    assert (rule["class_importance"], rule["hardness"]) == (0.0, 0.0)
    names = {
        "player",
        "epoch",
        "average_precision",
        "f1",
        "share",
        "hardness",
        "floor",
        "class_importance",
        "hardness_importance",
        "half_life",
    }
    assert set(you) == names


def test_a_policy_may_not_take_the_persons_name(problem: PopulationProblem) -> None:
    with pytest.raises(InputError, match=YOU):
        Playground(problem, {YOU: ConstantPolicy()})
