"""PPO on the population: it learns, resumes exactly, and writes a bundle that runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balancer.envs.population import PopulationStack
from balancer.envs.problem import PopulationProblem, synthetic_problem
from balancer.errors import InputError
from balancer.policy_learning.comparison import PolicyComparison, compare_policies
from balancer.policy_learning.training import POLICY_BUDGETS, PolicyBudget, shipped_start, train_policy
from balancer.sampling import SamplingController, load_policy
from balancer.sampling.bundle import BundlePolicy, load_bundle
from balancer.sampling.constant_policy import DefaultPolicy
from balancer.sampling.policies import compensates

PROBLEM = synthetic_problem(2, rows=1500)
STORED = Path(__file__).parents[1] / "stored" / "0.1" / "policy"
"""A policy of version 0.1."""
TINY = PolicyBudget(rollouts=3, num_students=4, siblings=2, epochs=3, steps_per_epoch=3, batch_size=32, test_groups=2, test_episodes=1)


class _KilledError(Exception):
    """Replaces SIGKILL in the test: nothing is cleaned up after it."""


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("policy.safetensors", "policy.json")]


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_killed_and_resumed_is_the_same_to_the_byte(moment: int, tmp_path: Path) -> None:
    whole = train_policy(PROBLEM, TINY, seed=3, folder=tmp_path / "whole")
    killed: list[int] = []

    def kill(figures: dict[str, Any]) -> None:
        if figures["rollout"] == moment and not killed:
            killed.append(moment)
            raise _KilledError

    with pytest.raises(_KilledError):
        train_policy(PROBLEM, TINY, seed=3, folder=tmp_path / "cut", progress=kill)
    seen: list[int] = []
    resumed = train_policy(PROBLEM, TINY, seed=3, folder=tmp_path / "cut", resume=True, progress=lambda f: seen.append(f["rollout"]))
    assert seen == list(range(moment, 4))
    assert _bytes(whole) == _bytes(resumed)
    assert train_policy(PROBLEM, TINY, seed=3, folder=tmp_path / "cut", resume=True) == resumed
    assert list((tmp_path / "cut" / "tensorboard").iterdir())


def test_bundle_runs_for_any_number_of_classes(tmp_path: Path) -> None:
    folder = train_policy(PROBLEM, TINY, seed=0, folder=tmp_path)
    training = json.loads((folder / "policy.json").read_text())["training"]
    assert {"ppo", "constant", "one_to_one", "none", "start", "random"} == set(training["evaluation"])
    better = training["evaluation"]["ppo"]["f1"] > training["evaluation"]["constant"]["f1"]
    assert training["beats_constant"] is better
    assert len(training["returns"]) == 3
    for counts in (np.array([990, 10]), np.array([900, 50, 30, 20])):
        policy = load_policy(folder, num_classes=len(counts))
        controller = SamplingController(
            counts / counts.sum(), policy, epochs=3, batch_budget=999, train_counts=counts, reward_counts=counts
        )
        assert controller.weights.share.shape == counts.shape


def _mislabelled() -> PopulationProblem:
    """Most training rows of the rare class carry the label of the common one."""
    rng = np.random.default_rng(0)
    y = (rng.random(6_000) < 0.1).astype(np.int64)
    x = (rng.normal(size=(6_000, 6)) + 1.5 * y[:, None] * (np.arange(6) < 2)).astype(np.float32)
    rare, seen = np.flatnonzero(y[:3_000]), y.copy()
    seen[rng.choice(rare, int(0.7 * len(rare)), replace=False)] = 0
    one = np.ones(3_000)
    return PopulationProblem(x[:3_000], seen[:3_000], x[3_000:], y[3_000:], one, one, 2)


def test_learns_that_hard_rows_may_be_mislabelled(tmp_path: Path) -> None:
    """The constant prefers the hardest rows of the common class; here these are frauds, as PPO finds out."""
    budget = PolicyBudget(
        rollouts=12, num_students=32, siblings=16, epochs=4, steps_per_epoch=10, factors=(1.0,), batch_size=64, test_episodes=1
    )
    figures: list[dict[str, Any]] = []
    folder = train_policy(_mislabelled(), budget, seed=0, folder=tmp_path, reward="average_precision", progress=figures.append)
    hardness = [each["hardness"] for each in figures]
    assert np.mean(hardness[-4:]) < np.mean(hardness[:4]) - 0.2
    evaluation = json.loads((folder / "policy.json").read_text())["training"]["evaluation"]
    assert evaluation["constant"]["hardness"] == 1
    assert evaluation["ppo"]["hardness"] < 0.5
    assert evaluation["ppo"]["average_precision"] > max(evaluation[name]["average_precision"] for name in ("none", "random", "constant"))


def _compared(difference: list[float]) -> PolicyComparison:
    """A comparison in which PPO is ahead of the constant by ``difference`` in each group."""
    constant = np.linspace(0.5, 0.6, len(difference))
    values = np.stack([constant + difference, constant], axis=1)
    return PolicyComparison(("ppo", "constant"), dict.fromkeys(("f1", "average_precision", "minority_share", "hardness"), values))


@pytest.mark.parametrize(
    ("difference", "kept", "ahead"),
    [
        ([0.02, 0.03, 0.02, 0.03], "policy", True),
        ([0.02, -0.01, 0.02, -0.01], "constant", True),  # ahead by no more than noise
        ([-0.02, -0.03, -0.02, -0.03], "constant", False),
        ([0.0, 0.0, 0.0, 0.0], "constant", False),
    ],
)
def test_the_constant_is_kept_unless_ppo_is_better_by_more_than_noise(
    difference: list[float], kept: str, ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balancer.policy_learning.training.compare_policies", lambda *given, **options: _compared(difference))
    folder = train_policy(PROBLEM, replace(TINY, rollouts=1), seed=0, folder=tmp_path)
    content = json.loads((folder / "policy.json").read_text())
    assert content["kept"] == kept
    assert content["training"]["beats_constant"] is ahead
    assert content["training"]["margin_over_constant"] == pytest.approx(np.mean(difference))
    error = np.std(difference, ddof=1) / 2
    assert content["training"]["margin_error"] == pytest.approx(error)
    (note,) = content["notes"]
    assert note.startswith("kept PPO" if kept == "policy" else "kept auto, the constant")
    assert f"difference {np.mean(difference):+.4f}, standard error {error:.4f}" in note
    counts = np.array([990, 10])
    given: dict[str, Any] = {"epochs": 3, "batch_budget": 999, "train_counts": counts, "reward_counts": counts, "compensated": True}
    own, constant, ppo = (
        SamplingController(counts / 1000, policy, **given).weights
        for policy in (load_policy(folder, num_classes=2), DefaultPolicy(), BundlePolicy(load_bundle(folder).arrays, {}))
    )
    assert own.to_dict() == (ppo if kept == "policy" else constant).to_dict()
    assert ppo.to_dict() != constant.to_dict()
    loaded = load_bundle(folder)
    assert compensates(loaded)
    assert loaded.notes == [note]


def test_margin_is_a_paired_difference() -> None:
    values = np.array([[0.5, 0.4, 0.1], [0.7, 0.5, 0.2], [0.6, 0.6, 0.0]])
    compared = PolicyComparison(("a", "b", "c"), {"f1": values})
    mean, error = compared.margin("a", "b", "f1")
    assert mean == pytest.approx(0.1)
    assert error == pytest.approx(np.std([0.1, 0.2, 0.0], ddof=1) / np.sqrt(3))
    assert compared.margin("b", "c", "f1")[0] == pytest.approx(0.4)
    assert compared.means()["c"]["f1"] == pytest.approx(0.1)
    assert PolicyComparison(("a", "b"), {"f1": values[:1, :2]}).margin("a", "b", "f1") == (pytest.approx(0.1), 0.0)


def test_policies_of_a_comparison_are_paired_and_have_the_loss_they_are_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[PopulationStack] = []
    init = PopulationStack.__init__

    def noting(self: PopulationStack, *given: Any, **options: Any) -> None:
        init(self, *given, **options)
        made.append(self)

    monkeypatch.setattr(PopulationStack, "__init__", noting)
    plan = replace(TINY, test_groups=3, test_episodes=2)
    one, two = (compare_policies(PROBLEM, DefaultPolicy("ppo"), plan, seed=0) for _ in range(2))
    assert one.policies == ("ppo", "constant", "one_to_one", "none", "start", "random")
    assert made[0].compensated.reshape(3, 6).tolist() == [[True] * 4 + [False] * 2] * 3
    for name, values in one.figures.items():
        assert values.shape == (6, 6)
        np.testing.assert_array_equal(values, two.figures[name])
        np.testing.assert_array_equal(values[:, 0], values[:, 1])  # the same policy, by two names
    assert one.margin("ppo", "constant", "f1") == (0.0, 0.0)


def test_an_old_policy_can_not_be_trained_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"stored.*trained in version 0 of the environment.*name another one"):
        train_policy(PROBLEM, TINY, seed=0, folder=tmp_path / "a", start=STORED)
    assert sorted(tmp_path.rglob("*")) == before
    bundles = tmp_path / "bundles"
    shutil.copytree(STORED, bundles / "ppo")
    monkeypatch.setattr("balancer.policy_learning.training.BUNDLES", bundles)
    assert shipped_start() is None
    with pytest.raises(InputError, match="policy 'ppo' was trained in version 0"):
        train_policy(PROBLEM, TINY, seed=0, folder=tmp_path / "a", start="ppo")
    shutil.rmtree(bundles / "ppo")
    assert shipped_start() is None
    train_policy(PROBLEM, replace(TINY, rollouts=1), seed=0, folder=bundles / "ppo")
    assert shipped_start() == "ppo"
    tuned = train_policy(PROBLEM, replace(TINY, rollouts=1), seed=1, folder=tmp_path / "a", start="ppo")
    assert "PPO (fine-tuned from the policy ppo)" in load_bundle(tuned).notes[0]


def test_budgets_are_short() -> None:
    """Mini-batches of students: with the shipped policy to start from, about a minute is enough."""
    steps = {name: plan.env_steps * plan.steps_per_epoch * float(np.mean(plan.factors)) for name, plan in POLICY_BUDGETS.items()}
    assert steps["quick"] < steps["standard"] < steps["thorough"] < 10 * steps["quick"]
    assert steps["quick"] < 100_000


def test_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="budget 'huge'"):
        train_policy(PROBLEM, "huge", seed=0, folder=tmp_path / "a")

    def kill(figures: dict[str, Any]) -> None:
        if figures["rollout"] == 2:
            raise _KilledError

    with pytest.raises(_KilledError):
        train_policy(PROBLEM, TINY, seed=0, folder=tmp_path / "b", progress=kill)
    with pytest.raises(InputError, match="another training"):
        train_policy(PROBLEM, TINY, seed=1, folder=tmp_path / "b", resume=True)
    checkpoint = tmp_path / "b" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(InputError, match="can't be read"):
        train_policy(PROBLEM, TINY, seed=0, folder=tmp_path / "b", resume=True)
