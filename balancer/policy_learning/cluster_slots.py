"""Slots of tasks in processes of a Ray cluster: the students train there, the policy learns here.

In each step of a rollout the actions of all students go out and their observations come back. Everything
random in a slot is a function of the rollout's number, so a process that is lost is replaced by one that
repeats the steps of the rollout; the results are those of one process, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from balancer.cluster.processes import RETRIES
from balancer.envs.task_slots import SlotPlan, SlotStep, TaskSlot
from balancer.errors import InputError
from balancer.sampling.weights import Floats


class SlotHost:
    """Some slots in one process of the cluster.

    Args:
        plan: What the slots are made of.
        numbers: Their numbers.
    """

    def __init__(self, plan: SlotPlan, numbers: Sequence[int]) -> None:
        torch.set_num_threads(1)  # as in the training in one process
        self.slots = [TaskSlot(plan, number) for number in numbers]

    def reset(self, rollout: int) -> list[NDArray[np.float32]]:
        """See :class:`balancer.envs.task_slots.SlotRunner`; for the slots of this process."""
        return [slot.reset(rollout) for slot in self.slots]

    def step(self, actions: Sequence[Floats], scale: float) -> list[SlotStep]:
        """See :class:`balancer.envs.task_slots.SlotRunner`; for the slots of this process."""
        return [slot.step(action, scale) for slot, action in zip(self.slots, actions, strict=True)]


class ClusterSlots:
    """Runs the slots of an environment on a cluster that this process is connected to.

    Args:
        plan: What the slots are made of.
        workers: Most processes; None: one for each slot that the cluster has a CPU for.
    """

    def __init__(self, plan: SlotPlan, *, workers: int | None = None) -> None:
        import ray

        self._ray: Any = ray
        self._plan = plan
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        count = max(1, min(plan.slots, workers or cpus, cpus))
        self._numbers = [list(range(plan.slots))[host::count] for host in range(count)]
        self._hosts: list[Any] = [self._started(host) for host in range(count)]
        self._calls: list[tuple[str, list[tuple[Any, ...]]]] = []
        """Calls since the last reset: name of the method, and its arguments by host."""

    def reset(self, rollout: int) -> list[NDArray[np.float32]]:
        """See :class:`balancer.envs.task_slots.SlotRunner`."""
        self._calls = []
        found: list[NDArray[np.float32]] = self._all("reset", [(rollout,) for _ in self._hosts])
        return found

    def step(self, actions: Sequence[Floats], scale: float) -> list[SlotStep]:
        """See :class:`balancer.envs.task_slots.SlotRunner`."""
        arguments = [([actions[number] for number in numbers], scale) for numbers in self._numbers]
        found: list[SlotStep] = self._all("step", arguments)
        return found

    def close(self) -> None:
        """End the processes."""
        for host in self._hosts:
            self._ray.kill(host)

    def _all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of all hosts at once; the results by slot."""
        self._calls.append((method, list(arguments)))
        waiting = [getattr(host, method).remote(*given) for host, given in zip(self._hosts, arguments, strict=True)]
        results: list[Any] = [None] * self._plan.slots
        for host, reference in enumerate(waiting):
            for number, result in zip(self._numbers[host], self._result(host, reference), strict=True):
                results[number] = result
        return results

    def _result(self, host: int, reference: Any) -> list[Any]:
        """The result of a call; the process is replaced where it is lost.

        Raises:
            InputError: It was lost too often.
        """
        for _ in range(RETRIES + 1):
            try:
                found: list[Any] = self._ray.get(reference)
            except self._ray.exceptions.RayActorError:
                self._hosts[host] = self._started(host)
                for method, arguments in self._calls:  # the last one gives the result
                    reference = getattr(self._hosts[host], method).remote(*arguments[host])
            else:
                return found
        raise InputError(f"a process that trains students was lost {RETRIES + 1} times: give it more memory, and continue with --resume")

    def _started(self, host: int) -> Any:
        gpus = 1 if self._plan.device == "cuda" else 0
        return self._ray.remote(num_cpus=1, num_gpus=gpus)(SlotHost).remote(self._plan, self._numbers[host])
