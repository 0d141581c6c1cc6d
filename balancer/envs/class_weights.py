"""``balancer/ClassWeights-v1`` and ``-v0``: one training of any student as one episode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from balancer.envs.errors import ResetNeededError
from balancer.envs.problem import PopulationProblem, synthetic_problem
from balancer.envs.versions import ACTION_SIZE
from balancer.errors import InputError
from balancer.names import counted
from balancer.sampling.ages import ages
from balancer.sampling.constant_policy import COMPENSATED
from balancer.sampling.inputs import whole_number
from balancer.sampling.observation import Observation, ObservationBuilder, observation_size
from balancer.sampling.pools import thinned_groups
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.scores import REWARDS, Reward
from balancer.sampling.seeding import generator, integer_seed
from balancer.sampling.weights import class_prior, stacked, start_weights

if TYPE_CHECKING:
    from balancer.data.dataset import Dataset
    from balancer.models import ModelConfig

POOL_SHARE = 0.5
POOL_LIMIT = 20_000
CLASSIFIER_TASK = "balancer.training.student_task:classifier_task"
"""Function that makes the task of ``student="classifier"``.

It is given as an entry point, because environments don't import training."""


class Student(Protocol):
    """A model that learns; rows are indices into a table that only the student has."""

    def fit(self, rows: NDArray[np.int64], weight: NDArray[np.float64], logit_offset: NDArray[np.float64]) -> Any:
        """Train on rows.

        Version 0 gives ``rows`` alone, and a student for it needs no other argument.

        Args:
            rows: (n,) rows, in this order.
            weight: (n,) weight of each row in the loss.
            logit_offset: (K,) what to add to the logits in training, never in scoring.
        """
        ...

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """(n, K) class probabilities; for version 1 those of the raw logits, without offset or prior."""
        ...


@dataclass(frozen=True)
class StudentTask:
    """A student and the rows that it is trained and evaluated on.

    `make` gives a new :class:`Student` for each episode; docs/policies.md has a whole example.
    """

    label: NDArray[np.integer[Any]]
    """(N,) class of every row."""
    train_rows: NDArray[np.int64]
    """(n,) rows to train on."""
    reward_rows: NDArray[np.int64]
    """(v,) rows from which the reward is computed."""
    num_classes: int
    """K; class 0 is the negative class."""
    train_weight: NDArray[np.float64]
    """(n,) how many rows of the data set each training row represents."""
    reward_weight: NDArray[np.float64]
    """(v,) the same for the reward rows."""
    make: Callable[[int, int], Student]
    """Makes a new student from a seed and the number of mini-batches it will be trained on."""
    time: NDArray[np.float64] | None = None
    """(N,) time of every row; None: the half-life has no effect."""


class ClassWeightsEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Choose, epoch by epoch, how the rows of an imbalanced table are sampled during training.

    ## Description

    An episode is one training of a student: a small network of random kind (``student="population"``) or the
    transaction-sequence classifier (``student="classifier"``). Before every epoch the agent changes the
    sampling weights. Then the rows of the epoch are drawn: a class first, then a row of it. The environment
    is a contextual Markov decision process in the sense of dynamic algorithm configuration (Biedenkapp et al.
    2020).

    ## Action Space

    ``Box(-1, 1, (K + 4,), float32)``, a residual of the present weights; zero keeps them.

    | index | meaning | an action of 1 changes it by | range of the weight |
    |---|---|---|---|
    | 0 .. K-1 | log share of each class, before a softmax | .75 | 0 to 1 |
    | K | hardness exponent | 1 | 0 to 3 |
    | K+1 | importance exponent of the classes | .25 | 0 to 1 |
    | K+2 | importance exponent of the rows within a class | .25 | 0 to 1 |
    | K+3 | half-life of a row by its age, a fraction of the time span | a factor of 2 | 1/16 to 16 |

    The floor, the fraction of draws that ignore hardness, stays .05. How often a row is drawn and how much it
    counts are two things: the importance exponents decide the latter, and the log of each class's mass is
    added to the student's logits in training (:mod:`balancer.sampling.weights`).

    ## Observation Space

    ``Box(-5, 5, (K * D + G,), float32)``: D features of each class (histogram of ``1 - p(true class)`` on a
    pool of training rows and on validation rows, and their changes, prior, share and mass over prior,
    repeats, gap between training and validation, F1), then G shared features (progress, remaining budget,
    hardness, floor, importance exponents, recency, positives in validation, F1, average precision, their
    changes, distance to the best epoch so far). ``balancer.sampling.observation`` lists
    their names. Before the first epoch, features that need scores are 0.

    ## Reward

    The change of a validation figure, which is 0 before the first epoch. So with discount 1 an episode's
    return is that figure: the best of all epochs, as of a training that keeps its best model (in v0: the
    last). ``f1`` is the F1 at the best threshold; for K > 2 figures are the mean
    over all classes but class 0, each against the rest.

    ## Starting State

    A new student; share = prior ** (1/3), normalised; hardness 1; floor .05; importance .5 of the classes and
    0 of the rows; no half-life.

    ## Episode End

    Terminates after ``epochs`` steps. Never truncates. A step after the end raises
    :class:`~balancer.envs.errors.ResetNeededError`.

    ## Info

    ``reset`` and ``step`` return the same keys:

    | key | meaning |
    |---|---|
    | ``share`` | list of the K shares of the classes in the draws |
    | ``hardness``, ``floor`` | hardness exponent; fraction of draws that ignore it |
    | ``class_importance``, ``hardness_importance`` | importance exponents (v1 only) |
    | ``half_life`` | half-life of a row, a fraction of the time span; infinite: age has no effect (v1 only) |
    | ``epoch`` | finished epochs |
    | ``f1``, ``average_precision`` | figures of the last epoch on the validation rows; 0 before the first |

    ## Rendering

    There is nothing to draw. ``render`` warns and returns None.

    ## Arguments

    | argument | default | meaning |
    |---|---|---|
    | ``student`` | ``"population"`` | or ``"classifier"``, or a ``StudentTask``: your model and its rows |
    | ``problem`` | a small synthetic one | ``PopulationProblem`` of the population student |
    | ``dataset``, ``model`` | | ``Dataset`` and ``ModelConfig`` of the classifier student |
    | ``num_classes`` | 2 | number of classes of the synthetic problem |
    | ``epochs``, ``steps_per_epoch``, ``batch_size`` | 8, 30, 128 | of an episode, an epoch, a mini-batch |
    | ``reward`` | ``"f1"`` | or ``"average_precision"``, ``"partial_auc"`` (to a FPR of .01) |
    | ``seed`` | 0 | random seed; ``reset(seed=...)`` replaces it; episode e is a function of (seed, e) |
    | ``device`` | ``"cpu"`` | where the student trains |
    | ``render_mode`` | None | None only |
    | ``version`` | 1 | 0 is the first version, below |

    For many students at once see ``balancer.envs.vec_env.PopulationVecEnv``, a Stable-Baselines3 ``VecEnv``.

    ## Example

    >>> env = ClassWeightsEnv(epochs=2, steps_per_epoch=5)
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(np.zeros(6, np.float32))  # as before
    >>> info["epoch"], terminated
    (1, False)

    ## Version History

    * v1: compensated sampling, recency, and the best epoch as the return.
    * v0: first version. Actions (K + 2,): log shares, hardness, floor (.1 an epoch); the total share of all
      classes but class 0 stays between its prior and a limit (:func:`balancer.sampling.weights.share_limit`);
      students count every drawn row alike. ``ClassWeightsEnv(version=0)``.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self,
        student: str | StudentTask = "population",
        *,
        problem: PopulationProblem | None = None,
        dataset: Dataset | None = None,
        model: ModelConfig | None = None,
        num_classes: int = 2,
        epochs: int = 8,
        steps_per_epoch: int = 30,
        batch_size: int = 128,
        reward: Reward = "f1",
        seed: int = 0,
        device: str = "cpu",
        version: int = 1,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            raise InputError(f"render_mode {render_mode!r} is not possible, the environment has nothing to draw: leave render_mode out")
        self.render_mode = render_mode
        if version not in (0, 1):
            raise InputError(f"version must be 0 or 1, not {version!r}")
        self.version = version
        if reward not in REWARDS:
            raise InputError(f"reward {reward!r} is not known; choose one of {', '.join(REWARDS)}")
        for name, value in (("epochs", epochs), ("steps_per_epoch", steps_per_epoch), ("batch_size", batch_size)):
            whole_number(value, name, 1)
        whole_number(num_classes, "num_classes", 2)
        if isinstance(student, StudentTask):
            self.task = student
        elif student == "population":
            self.task = population_task(problem or synthetic_problem(num_classes), batch_size, device)
        elif student == "classifier":
            if dataset is None or model is None:
                raise InputError('student="classifier" needs dataset and model')
            self.task = _entry_point(CLASSIFIER_TASK)(dataset, model, batch_size, device)
        else:
            raise InputError(f"student {student!r} is not known; choose population or classifier, or give a StudentTask")
        self.epochs, self.steps_per_epoch, self.batch_size = epochs, steps_per_epoch, batch_size
        self.reward_name, self.seed, self.episode = reward, seed, -1
        k = self.task.num_classes
        self.observation_space = gymnasium.spaces.Box(-5.0, 5.0, (observation_size(k, version),), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (k + ACTION_SIZE[version],), np.float32)
        self._drawable = np.full(len(self.task.label), -1, dtype=np.int64)
        self._drawable[self.task.train_rows] = self.task.label[self.task.train_rows]
        time = self.task.time
        self._age = None if time is None or not version else ages(time, self._drawable >= 0)
        self._counts = np.bincount(self.task.label[self.task.train_rows], self.task.train_weight, k)
        self._weight_of = np.zeros(len(self.task.label))
        self._weight_of[self.task.train_rows] = self.task.train_weight

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin the next episode; with ``seed``, the first episode of that seed."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self.seed, self.episode = seed, -1
        self.episode += 1
        task, total = self.task, self.epochs * self.steps_per_epoch
        self._student = task.make(integer_seed(self.seed, "student", self.episode), total)
        self._prior = class_prior(self._counts)
        self._sampler = RowSampler(self._drawable, task.num_classes, age=self._age, prior=self._prior)
        self._builder = ObservationBuilder(
            self._prior,
            epochs=self.epochs,
            batch_budget=total * self.batch_size,
            train_counts=self._counts,
            reward_counts=np.bincount(task.label[task.reward_rows], task.reward_weight, task.num_classes),
            compensated=bool(self.version),
        )
        start = start_weights(self._prior, self._builder.share_limit)
        self.weights = COMPENSATED.weights(self._prior) if self.version else start
        self._potential = 0.0
        return self._flat(self._builder.first(stacked([self.weights]))), self._info(0.0, 0.0)

    def _flat(self, observation: Observation) -> NDArray[np.float32]:
        flat: NDArray[np.float32] = (observation if self.version else observation.v0()).flat()[0]
        return flat

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Apply an action to the weights, train an epoch, score.

        Raises:
            InputError: ``action`` has another shape than the action space, or is not finite.
            ResetNeededError: :meth:`reset` was not called, or the episode has ended.
        """
        if self.episode < 0:
            raise ResetNeededError("step was called before reset: call reset first")
        if self._builder.epoch >= self.epochs:
            raise ResetNeededError(f"the episode ended after {counted(self.epochs, 'step')}: call reset to begin the next one")
        if np.shape(action) != self.action_space.shape:
            raise InputError(f"the action has the shape {np.shape(action)}, the action space {self.action_space.shape}")
        if not np.isfinite(action).all():
            raise InputError(f"the action is not finite: {np.asarray(action).tolist()}")
        task, epoch = self.task, self._builder.epoch
        self.weights = self.weights.moved(action, self._prior, self._builder.share_limit)
        rng = generator(self.seed, "environment draw", self.episode, epoch)
        drawn = self.steps_per_epoch * self.batch_size
        rows = self._sampler.draw(drawn, self.weights, rng)
        if self.version:
            weight = self._sampler.loss_weights(rows, self.weights, drawn)
            self._student.fit(rows, weight, self.weights.logit_offset(self._prior))
        else:
            self._student.fit(rows)  # type: ignore[call-arg]  # students of version 0 need no other argument
        pool, pool_weight = self._pool(int(POOL_SHARE * drawn))
        pool_score = self._student.score(pool)
        self._sampler.refresh(pool, pool_score)
        observation, metrics = self._builder.after_epoch(
            (task.label[pool], pool_score[None], pool_weight),
            (task.label[task.reward_rows], self._student.score(task.reward_rows)[None], task.reward_weight),
            stacked([self.weights]),
        )
        value = float(metrics.named(self.reward_name)[0])
        if self.version:
            value = max(value, self._potential)
        paid, self._potential = value - self._potential, value
        done = self._builder.epoch >= self.epochs
        return self._flat(observation), paid, done, False, self._info(float(metrics.f1[0]), float(metrics.average_precision[0]))

    def render(self) -> None:
        """Warn that there is nothing to draw."""
        gymnasium.logger.warn("balancer/ClassWeights has no render mode: the weights and figures of each epoch are in info")

    def _pool(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Training rows to score, and how many rows each represents.

        About ``size`` rows of class 0, and as many of the other classes together.
        """
        rng = generator(self.seed, "environment pool", self.episode, self._builder.epoch)
        label, most = self.task.label[self.task.train_rows], min(max(size, 200), POOL_LIMIT)
        groups = [(self.task.train_rows[label == 0], most), (self.task.train_rows[label > 0], most)]
        return thinned_groups(groups, rng, weight=self._weight_of)

    def _info(self, f1: float, average_precision: float) -> dict[str, Any]:
        weights = self.weights.to_dict()
        if self.version:  # to_dict leaves out what has no effect, but the keys of info must not change from step to step
            weights |= {name: getattr(self.weights, name) for name in ("class_importance", "hardness_importance", "half_life")}
        return weights | {"epoch": self._builder.epoch, "f1": f1, "average_precision": average_precision}


