"""``TaskVecEnv``: many tasks, with a small population of students on each, as one ``VecEnv``.

The environment has slots. In each slot a group of siblings (same network, same initial weights, same random
numbers) trains on a task of :mod:`balancer.envs.tasks`; when its episode ends, the slot takes the next task.
A rollout has :data:`ROLLOUT_STEPS` steps, a multiple of every episode length. So it consists of whole
episodes in every slot, and between two rollouts the environment's only state is a counter.

Tasks differ in their number of classes, but a ``VecEnv`` has one observation space. The features of classes
that a task lacks are 0, and so is their mask: the log prior of a real class is never 0
(:mod:`balancer.policy_learning.network`). Actions for such classes have no effect.

The reward is the figure on the *goal*, a large sample of the task's future, minus the mean of the siblings.
It is divided by the spread of such figures, half that of this episode and half that of all episodes, so that
a task with little to gain does not count as much as one with much to gain. ``pay="final"`` pays at the end
(PPO over the whole training), ``pay="step"`` pays the change of each epoch (a bandit, discount 0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from balancer.envs.task_slots import ROLLOUT_STEPS as ROLLOUT_STEPS
from balancer.envs.task_slots import LocalSlots, Pay, SlotPlan, SlotRunner, SlotStep, Support, no_support, united
from balancer.envs.task_slots import TaskEpisode as TaskEpisode
from balancer.envs.task_slots import padded as padded
from balancer.envs.tasks import MAX_CLASSES, Task
from balancer.envs.vec_env import OneVecEnv
from balancer.envs.versions import ACTION_SIZE
from balancer.errors import InputError
from balancer.sampling.observation import observation_size
from balancer.sampling.scores import REWARDS, Reward


class TaskVecEnv(OneVecEnv):
    """Slots of tasks as one ``VecEnv``; environment ``slot * siblings + i`` is student i of a slot.

    Args:
        draw: Makes the task with a number and with a given number of epochs.
        slots: Tasks side by side.
        siblings: Students of each task.
        reward: Figure on the goal that is the reward.
        pay: Whether the reward is paid at the end of a training, or after each epoch.
        device: Where the students train.
        runner: Makes what runs the slots; by default they run in this process.

    Raises:
        InputError: Numbers or reward out of range.
    """

    def __init__(
        self,
        draw: Callable[[int, int], Task],
        *,
        slots: int,
        siblings: int,
        reward: Reward = "average_precision",
        pay: Pay = "final",
        device: str = "cpu",
        runner: Callable[[SlotPlan], SlotRunner] = LocalSlots,
    ) -> None:
        if slots < 1 or siblings < 2:
            raise InputError(f"tasks need at least one slot ({slots}) and two siblings ({siblings})")
        if reward not in REWARDS:
            raise InputError(f"reward {reward!r} is not known; choose one of {', '.join(REWARDS)}")
        self.slots, self.siblings, self.reward, self.pay, self.device = slots, siblings, reward, pay, device
        self.next_rollout = 0
        """Number of the rollout that the next reset begins."""
        self.finals = []
        self.support: Support = no_support()
        """Smallest and largest value of each feature seen so far."""
        self._runner = runner(SlotPlan(draw, slots, siblings, reward, pay, device))
        super().__init__(
            slots * siblings,
            gymnasium.spaces.Box(-5.0, 5.0, (observation_size(MAX_CLASSES),), np.float32),
            gymnasium.spaces.Box(-1.0, 1.0, (MAX_CLASSES + ACTION_SIZE[1],), np.float32),
        )
        self._actions = np.zeros((self.num_envs, MAX_CLASSES + ACTION_SIZE[1]), np.float32)

    def reset(self) -> NDArray[np.float32]:
        """Begin rollout :attr:`next_rollout` in all slots; (M, observation)."""
        self.begun = True
        self.rollout = self.next_rollout
        self.next_rollout += 1
        return np.concatenate(self._runner.reset(self.rollout))

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions (M, MAX_CLASSES + 4)."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Apply the actions to the weights, train an epoch, score, in all slots.

        Raises:
            ResetNeededError: :meth:`reset` was not called.
        """
        self._check_begun()
        actions = np.split(np.asarray(self._actions, np.float64), self.slots)
        steps = self._runner.step(actions, self.reward_scale)
        infos = [info for step in steps for info in self._infos(step)]
        paid = np.concatenate([step.paid for step in steps]).astype(np.float32)
        done = np.repeat([step.end is not None for step in steps], self.siblings)
        return np.concatenate([step.seen for step in steps]), paid, done, infos

    def _infos(self, step: SlotStep) -> list[dict[str, Any]]:
        """Infos of the students of a slot; its episode, where it ended, and what it saw are noted."""
        infos: list[dict[str, Any]] = [{} for _ in range(self.siblings)]
        self.support = united(self.support, step.support)
        self.next_rollout = max(self.next_rollout, step.rollout + 1)
        if step.end is not None:
            self._finish(step.end.metrics, step.end.share, step.end.hardness, step.end.spread)
            self._mark_ends(infos, step.end.seen)
        return infos

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The range of every feature."""
        return {f"{name}.{end}": values for name, pair in self.support.items() for end, values in zip(("low", "high"), pair, strict=True)}

    def load_state_dict(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restore the ranges of :meth:`state_dict`."""
        self.support = {name: (arrays[f"{name}.low"], arrays[f"{name}.high"]) for name in self.support}
