"""Training and evaluating a policy on a cluster: the bits of one process, also where a process is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balancer.policy_learning.budgets import TaskBudget
from balancer.policy_learning.cluster_slots import ClusterSlots
from balancer.policy_learning.comparison import compare_on_tasks
from balancer.policy_learning.training import train_task_policy
from balancer.sampling.policies import ConstantPolicy, StartPolicy

pytestmark = pytest.mark.xdist_group("ray")


def test_a_policy_is_the_same_though_a_process_was_lost(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = TaskBudget(rollouts=1, slots=2, siblings=2)
    alone = train_task_policy("ppo", tiny, seed=4, folder=tmp_path / "alone")
    step, lost = ClusterSlots.step, []

    def losing(self: ClusterSlots, actions: Any, scale: float) -> Any:
        if len(lost) == 3:
            self._ray.kill(self._hosts[1])
        lost.append(scale)
        return step(self, actions, scale)

    monkeypatch.setattr(ClusterSlots, "step", losing)
    found = train_task_policy("ppo", tiny, seed=4, folder=tmp_path / "cluster", cluster=cluster.address)
    assert len(lost) == 24
    for name in ("policy.safetensors", "policy.json"):
        assert (alone / name).read_bytes() == (found / name).read_bytes()


def test_policies_are_evaluated_as_in_one_process(cluster: Any) -> None:
    policies = [ConstantPolicy(0.5, 0.0, name="one_to_one"), StartPolicy()]
    found = compare_on_tasks(policies, 2, seed=3, groups=1, cluster=cluster.address)
    alone = compare_on_tasks(policies, 2, seed=3, groups=1)
    assert found.traits == alone.traits
    for name, values in alone.figures.items():
        np.testing.assert_array_equal(found.figures[name], values)
