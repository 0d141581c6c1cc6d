"""What each budget costs here, printed before it starts: a few real training steps are timed and multiplied out."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.models import ModelConfig
from balancer.options.train import BUDGETS, Budget, TrainConfig
from balancer.training.fitting import BASELINES, POOL_SHARE, REWARD_NEGATIVES, Pools
from balancer.training.preparation import schedule_for
from balancer.training.trainer import ClassifierStudent

PROBE_STEPS = 4
PPO_SECONDS = {"quick": 45.0, "standard": 160.0, "thorough": 1200.0}
"""Seconds that PPO on the population takes on two cores; it depends little on the table."""


def estimate(dataset: Dataset, model: ModelConfig, config: TrainConfig, schedules: dict[str, Budget], device: str) -> dict[str, float]:
    """Seconds of each schedule, by name: PPO, then the classifier and its baselines."""
    pools = Pools.of(dataset)
    student = ClassifierStudent(dataset, model, seed=0, total_steps=PROBE_STEPS, batch_size=config.batch_size, device=device)
    rows = _probe(dataset, model, _spread(pools.train, PROBE_STEPS * config.batch_size))
    student.fit(rows[: config.batch_size])  # the first step pays for set-up
    started = time.perf_counter()
    student.fit(rows)
    fitting = (time.perf_counter() - started) / _work(dataset, model, rows)
    student.score(rows[: config.batch_size])
    started = time.perf_counter()
    student.score(rows)
    scoring = (time.perf_counter() - started) / _work(dataset, model, rows)
    models = 1 + len(BASELINES)
    reward = _work(dataset, model, _spread(pools.reward, min(len(pools.reward), 2 * REWARD_NEGATIVES)))
    final = sum(_work(dataset, model, dataset.rows(split)) for split in (Split.THRESHOLD, Split.TEST))
    seconds = {}
    for name, schedule in schedules.items():
        drawn = schedule.steps_per_epoch * config.batch_size
        epoch, pool = (_work(dataset, model, _spread(pools.train, count)) for count in (drawn, int(POOL_SHARE * drawn)))
        scored = schedule.epochs * (reward * models + pool) + final * models
        policy = PPO_SECONDS[name] if config.policy == "ppo" else 0.0
        seconds[name] = policy + schedule.epochs * epoch * models * fitting + scored * scoring
    return seconds


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """``count`` of ``rows`` (n,), evenly spread, some several times where there are fewer."""
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def _work(dataset: Dataset, model: ModelConfig, rows: np.ndarray) -> int:
    """What a pass over ``rows`` (n,) costs: windows, or in whole histories the positions read, which many rows share."""
    if model.form == "rows":
        return max(1, len(rows))
    segments = dataset.store.segments(rows, model.history_length)
    return max(1, int((segments.last - segments.first + 1).sum()))


def _probe(dataset: Dataset, model: ModelConfig, rows: np.ndarray) -> np.ndarray:
    """``rows`` (n,) themselves, or in whole histories those of a dozen histories: all of them would take as long as an epoch."""
    if model.form == "rows":
        return rows
    segments = dataset.store.segments(rows, model.history_length)
    every = max(1, len(segments.first) // 12)
    probe: np.ndarray = rows[segments.segment % every == 0]
    return probe


def print_costs(dataset: Dataset, model: ModelConfig, config: TrainConfig, device: str, console: Console) -> None:
    """Print a line per budget with what it takes here; the chosen one is marked."""
    rows = len(Pools.of(dataset).train)
    schedules = {name: schedule_for(replace(config, budget=name), rows) for name in BUDGETS}  # type: ignore[arg-type]
    seconds = estimate(dataset, model, config, schedules, device)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    for column in ("budget", "epochs", "steps an epoch", "about"):
        table.add_column(column, justify="left" if column == "budget" else "right")
    for name, own in schedules.items():
        chosen = name == config.budget
        cost = f"{seconds[name] / 60:.1f} min on {device}"
        table.add_row(("> " if chosen else "  ") + name, str(own.epochs), str(own.steps_per_epoch), cost, style="bold" if chosen else "dim")
    console.print(table)
