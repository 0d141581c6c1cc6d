"""Part ``population`` of ``benchmarks/gpu.sh``: how fast students of the sampling policy train on a GPU.

Student-batches per second of wall-clock time are measured for populations of several sizes, then those of one
student in a Python loop on the CPU, per second of CPU time, as in ``benchmarks.claims.population``; then
environment steps per second of a training of the policy by PPO.
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from balancer.envs.problem import PopulationProblem, synthetic_problem
from balancer.envs.vec_env import PopulationVecEnv
from balancer.policy_learning.training import PolicyBudget, train_policy
from benchmarks.claims.population import BATCH, EPOCHS, ROWS, STEPS, cpu_seconds, loop_environment, speed
from benchmarks.lib.checks import claim
from benchmarks.lib.gpu_part import SEED, Part, main
from benchmarks.lib.gpu_timing import release

STUDENTS, CLAIMED, TIMES = (64, 1024), 1024, 50.0
"""Numbers of students; that of the claim; and the claim: times as many student-batches as the loop.

More students would take too long, because their metrics are computed on the CPU.
"""


def measure(part: Part) -> None:
    """Measure populations, the loop and a training, and keep each as soon as it is there."""
    problem = synthetic_problem(2, rows=600 if part.dry else ROWS, seed=SEED)
    rates: dict[str, float] = {}
    setting = {"rows": len(problem.y_train), "epochs": EPOCHS, "steps_per_epoch": STEPS, "batch_size": BATCH}
    for students in (2, 4) if part.dry else STUDENTS:
        found = part.attempt(f"{students} students", partial(population, problem, students, part))
        release(part.device)
        if found is not None:
            rates[str(students)] = found
            part.keep(headline(rates, None), setting=setting, student_batches_per_second=rates)
    loop = part.attempt("the loop on the CPU", partial(one_student, problem, 1 if part.dry else 2 * EPOCHS))
    if loop is not None:
        ratios = {students: rate / loop for students, rate in rates.items()}
        text = f"CUDA, {CLAIMED} students: at least {TIMES:g} times as many student-batches as a loop on the CPU"
        checked = claim(text, None if part.dry else ratios.get(str(CLAIMED)), TIMES)
        part.keep(headline(rates, ratios), loop_batches_per_cpu_second=loop, times_the_loop=ratios, claims=[checked])
    trained = part.attempt("training of the policy", partial(training, problem, part))
    if trained is not None:
        part.keep(training=trained)


def population(problem: PopulationProblem, students: int, part: Part) -> float:
    """Student-batches per second of wall-clock time over one episode, after a warm-up of two epochs."""
    environment = PopulationVecEnv(problem, students, epochs=EPOCHS, steps_per_epoch=STEPS, batch_size=BATCH, seed=SEED, device=part.device)
    environment.reset()
    rng = np.random.default_rng(SEED)
    speed(environment, 1 if part.dry else 2, rng, time.perf_counter)
    # The scores after each epoch are needed on the CPU, so all work of the device is done by then.
    return speed(environment, 1 if part.dry else EPOCHS, rng, time.perf_counter)


def one_student(problem: PopulationProblem, steps: int) -> float:
    """Student-batches per CPU-second of one student as an ordinary torch module."""
    environment = DummyVecEnv([loop_environment(problem, 0)])
    environment.reset()
    rng = np.random.default_rng(SEED)
    speed(environment, 1, rng, cpu_seconds)
    return speed(environment, steps, rng, cpu_seconds)


def training(problem: PopulationProblem, part: Part) -> dict[str, Any]:
    """Train a policy; environment steps per second of its rollouts after the first, with PPO's updates."""
    students = 4 if part.dry else 256
    budget = PolicyBudget(
        rollouts=2 if part.dry else 3, num_students=students, siblings=2 if part.dry else 8, test_groups=1, test_episodes=1
    )
    ends: list[tuple[float, int]] = []

    def progress(figures: dict[str, Any]) -> None:
        ends.append((time.monotonic(), figures["env_steps"]))

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        train_policy(problem, budget, seed=SEED, folder=Path(folder) / "policy", device=part.device, progress=progress)
    (begin, before), (end, after) = ends[0], ends[-1]
    seconds = {"training": end - started, "comparison": time.monotonic() - end}
    return {"students": students, "rollouts": budget.rollouts, "env_steps_per_second": (after - before) / (end - begin), "seconds": seconds}


def headline(rates: dict[str, float], ratios: dict[str, float] | None) -> str:
    """Student-batches per second of the largest population, and their ratio to the loop."""
    students = list(rates)[-1] if rates else None
    if students is None:
        return "no population"
    times = "" if ratios is None else f", {ratios[students]:.3g} times a loop on the CPU"
    return f"{students} students: {rates[students]:.3g} student-batches per second{times}"


if __name__ == "__main__":
    sys.exit(main("population", measure, __doc__))
