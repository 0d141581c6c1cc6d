"""The population of students: its speed compared with one student per process; the cost of hardness.

Claims:

- 64 students of `PopulationVecEnv` train at least 6 times as many student-batches per CPU-second as
  Stable-Baselines3's `SubprocVecEnv` over the same student as an ordinary torch module in a Python loop,
  everything else equal. On CUDA they train at least 50 times as many per second.
- Scoring the pool of training rows for hardness takes less than 20 % of an epoch, in the population and in
  `balancer train`.

CPU-seconds are those of this process and its children; on CUDA the population is measured in seconds of
wall-clock time. The two kinds of environment take turns, and each figure is the median of the rounds.

    python -m benchmarks.claims.population                # -> benchmarks/results/population.json
    python -m benchmarks.claims.population --device cuda  # -> benchmarks/results/population_cuda.json
"""

from __future__ import annotations

import os

# One thread, set before NumPy, polars and torch are loaded.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["POLARS_MAX_THREADS"] = "1"

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import psutil
import torch
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from torch import nn

from balancer.envs.class_weights import ClassWeightsEnv
from balancer.envs.population import HIDDEN, PopulationStack, StudentKinds
from balancer.envs.problem import PopulationProblem, synthetic_problem
from balancer.envs.vec_env import PopulationVecEnv
from balancer.models.schedule import learning_rate_factor
from balancer.options.fit import Budget, FitOptions
from balancer.sampling.policies import ConstantPolicy
from balancer.sampling.row_sampler import RowSampler
from balancer.training.trainer import ClassifierTrainer
from balancer.training.treatment import Treatment
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, record
from benchmarks.lib.training import default_model, simulated_dataset, train_classifier

ROWS, SEED, EPOCHS, STEPS, BATCH = 20_000, 0, 8, 30, 128
SCORE_BATCH = 4096


class LoopStudent:
    """The student of the population as usual torch code: module, autograd, AdamW, scheduler."""

    def __init__(self, problem: PopulationProblem, seed: int, total_steps: int) -> None:
        torch.manual_seed(seed)
        kinds = StudentKinds.drawn(seed, 0, 1, 1)
        features, dropout = problem.x_train.shape[1], float(kinds.dropout[0])
        self.x = torch.as_tensor(np.concatenate([problem.x_train, problem.x_val]))
        self.y = torch.as_tensor(np.concatenate([problem.y_train, problem.y_val]))
        hidden = [nn.Linear(features, HIDDEN), nn.ReLU(), nn.Dropout(dropout), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Dropout(dropout)]
        self.net = nn.Sequential(*hidden, nn.Linear(HIDDEN, problem.num_classes))
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=float(kinds.learning_rate[0]), weight_decay=float(kinds.weight_decay[0])
        )
        schedule = partial(learning_rate_factor, total_steps=total_steps)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)

    def fit(self, rows: np.ndarray, weight: np.ndarray, logit_offset: np.ndarray) -> None:
        """Train on mini-batches of ``rows`` (n,), in their order; see the environment's ``Student``."""
        self.net.train()
        offset, counted = torch.as_tensor(logit_offset, dtype=torch.float32), torch.as_tensor(weight, dtype=torch.float32)
        for batch, row_weight in zip(torch.as_tensor(rows).split(BATCH), counted.split(BATCH), strict=True):
            each = nn.functional.cross_entropy(self.net(self.x[batch]) + offset, self.y[batch], reduction="none")
            loss = (each * row_weight).sum() / row_weight.sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()

    @torch.no_grad()
    def score(self, rows: np.ndarray) -> np.ndarray:
        """Class probabilities of ``rows``, (n, K)."""
        self.net.eval()
        x = self.x[torch.as_tensor(rows)]
        return torch.cat([torch.softmax(self.net(part), dim=1) for part in x.split(SCORE_BATCH)]).numpy()


def loop_environment(problem: PopulationProblem, number: int) -> Callable[[], ClassWeightsEnv]:
    """A function that makes `balancer/ClassWeights-v1` with a :class:`LoopStudent`.

    Rows drawn, rows scored, observation and reward are those of the environment.
    """

    def make() -> ClassWeightsEnv:
        torch.set_num_threads(1)
        environment = ClassWeightsEnv(problem=problem, epochs=EPOCHS, steps_per_epoch=STEPS, batch_size=BATCH, seed=SEED + number)
        environment.task = dataclasses.replace(environment.task, make=lambda seed, steps: LoopStudent(problem, seed, steps))
        return environment

    return make


