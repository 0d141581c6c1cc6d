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
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from balancer.envs.population import PopulationStack
from balancer.envs.tasks import EPOCHS, MAX_CLASSES, Task
from balancer.envs.vec_env import OneVecEnv, PopulationEpisode
from balancer.envs.versions import ACTION_SIZE
from balancer.errors import InputError
from balancer.sampling.observation import PER_CLASS_FEATURES, SHARED_FEATURES, Observation, observation_size
from balancer.sampling.scores import REWARDS, RankingMetrics, Reward, macro_metrics
from balancer.sampling.weights import Floats, move

ROLLOUT_STEPS = 24
MOST_EPISODES = ROLLOUT_STEPS // min(EPOCHS)
"""Largest number of tasks of one slot in a rollout."""
STEP_GOAL = 3
"""The reward of a single step uses every third row of the goal; that of the end uses all rows."""
Pay = Literal["final", "step"]


def padded(observation: Observation, num_classes: int = MAX_CLASSES) -> NDArray[np.float32]:
    """(M, num_classes * D + G) flat observations, with zeros for the classes that a task lacks."""
    lead, k = observation.per_class.shape[:-2], observation.per_class.shape[-2]
    per_class = np.zeros((*lead, num_classes, observation.per_class.shape[-1]), np.float32)
    per_class[..., :k, :] = observation.per_class
    return Observation(per_class, observation.shared).flat()


class TaskEpisode:
    """Siblings that train on one task under given weights.

    Args:
        task: The task.
        siblings: Students of a group, which differ only in the actions of their policies.
        groups: Number of groups.
        device: Where they train.
        compensated: (M,) which students count drawn rows by their weights; None: all.
    """

    def __init__(
        self,
        task: Task,
        *,
        siblings: int,
        groups: int = 1,
        device: str = "cpu",
        compensated: NDArray[np.bool_] | None = None,
    ) -> None:
        self.task = task
        stack = PopulationStack(
            task.problem,
            groups=groups,
            siblings=siblings,
            batch_size=task.batch_size,
            seed=task.seed,
            device=device,
            net=task.net,
            kinds=task.kinds(groups, siblings),
            compensated=np.ones(groups * siblings, dtype=bool) if compensated is None else compensated,
        )
        self.episode = PopulationEpisode(stack, epochs=task.epochs, steps_per_epoch=task.steps_per_epoch, keep_best=True)
        self.weights = self.episode.start(1)
        """Present weights."""

    @property
    def done(self) -> bool:
        """Whether the training is finished."""
        return self.episode.epoch >= self.task.epochs

    def first(self) -> Observation:
        """Observation of policies before the first epoch."""
        return self.episode.first(self.weights)

    def act(self, action: Floats) -> Observation:
        """Apply residual actions (M, K + 4) to the weights and train an epoch."""
        self.weights = move(self.weights, action, self.episode.prior)
        return self.episode.train_epoch(self.weights)[0]

    def goal(self, thinning: int = 1) -> RankingMetrics:
        """Metrics (M,) on every ``thinning``-th row of the goal.

        At the end of the training each student counts as it was after its best epoch on validation: with few
        rare rows the last epochs are noise.
        """
        if self.done:
            self.episode.stack.restore_kept()
        goal = self.task.goal
        chosen = slice(None, None, thinning)
        return macro_metrics(goal.y[chosen], self.episode.stack.score(goal.x[chosen]), goal.weight[chosen])


