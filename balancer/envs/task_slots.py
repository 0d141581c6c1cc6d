"""The slots of :class:`balancer.envs.task_env.TaskVecEnv`: one task after another, with siblings on each.

A slot depends on the rollout's number and on the actions alone, so slots can be in other processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from balancer.envs.population import PopulationStack
from balancer.envs.tasks import EPOCHS, MAX_CLASSES, Task
from balancer.envs.vec_env import PopulationEpisode
from balancer.sampling.observation import PER_CLASS_FEATURES, SHARED_FEATURES, Observation
from balancer.sampling.scores import RankingMetrics, Reward, macro_metrics
from balancer.sampling.weights import Floats, move

ROLLOUT_STEPS = 24
MOST_EPISODES = ROLLOUT_STEPS // min(EPOCHS)
"""Largest number of tasks of one slot in a rollout."""
STEP_GOAL = 3
"""The reward of a single step uses every third row of the goal; that of the end uses all rows."""
Pay = Literal["final", "step"]
Support = dict[str, tuple[Floats, Floats]]
"""Smallest and largest value of each feature, by kind of feature."""


def padded(observation: Observation, num_classes: int = MAX_CLASSES) -> NDArray[np.float32]:
    """(M, num_classes * D + G) flat observations, with zeros for the classes that a task lacks."""
    lead, k = observation.per_class.shape[:-2], observation.per_class.shape[-2]
    per_class = np.zeros((*lead, num_classes, observation.per_class.shape[-1]), np.float32)
    per_class[..., :k, :] = observation.per_class
    return Observation(per_class, observation.shared).flat()


def no_support() -> Support:
    """The support before anything was seen."""
    sizes = (("per_class", len(PER_CLASS_FEATURES)), ("shared", len(SHARED_FEATURES)))
    return {name: (np.full(size, np.inf), np.full(size, -np.inf)) for name, size in sizes}


def united(one: Support, other: Support) -> Support:
    """The support of what either has seen."""
    return {name: (np.minimum(low, other[name][0]), np.maximum(high, other[name][1])) for name, (low, high) in one.items()}


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


@dataclass(frozen=True)
class SlotPlan:
    """What a slot is made of."""

    draw: Callable[[int, int], Task]
    """Makes the task with a number and with a given number of epochs."""
    slots: int
    """Slots of the environment."""
    siblings: int
    """Students of each task."""
    reward: Reward
    pay: Pay
    device: str = "cpu"


@dataclass(frozen=True)
class SlotEnd:
    """An episode that ended in a step."""

    seen: NDArray[np.float32]
    """(siblings, D) its last observation."""
    metrics: RankingMetrics
    share: Floats
    hardness: Floats
    spread: float
    """Standard deviation of the rewarded figure among siblings."""


@dataclass(frozen=True)
class SlotStep:
    """The result of a step of a slot."""

    seen: NDArray[np.float32]
    """(siblings, D) observation for the next actions: of the next task, where an episode ended."""
    paid: Floats
    """(siblings,) rewards."""
    end: SlotEnd | None
    rollout: int
    """The rollout that the slot is in."""
    support: Support
    """Of everything that the slot has seen."""


class TaskSlot:
    """One slot: siblings train on a task, and when its episode ends, on the next one.

    Args:
        plan: What it is made of.
        number: Its number.
    """

    def __init__(self, plan: SlotPlan, number: int) -> None:
        self.plan, self.number = plan, number
        self.support = no_support()
        self._last = np.zeros(plan.siblings)

    def reset(self, rollout: int) -> NDArray[np.float32]:
        """Begin a rollout; (siblings, D) the first observation."""
        self.rollout, self._taken, self._steps = rollout, 0, 0
        return self._begin()

    def step(self, action: Floats, scale: float) -> SlotStep:
        """Apply residual actions (siblings, MAX_CLASSES + 4), train an epoch, score.

        Args:
            action: The actions.
            scale: Spread of the rewarded figure among siblings over all episodes.
        """
        episode, plan = self._episode, self.plan
        k = episode.task.problem.num_classes
        seen = self._seen(episode.act(np.concatenate([action[:, :k], action[:, MAX_CLASSES:]], axis=1)))
        self._steps += 1
        if plan.pay == "final" and not episode.done:
            return SlotStep(seen, np.zeros(plan.siblings), None, self.rollout, self.support)
        metrics = episode.goal(1 if episode.done else STEP_GOAL)
        value = metrics.named(plan.reward)
        change = value - self._last if plan.pay == "step" else value
        self._last = value
        beyond = change - change.mean()
        spread = float(np.sqrt(np.mean(beyond**2)))
        paid = beyond / (0.5 * spread + 0.5 * scale + 1e-6)
        if not episode.done:
            return SlotStep(seen, paid, None, self.rollout, self.support)
        end = SlotEnd(seen, metrics, episode.weights.share, episode.weights.hardness, spread)
        if self._steps % ROLLOUT_STEPS == 0:  # the steps of this rollout are done
            self.rollout += 1
            self._taken = 0
        return SlotStep(self._begin(), paid, end, self.rollout, self.support)

    def _begin(self) -> NDArray[np.float32]:
        """Take the next task; its first observation."""
        plan = self.plan
        number = (self.rollout * plan.slots + self.number) * MOST_EPISODES + self._taken
        epochs = EPOCHS[(self.rollout + self.number) % len(EPOCHS)]  # one length per slot and rollout, to fill it
        self._taken += 1
        self._episode = TaskEpisode(plan.draw(number, epochs), siblings=plan.siblings, device=plan.device)
        self._last = np.zeros(plan.siblings)
        return self._seen(self._episode.first())

    def _seen(self, observation: Observation) -> NDArray[np.float32]:
        found: Support = {}
        for name, values in (("per_class", observation.per_class), ("shared", observation.shared)):
            flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
            found[name] = flat.min(axis=0), flat.max(axis=0)
        self.support = united(self.support, found)
        return padded(observation)


class SlotRunner(Protocol):
    """Runs all slots of an environment, here or elsewhere."""

    def reset(self, rollout: int) -> list[NDArray[np.float32]]:
        """Begin a rollout in all slots; their first observations."""
        ...

    def step(self, actions: Sequence[Floats], scale: float) -> list[SlotStep]:
        """Do a step in all slots; arguments by slot, as of :meth:`TaskSlot.step`."""
        ...


class LocalSlots:
    """Slots in this process, one after another.

    Args:
        plan: What they are made of.
    """

    def __init__(self, plan: SlotPlan) -> None:
        self.slots = [TaskSlot(plan, number) for number in range(plan.slots)]

    def reset(self, rollout: int) -> list[NDArray[np.float32]]:
        """See :class:`SlotRunner`."""
        return [slot.reset(rollout) for slot in self.slots]

    def step(self, actions: Sequence[Floats], scale: float) -> list[SlotStep]:
        """See :class:`SlotRunner`."""
        return [slot.step(action, scale) for slot, action in zip(self.slots, actions, strict=True)]