def _entry_point(text: str) -> Callable[..., StudentTask]:
    module, _, name = text.partition(":")
    make: Callable[..., StudentTask] = getattr(import_module(module), name)
    return make


class _OneOfPopulation:
    """A stack of one student as a :class:`Student`; rows are the training rows, then the reward rows."""

    def __init__(self, problem: PopulationProblem, batch_size: int, device: str, seed: int, total_steps: int) -> None:
        import torch

        from balancer.envs.population import PopulationStack

        self._tensor = torch.as_tensor
        self._x = np.concatenate([problem.x_train, problem.x_val])
        self._stack = PopulationStack(problem, groups=1, batch_size=batch_size, seed=seed, device=device)
        self._stack.begin(0, total_steps=total_steps)

    def fit(
        self, rows: NDArray[np.int64], weight: NDArray[np.float64] | None = None, logit_offset: NDArray[np.float64] | None = None
    ) -> None:
        row_weight = None
        if weight is not None and logit_offset is not None:
            self._stack.set_offset(logit_offset[None])
            row_weight = self._tensor(weight[None], dtype=self._stack.dtype, device=self._stack.device)
        self._stack.fit(self._tensor(rows[None], device=self._stack.device), row_weight)

    def score(self, rows: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        return np.asarray(self._stack.score(self._x[rows])[0])


def population_task(problem: PopulationProblem, batch_size: int, device: str) -> StudentTask:
    """Task of one small network of random kind on ``problem``."""
    num_train, num_reward = len(problem.y_train), len(problem.y_val)
    return StudentTask(
        np.concatenate([problem.y_train, problem.y_val]),
        np.arange(num_train),
        np.arange(num_train, num_train + num_reward),
        problem.num_classes,
        problem.train_weight,
        problem.val_weight,
        lambda seed, total_steps: _OneOfPopulation(problem, batch_size, device, seed, total_steps),
        None if problem.train_age is None else np.concatenate([-problem.train_age.astype(np.float64), np.zeros(num_reward)]),
    )
