"""``PopulationVecEnv``: a population of students as a native Stable-Baselines3 ``VecEnv``.

All students begin and end their episodes together. Between two episodes the environment has no state except
the number of the next episode: students, draws, pools and dropout are functions of (seed, episode, group,
epoch), so training resumes there by setting :attr:`PopulationVecEnv.next_episode`.

The reward is the change of a potential, so an episode's return is a validation figure: the best of all
epochs, or in version 0 the last. For training, ``relative`` pays once, at the end: that figure minus the mean
of the student's siblings, which share its network, its initial weights and its random numbers. The rest is
the effect of the policy. No students are needed besides those that train anyway; comparing each with a
student under a constant policy would double their number. Easy and hard kinds of students have equal weight,
and ``reward_scale`` brings the reward to unit size. It is paid at the end because the observation does not
show how a student compares with its siblings: as a reward of each step it would be noise that the critic
can't explain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from balancer.envs.errors import ResetNeededError
from balancer.envs.population import PopulationStack
from balancer.envs.problem import PopulationProblem
from balancer.envs.versions import ACTION_SIZE
from balancer.errors import InputError
from balancer.sampling.constant_policy import COMPENSATED
from balancer.sampling.observation import Observation, ObservationBuilder, observation_size
from balancer.sampling.pools import thinned_groups
from balancer.sampling.scores import REWARDS, RankingMetrics, Reward
from balancer.sampling.seeding import generator
from balancer.sampling.weights import Floats, WeightArrays, class_prior, move, stacked, start_weights

POOL_SHARE = 0.5
"""Negative training rows scored after an epoch, per row trained on, as in a real run."""
POOL_OTHERS = 1_000
"""Training rows of the other classes scored after an epoch, at most."""


class PopulationEpisode:
    """Trains all students of a stack through an episode, epoch by epoch, under given weights.

    Args:
        stack: The students.
        epochs: Epochs of an episode.
        steps_per_epoch: Mini-batches of an epoch, before ``budgets``.
        budgets: Factors of ``steps_per_epoch``, one per episode in turn, so that a policy sees short and long
            trainings.
        keep_best: Keep each student as it was after the epoch with its best average precision on the reward
            rows; ``stack.restore_kept()`` brings it back.
    """

    def __init__(
        self,
        stack: PopulationStack,
        *,
        epochs: int,
        steps_per_epoch: int,
        budgets: Sequence[float] = (1.0,),
        keep_best: bool = False,
    ) -> None:
        self.keep_best = keep_best
        self.stack, self.epochs, self.steps_per_epoch, self.budgets = stack, epochs, steps_per_epoch, tuple(budgets)
        problem = stack.problem
        self.prior = class_prior(problem.train_counts)
        self._common, self._others = np.flatnonzero(problem.y_train == 0), np.flatnonzero(problem.y_train > 0)
        self.begin(0)

    def begin(self, number: int) -> None:
        """Start episode ``number`` with new students."""
        self.number, self.epoch = number, 0
        self.steps = max(1, round(self.steps_per_epoch * self.budgets[number % len(self.budgets)]))
        self.stack.begin(number, total_steps=self.steps * self.epochs)
        problem = self.stack.problem
        self._builder = ObservationBuilder(
            self.prior,
            epochs=self.epochs,
            batch_budget=self.epochs * self.steps * self.stack.batch_size,
            train_counts=problem.train_counts,
            reward_counts=problem.reward_counts,
            num=self.stack.num,
            compensated=self.stack.compensated,
        )
        self._best = np.full(self.stack.num, -np.inf)

    @property
    def share_limit(self) -> float:
        """Largest total share of the minority in this episode."""
        return self._builder.share_limit

    def start(self, version: int) -> WeightArrays:
        """Weights that the students start from, by the version of the environment."""
        one = start_weights(self.prior, self.share_limit) if version == 0 else COMPENSATED.weights(self.prior)
        return stacked([one] * self.stack.num)

    def first(self, weights: WeightArrays) -> Observation:
        """Observation of policies before the first epoch, under these weights."""
        return self._builder.first(weights)

    def train_epoch(self, weights: WeightArrays) -> tuple[Observation, RankingMetrics]:
        """Train one epoch under the weights of each student.

        Returns:
            The observation after the epoch, and the validation metrics (M,).
        """
        stack, problem = self.stack, self.stack.problem
        n = self.steps * stack.batch_size
        stack.fit(*stack.draw(n, self.epoch, weights))
        pool, weight = self._pool(n)
        train_score, reward_score = stack.score(problem.x_train[pool]), stack.score(problem.x_val)
        stack.refresh(pool, train_score)
        self.epoch += 1
        observation, metrics = self._builder.after_epoch(
            (problem.y_train[pool], train_score, weight), (problem.y_val, reward_score, problem.val_weight), weights
        )
        improved = metrics.average_precision > self._best
        if self.keep_best and improved.any():
            stack.keep(improved)
        self._best = np.where(improved, metrics.average_precision, self._best)
        return observation, metrics

    def _pool(self, drawn: int) -> tuple[NDArray[np.int64], Floats]:
        """Training rows to score after this epoch, and how many rows each represents."""
        rng = generator(self.stack.seed, "population pool", self.number, self.epoch)
        groups = [(self._common, max(200, int(POOL_SHARE * drawn))), (self._others, POOL_OTHERS)]
        return thinned_groups(groups, rng, weight=self.stack.problem.train_weight, shuffle=False)


class OneVecEnv(VecEnv):
    """The methods of a Stable-Baselines3 ``VecEnv`` that are the same for all students of one object."""

    render_mode = None
    begun = False
    """Whether :meth:`reset` was called."""
    reward_scale: float = 1.0
    """Divisor of a relative reward."""
    finals: list[dict[str, float]]
    """Means over the students of each episode that ended since the list was emptied.

    Metrics, ``minority_share``, ``hardness``; and the ``spread`` of the rewarded figure among siblings."""

    def spread(self) -> float:
        """Standard deviation of the rewarded figure among siblings, over the episodes of :attr:`finals`.

        PPO sets ``reward_scale`` from it.
        """
        return float(np.sqrt(np.mean([final["spread"] ** 2 for final in self.finals])))

    def _finish(self, metrics: RankingMetrics, share: Floats, hardness: Floats, spread: float) -> None:
        """Add the means of an episode that ended to :attr:`finals`."""
        weights = {"minority_share": float(1.0 - share[:, 0].mean()), "hardness": float(hardness.mean())}
        self.finals.append({name: float(metrics.named(name).mean()) for name in REWARDS} | weights | {"spread": spread})

    def _check_begun(self) -> None:
        if not self.begun:
            raise ResetNeededError("step was called before reset: call reset first")

    @staticmethod
    def _mark_ends(infos: list[dict[str, Any]], last: NDArray[np.float32]) -> None:
        """Add the last observations of an episode to its infos, as Stable-Baselines3 expects."""
        for info, observation in zip(infos, last, strict=True):
            info["terminal_observation"] = observation
            info["TimeLimit.truncated"] = False

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Arrays of a checkpoint, besides the counters that are set from outside."""
        return {}

    def load_state_dict(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restore the arrays of :meth:`state_dict`."""

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The attribute, once for each requested student."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of all students; they can't differ in attributes."""
        if len(list(self._get_indices(indices))) != self.num_envs:
            raise InputError(f"attributes of {type(self).__name__} are common to all students; set them without indices")
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method once; its result, once for each requested student."""
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """No student is wrapped."""
        return [False for _ in self._get_indices(indices)]


class PopulationVecEnv(OneVecEnv):
    """``balancer/ClassWeights-v1`` or ``-v0`` for many students at once.

    Spaces, reward and episode end are the same.

    Args:
        problem: Data of the students.
        num_students: Number of students, a multiple of ``siblings``.
        siblings: Students of a group, which differ only in the actions of their policies.
        epochs: Steps of an episode.
        steps_per_epoch: Mini-batches of an epoch.
        batch_size: Rows of a mini-batch.
        reward: Validation figure whose change is the reward: ``f1`` at its best threshold,
            ``average_precision`` or ``partial_auc``.
        relative: Pay at the end the difference to the mean of the siblings, divided by :attr:`reward_scale`.
        budgets: Factors of ``steps_per_epoch``, one per episode in turn.
        seed: Random seed.
        device: Where the students train.
        version: Version of the environment, 0 or 1.

    Raises:
        InputError: Numbers or reward out of range.
    """

    def __init__(
        self,
        problem: PopulationProblem,
        num_students: int = 32,
        *,
        siblings: int = 1,
        epochs: int = 8,
        steps_per_epoch: int = 30,
        batch_size: int = 128,
        reward: Reward = "f1",
        relative: bool = False,
        budgets: Sequence[float] = (1.0,),
        seed: int = 0,
        device: str = "cpu",
        version: int = 1,
    ) -> None:
        self.version = version
        if siblings < 1 or num_students < 1 or num_students % siblings or (relative and siblings < 2):
            raise InputError(
                f"num_students ({num_students}) must be a multiple of siblings ({siblings}), and a relative reward needs at least two"
            )
        if reward not in REWARDS:
            raise InputError(f"reward {reward!r} is not known; choose one of {', '.join(REWARDS)}")
        stack = PopulationStack(
            problem,
            groups=num_students // siblings,
            siblings=siblings,
            batch_size=batch_size,
            seed=seed,
            device=device,
            compensated=np.full(num_students, bool(version)),
        )
        self.episode = PopulationEpisode(stack, epochs=epochs, steps_per_epoch=steps_per_epoch, budgets=budgets)
        self.reward, self.relative, self.siblings = reward, relative, siblings
        self.next_episode = 0
        """Number of the next episode; set it before ``reset`` to continue there."""
        self.final: dict[str, Floats] = {}
        """Validation metrics (M,) of the last episode: the best of its epochs, in version 0 the last."""
        self.finals = []
        k = problem.num_classes
        super().__init__(
            num_students,
            gymnasium.spaces.Box(-5.0, 5.0, (observation_size(k, version),), np.float32),
            gymnasium.spaces.Box(-1.0, 1.0, (k + ACTION_SIZE[version],), np.float32),
        )
        self._actions = np.zeros((num_students, k + ACTION_SIZE[version]), np.float32)

    def reset(self) -> NDArray[np.float32]:
        """Begin episode :attr:`next_episode` for all students; (M, observation)."""
        self.begun = True
        self.episode.begin(self.next_episode)
        self.next_episode += 1
        self._weights = self.episode.start(self.version)
        self._figures: dict[str, Floats] = {name: np.zeros(self.num_envs) for name in REWARDS}
        return self._flat(self.episode.first(self._weights))

    def _flat(self, observation: Observation) -> NDArray[np.float32]:
        return (observation if self.version else observation.v0()).flat()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the residual actions (M, K + 4), or (M, K + 2) of version 0."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Apply the actions to the weights, train an epoch, score.

        Raises:
            ResetNeededError: :meth:`reset` was not called.
        """
        self._check_begun()
        action, episode = np.asarray(self._actions, np.float64), self.episode
        self._weights = move(self._weights, action, episode.prior, episode.share_limit)
        observation, metrics = self.episode.train_epoch(self._weights)
        before = self._figures
        last: dict[str, Floats] = {name: metrics.named(name) for name in REWARDS}
        # A training keeps its best model, so each figure is the best of all epochs; in version 0 the last.
        self._figures = {name: np.maximum(value, before[name]) for name, value in last.items()} if self.version else last
        value = self._figures[self.reward]
        paid = value - before[self.reward]
        done = self.episode.epoch >= self.episode.epochs
        if self.relative:
            groups = value.reshape(-1, self.siblings) * done
            paid = ((groups - groups.mean(axis=1, keepdims=True)) / self.reward_scale).ravel()
        infos: list[dict[str, Any]] = [
            {"f1": float(f1), "average_precision": float(ap)} for f1, ap in zip(metrics.f1, metrics.average_precision, strict=True)
        ]
        flat = self._flat(observation)
        if done:
            self.final = self._figures
            groups = value.reshape(-1, self.siblings)
            spread = float(np.sqrt(np.mean((groups - groups.mean(axis=1, keepdims=True)) ** 2)))
            self._finish(RankingMetrics(**self._figures), self._weights.share, self._weights.hardness, spread)
            self._mark_ends(infos, flat)
            flat = self.reset()
        return flat, paid.astype(np.float32), np.full(self.num_envs, done), infos
