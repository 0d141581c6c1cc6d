"""Policies of the task distribution: training, resuming, support, evaluation, command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balancer.cli import main
from balancer.envs.tasks import MAX_CLASSES
from balancer.errors import InputError
from balancer.policy_learning.budgets import TASK_BUDGETS, PolicyBudget, TaskBudget
from balancer.policy_learning.comparison import compare_on_tasks
from balancer.policy_learning.training import train_policy, train_task_policy
from balancer.sampling import load_policy
from balancer.sampling.bundle import load_bundle
from balancer.sampling.policies import ConstantPolicy, StartPolicy

TINY = TaskBudget(rollouts=2, slots=1, siblings=2)


class _KilledError(Exception):
    """Replaces SIGKILL in the test."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "bandit"])
def test_killed_and_resumed_is_the_same_to_the_byte(kind: Any, tmp_path: Path) -> None:
    whole = train_task_policy(kind, TINY, seed=4, folder=tmp_path / "whole")

    def kill(figures: dict[str, Any]) -> None:
        if figures["rollout"] == 2:
            raise _KilledError

    with pytest.raises(_KilledError):
        train_task_policy(kind, TINY, seed=4, folder=tmp_path / "cut", progress=kill)
    resumed = train_task_policy(kind, TINY, seed=4, folder=tmp_path / "cut", resume=True)
    for name in ("policy.safetensors", "policy.json"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    content = json.loads((whole / "policy.json").read_text())
    assert content["support"]["num_classes"] == [2, MAX_CLASSES]
    assert np.all(np.array(content["support"]["shared"]["low"]) <= content["support"]["shared"]["high"])
    assert content["training"]["told"]["kind"] == kind
    with pytest.raises(InputError, match="another training"):
        train_task_policy(kind, TINY, seed=5, folder=whole, resume=True)
    assert load_policy(whole, num_classes=3).name == "ppo"


def test_a_policy_goes_on_from_another(tmp_path: Path) -> None:
    from balancer.envs.problem import synthetic_problem

    problem = synthetic_problem(2, rows=1500)
    tiny = PolicyBudget(rollouts=1, num_students=4, siblings=2, epochs=2, steps_per_epoch=2, batch_size=32, test_groups=1, test_episodes=1)
    first = load_bundle(train_policy(problem, tiny, seed=0, folder=tmp_path / "first"))
    tuned = load_bundle(train_policy(problem, tiny, seed=1, folder=tmp_path / "tuned", start=tmp_path / "first"))
    other = load_bundle(train_policy(problem, tiny, seed=1, folder=tmp_path / "other"))

    def distance(one: Any, two: Any) -> float:
        return max(float(np.abs(one.arrays[name] - two.arrays[name]).max()) for name in one.arrays)

    assert 0 < distance(first, tuned) < 0.05
    assert distance(first, other) > 0.05
    with pytest.raises(InputError, match="no policy at"):
        train_policy(problem, tiny, seed=1, folder=tmp_path / "x", start=tmp_path / "absent")


def test_comparison_on_tasks_is_paired_and_repeatable() -> None:
    policies = [ConstantPolicy(None, 0.0, name="none"), StartPolicy(), ConstantPolicy(None, 0.0, name="none again")]
    one = compare_on_tasks(policies, 2, seed=3, groups=1)
    two = compare_on_tasks(policies, 2, seed=3, groups=1)
    np.testing.assert_array_equal(one.figures["average_precision"], two.figures["average_precision"])
    np.testing.assert_array_equal(one.figures["f1"][:, 0], one.figures["f1"][:, 2])
    differences = one.against("none", "average_precision")
    assert differences["none again"] == (0.0, 0.0, 0.0)
    difference, low, high = differences["start"]
    assert low <= difference <= high


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::balancer.sampling.bundle.OutsideTraining")  # so short a training has seen little
def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(TASK_BUDGETS, "quick", replace(TASK_BUDGETS["quick"], slots=1, siblings=2))
    out = tmp_path / "policy"
    assert main(["policy", "train", "--out", str(out), "--rollouts", "1", "--budget", "quick"]) == 0
    assert "policy evaluate" in capsys.readouterr().out.replace("\n", " ")
    assert main(["policy", "evaluate", str(out), "--number", "2", "--groups", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"policy", "none", "one_to_one", "auto", "start", "schedule", "rule", "random"} <= set(result["policies"])
    assert result["policies"]["none"]["average_precision_against_reference"]["difference"] == 0
    assert main(["policy", "evaluate", "start", "--number", "1", "--groups", "1"]) == 0
    assert "difference in AP" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--out", "full"], "not empty"),
        (["train", "--out", "file"], "is a file"),
        (["train", "--out", "x", "--rollouts", "0"], "--rollouts"),
        (["train", "--out", "x", "--seed", "-1"], "--seed"),
        (["evaluate", "nobody"], "POLICY: no policy at 'nobody'; known: auto, constant"),
        (["evaluate", "rulle"], "did you mean 'rule'"),
        (["evaluate", "constant:share=.2,share=.3"], "the option share is given 2 times"),
        (["evaluate", "start", "--reference", "nobody"], "--reference"),
        (["evaluate", "start", "--reference", "one_to_on"], "did you mean 'one_to_one'"),
        (["evaluate", "start", "--number", "0"], "--number"),
        (["walk"], "unknown command"),
    ],
)
def test_refuses(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("a")
    (tmp_path / "file").write_text("a")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["policy", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