def cpu_seconds() -> float:
    """User and system time of this process and its children up to now."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


def speed(environment: VecEnv, steps: int, rng: np.random.Generator, clock: Callable[[], float]) -> float:
    """Student-batches per second of ``clock`` over ``steps`` steps of random actions."""
    shape = (environment.num_envs, *(environment.action_space.shape or ()))
    begin = clock()
    for _ in range(steps):
        environment.step(rng.uniform(-1, 1, shape).astype(np.float32))
    return environment.num_envs * steps * STEPS / (clock() - begin)


def throughput(problem: PopulationProblem, students: int, device: str, rounds: int) -> dict[str, Any]:
    """Measure both kinds of environment in turns, after a warm-up of one episode each."""
    cores = os.cpu_count() or 1
    loop = SubprocVecEnv([loop_environment(problem, number) for number in range(cores)], start_method="forkserver")
    stacked = PopulationVecEnv(problem, students, epochs=EPOCHS, steps_per_epoch=STEPS, batch_size=BATCH, seed=SEED, device=device)
    rng, figures = np.random.default_rng(SEED), []
    clock = cpu_seconds if device == "cpu" else time.perf_counter
    try:
        for environment in (loop, stacked):
            environment.reset()
            speed(environment, EPOCHS, rng, cpu_seconds)
        for _ in range(rounds):
            figures.append((speed(loop, 4 * EPOCHS, rng, cpu_seconds), speed(stacked, EPOCHS, rng, clock)))
    finally:
        loop.close()
    one, many = np.median(figures, axis=0)
    ratios = [b / a for a, b in figures]
    return {
        "students": students,
        "processes_of_the_loop": cores,
        "problem": {"rows": len(problem.y_train), "reward_rows": len(problem.y_val), "features": problem.x_train.shape[1]},
        "epochs": EPOCHS,
        "steps_per_epoch": STEPS,
        "batch_size": BATCH,
        "rounds": rounds,
        "student_batches_per_second": {"subproc_vec_env": round(float(one)), "population_vec_env": round(float(many))},
        "ratio": round(float(np.median(ratios)), 2),
        "ratio_by_round": [round(ratio, 2) for ratio in ratios],
    }


class Clock:
    """Counts the CPU-seconds of refreshing the hardness, including the scoring that it needs."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last: dict[int, float] = {}

    @contextmanager
    def around(self, student: type[Any], table: type[Any]) -> Iterator[None]:
        """Time ``table.refresh``, and those calls of ``student.score`` whose result it gets."""
        score, refresh = student.score, table.refresh

        def timed_score(*arguments: Any) -> Any:
            begin = time.process_time()
            result = score(*arguments)
            self._last[id(result)] = time.process_time() - begin
            return result

        def timed_refresh(this: Any, rows: Any, scores: Any) -> None:
            begin = time.process_time()
            refresh(this, rows, scores)
            self.seconds += time.process_time() - begin + self._last.pop(id(scores))
            self._last.clear()

        with mock.patch.object(student, "score", timed_score), mock.patch.object(table, "refresh", timed_refresh):
            yield


def population_share(problem: PopulationProblem, students: int) -> float:
    """Share of an epoch of the population that scoring for hardness takes."""
    environment, rng, clock = (
        PopulationVecEnv(problem, students, epochs=EPOCHS, steps_per_epoch=STEPS, batch_size=BATCH, seed=SEED),
        np.random.default_rng(SEED),
        Clock(),
    )
    environment.reset()
    speed(environment, EPOCHS, rng, cpu_seconds)
    with clock.around(PopulationStack, PopulationStack):
        begin = time.process_time()
        speed(environment, 2 * EPOCHS, rng, cpu_seconds)
        return clock.seconds / (time.process_time() - begin)


def classifier_share(steps: int) -> float:
    """The same share for the classifier under a constant policy, on a simulated table."""
    dataset = simulated_dataset(ROWS, seed=SEED, fraud_rate=0.02)
    model, clock = default_model(dataset, edges_seed=SEED), Clock()
    with clock.around(ClassifierTrainer, RowSampler):
        begin = time.process_time()
        train_classifier(dataset, model, Treatment("constant", ConstantPolicy()), Budget(3, steps), FitOptions())
        return clock.seconds / (time.process_time() - begin)


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where the population trains; the loop always runs on the CPU"
    )
    options.add_argument("--students", type=int, help="students of the population (default: 64, on CUDA 1024)")
    options.add_argument("--rounds", type=int, default=5, help="rounds in which both environments are measured")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    cuda = arguments.device == "cuda"
    problem = synthetic_problem(2, rows=ROWS, seed=SEED)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "seed": SEED,
        "throughput": throughput(problem, arguments.students or (1024 if cuda else 64), arguments.device, arguments.rounds),
    }
    if not cuda:
        result["share_of_an_epoch_scoring_for_hardness"] = {
            "population": round(population_share(problem, arguments.students or 64), 3),
            "classifier": round(classifier_share(STEPS), 3),
        }
    record(result, RESULTS / ("population_cuda.json" if cuda else "population.json"))


if __name__ == "__main__":
    main()