class TaskVecEnv(OneVecEnv):
    """Slots of tasks as one ``VecEnv``; environment ``slot * siblings + i`` is student i of a slot.

    Args:
        draw: Makes the task with a number and with a given number of epochs.
        slots: Tasks side by side.
        siblings: Students of each task.
        reward: Figure on the goal that is the reward.
        pay: Whether the reward is paid at the end of a training, or after each epoch.
        device: Where the students train.

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
    ) -> None:
        if slots < 1 or siblings < 2:
            raise InputError(f"tasks need at least one slot ({slots}) and two siblings ({siblings})")
        if reward not in REWARDS:
            raise InputError(f"reward {reward!r} is not known; choose one of {', '.join(REWARDS)}")
        self.slots, self.siblings, self.reward, self.pay, self.device = slots, siblings, reward, pay, device
        self.next_rollout = 0
        """Number of the rollout that the next reset begins."""
        self.finals = []
        self.support: dict[str, tuple[Floats, Floats]] = {
            name: (np.full(size, np.inf), np.full(size, -np.inf))
            for name, size in (("per_class", len(PER_CLASS_FEATURES)), ("shared", len(SHARED_FEATURES)))
        }
        """Smallest and largest value of each feature seen so far."""
        self._draw = draw
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
        self._taken = [0] * self.slots
        self._steps = [0] * self.slots
        self._rollouts = [self.rollout] * self.slots
        self._episodes: list[TaskEpisode] = [self._next(slot) for slot in range(self.slots)]
        self._last = [np.zeros(self.siblings) for _ in range(self.slots)]
        return np.concatenate([self._seen(episode.first()) for episode in self._episodes])

    def _next(self, slot: int) -> TaskEpisode:
        rollout = self._rollouts[slot]
        number = (rollout * self.slots + slot) * MOST_EPISODES + self._taken[slot]
        epochs = EPOCHS[(rollout + slot) % len(EPOCHS)]  # one length per slot and rollout, to fill it
        self._taken[slot] += 1
        return TaskEpisode(self._draw(number, epochs), siblings=self.siblings, device=self.device)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions (M, MAX_CLASSES + 4)."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Apply the actions to the weights, train an epoch, score; slot by slot.

        Raises:
            ResetNeededError: :meth:`reset` was not called.
        """
        self._check_begun()
        lines, paid, done, infos = [], [], [], []
        for slot in range(self.slots):
            action = np.asarray(self._actions[slot * self.siblings : (slot + 1) * self.siblings], np.float64)
            line, reward, over = self._step_slot(slot, action)
            info: list[dict[str, Any]] = [{} for _ in range(self.siblings)]
            if over:
                self._mark_ends(info, line)
                line = self._begin_again(slot)
            lines.append(line)
            paid.append(reward)
            done.append(np.full(self.siblings, over))
            infos += info
        return np.concatenate(lines), np.concatenate(paid).astype(np.float32), np.concatenate(done), infos

    def _step_slot(self, slot: int, action: Floats) -> tuple[NDArray[np.float32], Floats, bool]:
        episode = self._episodes[slot]
        k = episode.task.problem.num_classes
        seen = self._seen(episode.act(np.concatenate([action[:, :k], action[:, MAX_CLASSES:]], axis=1)))
        self._steps[slot] += 1
        if self.pay == "final" and not episode.done:
            return seen, np.zeros(self.siblings), False
        metrics = episode.goal(1 if episode.done else STEP_GOAL)
        value = metrics.named(self.reward)
        change = value - self._last[slot] if self.pay == "step" else value
        self._last[slot] = value
        beyond = change - change.mean()
        spread = float(np.sqrt(np.mean(beyond**2)))
        if episode.done:
            self._finish(metrics, episode.weights.share, episode.weights.hardness, spread)
        return seen, beyond / (0.5 * spread + 0.5 * self.reward_scale + 1e-6), episode.done

    def _begin_again(self, slot: int) -> NDArray[np.float32]:
        """Start the next task of a slot, in the next rollout where the steps of this one are done."""
        if self._steps[slot] % ROLLOUT_STEPS == 0:
            self._rollouts[slot] += 1
            self.next_rollout = max(self.next_rollout, self._rollouts[slot] + 1)
            self._taken[slot] = 0
        self._episodes[slot] = self._next(slot)
        self._last[slot] = np.zeros(self.siblings)
        return self._seen(self._episodes[slot].first())

    def _seen(self, observation: Observation) -> NDArray[np.float32]:
        for name, values in (("per_class", observation.per_class), ("shared", observation.shared)):
            flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
            low, high = self.support[name]
            self.support[name] = (np.minimum(low, flat.min(axis=0)), np.maximum(high, flat.max(axis=0)))
        return padded(observation)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The range of every feature."""
        return {f"{name}.{end}": values for name, pair in self.support.items() for end, values in zip(("low", "high"), pair, strict=True)}

    def load_state_dict(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restore the ranges of :meth:`state_dict`."""
        self.support = {name: (arrays[f"{name}.low"], arrays[f"{name}.high"]) for name in self.support}
