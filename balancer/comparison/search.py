"""Constants chosen on the reward half for every fold and seed: tuning instead of adapting.

Every candidate is a complete training with the budget of the other treatments, with the sampler's loss. The
candidate with the best average precision on the reward half is the result, as it was trained. The cell
records the number of trainings.

TPE: Bergstra et al. 2011, by Optuna; in batches with a constant liar, for students that train side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from balancer.comparison.treatments import ScorePair, Tick, Trained, Trainer
from balancer.sampling.policies import ConstantPolicy
from balancer.sampling.seeding import integer_seed
from balancer.sampling.weights import MAX_HARDNESS
from balancer.training.treatment import policy_treatment

SHARES = (0.05, 0.5)
"""Range of total shares of the minority in the grid over share and hardness."""
GRID_HARDNESS = 1.5
"""Largest hardness of the grid."""
TPE_BATCH = 5


@dataclass(frozen=True)
class Found:
    """The best constant of a search."""

    scores: ScorePair
    constant: ConstantPolicy
    reward: float
    trainings: int

    @property
    def share(self) -> float:
        """Total share of the minority."""
        return _share(self.constant)


def _share(constant: ConstantPolicy) -> float:
    assert isinstance(constant.share, float)  # every candidate has a total share
    return constant.share


def search(name: str, trainer: Trainer, seed: int, trials: int, tick: Tick) -> Found:
    """Run the search ``constant_share``, ``constant`` or ``tpe`` with ``trials`` trainings."""
    if name == "tpe":
        return _tpe(trainer, seed, trials, tick)
    prior = trainer.counts / trainer.counts.sum()
    candidates = share_grid(1.0 - float(prior[0]), trials) if name == "constant_share" else constant_grid(trials)
    return _best(candidates, [_train(trainer, candidates, seed, tick)])


def share_grid(minority: float, trials: int) -> list[ConstantPolicy]:
    """Constants without hardness; total shares from the prior to one half at equal ratios."""
    return [ConstantPolicy(float(share), 0.0) for share in np.geomspace(min(minority, 0.5), 0.5, trials)]


def constant_grid(trials: int) -> list[ConstantPolicy]:
    """At most ``trials`` constants; for 20, five shares times four levels of hardness.

    >>> sorted({c.hardness for c in constant_grid(20)}), len(constant_grid(20))
    ([0.0, 0.5, 1.0, 1.5], 20)
    """
    levels = max(1, round(np.sqrt(0.8 * trials)))
    shares = np.geomspace(*SHARES, max(1, trials // levels))
    return [ConstantPolicy(float(share), float(level)) for level in np.linspace(0.0, GRID_HARDNESS, levels) for share in shares]


def _train(trainer: Trainer, constants: Sequence[ConstantPolicy], seed: int, tick: Tick) -> Trained:
    return trainer.train([policy_treatment(_name(c), c) for c in constants], seed, tick)


def _name(constant: ConstantPolicy) -> str:
    importance = f",class_importance={constant.class_importance:.6g}" if constant.class_importance > 0 else ""
    return f"constant:share={_share(constant):.6g},hardness={constant.hardness:.6g}{importance}"


def _best(candidates: Sequence[ConstantPolicy], batches: Sequence[Trained]) -> Found:
    """The best of ``candidates``, the first among equals; ``batches`` are their trainings in order."""
    reward = np.concatenate([batch.reward for batch in batches])
    winner = place = int(reward.argmax())
    for batch in batches:
        if place < len(batch.reward):
            return Found(batch.scores([place])[0], candidates[winner], float(reward[winner]), len(candidates))
        place -= len(batch.reward)
    raise AssertionError("every candidate is in a batch")


def _tpe(trainer: Trainer, seed: int, trials: int, tick: Tick) -> Found:
    import optuna

    prior = trainer.counts / trainer.counts.sum()
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
            batches.append(_train(trainer, constants, seed, tick))
            candidates += constants
            for trial, value in zip(asked, batches[-1].reward, strict=True):
                study.tell(trial, float(value))
    finally:
        optuna.logging.set_verbosity(before)
    return _best(candidates, batches)


def _suggested(trial: Any, lowest: float) -> ConstantPolicy:
    share = trial.suggest_float("share", lowest, 0.5, log=True)
    hardness = trial.suggest_float("hardness", 0.0, MAX_HARDNESS)
    return ConstantPolicy(share, hardness, class_importance=trial.suggest_float("class_importance", 0.0, 1.0))
