"""Estimated time of each budget, printed before training starts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.models import ModelConfig
from balancer.options.fit import BUDGETS, Budget, ScheduleOptions
from balancer.training.fitting import POOL_SHARE, REWARD_NEGATIVES, Pools
from balancer.training.preparation import Prepared, schedule_for
from balancer.training.trainer import ClassifierTrainer
from balancer.training.treatment import BASELINES

PROBE_STEPS = 4
SIMILAR = 0.15
"""Budgets whose numbers of steps differ by at most this share are said to train equally long."""
PPO_SECONDS = {"quick": 20.0, "standard": 40.0, "thorough": 120.0}
"""Seconds that PPO takes on one core; they depend little on the table."""


@dataclass(frozen=True)
class Estimate:
    """What a budget means for a run."""

    schedule: Budget
    seconds: float
    """Time of the policy, the classifier and its baselines, without the boosted trees."""


def estimate(prepared: Prepared) -> dict[str, Estimate]:
    """Estimate what each budget takes, from a few timed training steps.

    Returns:
        Schedule and seconds by name of the budget.
    """
    dataset, model, config, device = prepared.baseline_dataset, prepared.baseline_model, prepared.config, prepared.device
    pools = Pools.of(dataset)
    trainer = ClassifierTrainer(dataset, model, seed=0, total_steps=PROBE_STEPS, batch_size=config.batch_size, device=device)
    rows = _probe(dataset, model, _spread(pools.train, PROBE_STEPS * config.batch_size))
    trainer.fit(rows[: config.batch_size])  # the first step includes set-up, so it is not timed
    started = time.perf_counter()
    trainer.fit(rows)
    fitting = (time.perf_counter() - started) / _work(dataset, model, rows)
    trainer.score(rows[: config.batch_size])
    started = time.perf_counter()
    trainer.score(rows)
    scoring = (time.perf_counter() - started) / _work(dataset, model, rows)
    models = 1 + len(BASELINES)
    reward = _work(dataset, model, _spread(pools.reward, min(len(pools.reward), 2 * REWARD_NEGATIVES)))
    final = sum(_work(dataset, model, dataset.rows(split)) for split in (Split.THRESHOLD, Split.TEST))
    found = {}
    for name in BUDGETS:
        schedule = schedule_for(replace(config, budget=name), len(pools.train))  # type: ignore[arg-type]
        drawn = schedule.steps_per_epoch * config.batch_size
        epoch, pool = (_work(dataset, model, _spread(pools.train, count)) for count in (drawn, int(POOL_SHARE * drawn)))
        scored = schedule.epochs * (reward * models + pool) + final * models
        policy = PPO_SECONDS[name] if config.policy == "ppo" else 0.0
        found[name] = Estimate(schedule, policy + schedule.epochs * epoch * models * fitting + scored * scoring)
    return found


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the rows (n,) at equal distances; rows repeat if there are fewer than ``count``."""
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def _work(dataset: Dataset, model: ModelConfig, rows: np.ndarray) -> int:
    """Cost of a pass over ``rows`` (n,): number of rows, or for whole histories number of positions read."""
    if model.form == "rows":
        return max(1, len(rows))
    segments = dataset.store.segments(rows, model.history_length)
    return max(1, int((segments.last - segments.first + 1).sum()))


def _probe(dataset: Dataset, model: ModelConfig, rows: np.ndarray) -> np.ndarray:
    """Rows to time: all ``rows`` (n,), or for whole histories those of a dozen histories, to save time."""
    if model.form == "rows":
        return rows
    segments = dataset.store.segments(rows, model.history_length)
    every = max(1, len(segments.first) // 12)
    probe: np.ndarray = rows[segments.segment % every == 0]
    return probe


def print_costs(prepared: Prepared, console: Console) -> None:
    """Print a line for each budget with its estimated time; the chosen one is marked."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    for column in ("budget", "epochs", "steps per epoch", "about"):
        table.add_column(column, justify="left" if column == "budget" else "right")
    found = estimate(prepared)
    for name, budget in found.items():
        chosen = name == prepared.config.budget
        table.add_row(
            ("> " if chosen else "  ") + name,
            str(budget.schedule.epochs),
            str(budget.schedule.steps_per_epoch),
            f"{budget.seconds / 60:.1f} min on {prepared.device}",
            style="bold" if chosen else "dim",
        )
    console.print(table)
    note = equal_budgets({name: budget.schedule for name, budget in found.items()}, prepared.config)
    if note is not None:
        console.print(f"note: {note}", style="dim", highlight=False, soft_wrap=not console.is_terminal)


def equal_budgets(schedules: Mapping[str, Budget], options: ScheduleOptions) -> str | None:
    """Say which budgets train equally long, because the table is small.

    Args:
        schedules: Schedule by name of the budget.
        options: What was given for the schedule.

    Returns:
        A sentence, or None where they differ.
    """
    if options.steps_per_epoch is not None or options.epochs is not None:
        return None
    total = {name: schedule.epochs * schedule.steps_per_epoch for name, schedule in schedules.items()}
    most = max(total.values())
    names = [name for name in total if total[name] >= most * (1 - SIMILAR)]
    steps = {schedule.steps_per_epoch for schedule in schedules.values()}
    if len(names) < 2:
        each = f"every budget has {max(steps)} steps per epoch" if len(steps) == 1 else None
        return each and f"the table is small: {each}, and only the number of epochs differs; --steps-per-epoch gives more"
    listed = " and ".join([", ".join(names[:-1]), names[-1]])
    return f"the table is small: {listed} train about {most} steps each, so that no row is repeated too often; --steps-per-epoch gives more"
