"""Constants chosen on the reward half, in every window and for every seed anew: what somebody would do who tunes instead of adapts.

Every candidate is a whole training at the budget of the others; the one with the best average precision on the reward half is the result, as it was trained.
The trainings used stand in the cell.

TPE: Bergstra et al. 2011, by Optuna; in batches with a constant liar, for students that train side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from balancer.comparison.treatments import Arm, ScorePair, Student, Tick, Trained
from balancer.sampling.policies import ConstantPolicy
from balancer.sampling.seeding import integer_seed
from balancer.sampling.weights import MAX_HARDNESS

SHARES = (0.05, 0.5)
"""Range of the grid over share and hardness."""
GRID_HARDNESS = 1.5
"""Largest hardness of the grid."""
TPE_BATCH = 5


@dataclass(frozen=True)
class Found:
    """The best of a search."""

    scores: ScorePair
    constant: ConstantPolicy
    reward: float
    trainings: int


def search(name: str, student: Student, seed: int, trials: int, tick: Tick) -> Found:
    """``constant_share``, ``constant`` or ``tpe`` with ``trials`` trainings."""
    if name == "tpe":
        return _tpe(student, seed, trials, tick)
    prior = student.counts / student.counts.sum()
    candidates = share_grid(1.0 - float(prior[0]), trials) if name == "constant_share" else constant_grid(trials)
    return _best(candidates, [_train(student, candidates, seed, tick)])


def share_grid(minority: float, trials: int) -> list[ConstantPolicy]:
    """Total shares from the prior to one half, even in their logarithm, without hardness."""
    return [ConstantPolicy(float(share), 0.0) for share in np.geomspace(min(minority, 0.5), 0.5, trials)]


def constant_grid(trials: int) -> list[ConstantPolicy]:
    """At most ``trials`` constants; of 20, five shares times four levels of hardness.

    >>> sorted({c.hardness for c in constant_grid(20)}), len(constant_grid(20))
    ([0.0, 0.5, 1.0, 1.5], 20)
    """
    levels = max(1, round(np.sqrt(0.8 * trials)))
    shares = np.geomspace(*SHARES, max(1, trials // levels))
    return [ConstantPolicy(float(share), float(level)) for level in np.linspace(0.0, GRID_HARDNESS, levels) for share in shares]


def _train(student: Student, constants: Sequence[ConstantPolicy], seed: int, tick: Tick) -> Trained:
    arms = [Arm(f"constant:share={c.share:.6g},hardness={c.hardness:.6g}" if c.share is not None else c.name, c) for c in constants]
    return student.train(arms, seed, tick)


def _best(candidates: Sequence[ConstantPolicy], batches: Sequence[Trained]) -> Found:
    """The best of ``candidates``, which were trained in ``batches`` one after another; the first of equals."""
    reward = np.concatenate([batch.reward for batch in batches])
    winner = place = int(reward.argmax())
    for batch in batches:
        if place < len(batch.reward):
            return Found(batch.scores([place])[0], candidates[winner], float(reward[winner]), len(candidates))
        place -= len(batch.reward)
    raise AssertionError("every candidate is in a batch")


def _tpe(student: Student, seed: int, trials: int, tick: Tick) -> Found:
    import optuna

    prior = student.counts / student.counts.sum()
    lowest = min(max(1.0 - float(prior[0]), 1e-4), 0.49)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        sampler = optuna.samplers.TPESampler(seed=integer_seed(seed, "tpe"), constant_liar=True, n_startup_trials=TPE_BATCH)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        candidates: list[ConstantPolicy] = []
        batches: list[Trained] = []
        while len(candidates) < trials:
            asked = [study.ask() for _ in range(min(TPE_BATCH, trials - len(candidates)))]
            constants = [_suggested(trial, lowest) for trial in asked]
            batches.append(_train(student, constants, seed, tick))
            candidates += constants
            for trial, value in zip(asked, batches[-1].reward, strict=True):
                study.tell(trial, float(value))
    finally:
        optuna.logging.set_verbosity(before)
    return _best(candidates, batches)


def _suggested(trial: Any, lowest: float) -> ConstantPolicy:
    return ConstantPolicy(trial.suggest_float("share", lowest, 0.5, log=True), trial.suggest_float("hardness", 0.0, MAX_HARDNESS))
