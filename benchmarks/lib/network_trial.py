"""Train one network of a detector and read its scores in several ways.

One training gives the scores of its last weights, of an average of its weights over the steps, of its last
epochs together, and of the epoch that the reward half of validation prefers. So these differ in nothing else.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.inference.detector import log_odds
from balancer.inference.scoring import score_rows
from balancer.models import Classifier, ModelConfig
from balancer.options.fit import Budget, FitOptions
from balancer.training.fitting import fit_classifier
from balancer.training.treatment import Treatment

AVERAGED_SHARE = 0.1
"""The average of weights reaches back over about this share of the steps. Chosen once, before any result."""
SNAPSHOTS = 3
"""Number of last epochs whose logits are averaged."""
READINGS = ("last", "ema", "snapshots", "best_epoch")
SPLITS = (Split.REWARD, Split.TEST)
Logits = dict[Split, NDArray[np.floating]]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Training:
    """What a training needs besides its seed."""

    dataset: Dataset
    model: ModelConfig
    treatment: Treatment
    schedule: Budget
    options: FitOptions
    optimizer: type[torch.optim.Optimizer] | None = None
    """Takes the place of AdamW."""
    start: Callable[[], Classifier] | None = None
    """Makes the model to start with; None: new weights."""
    others: dict[str, Dataset] = field(default_factory=dict)
    """Data sets by reading on which the last weights are scored too."""


class _Average:
    """Exponential average of the weights of a model, updated after every step of its optimizer."""

    def __init__(self, model: Classifier, steps: int) -> None:
        self.names = dict(model.named_parameters())
        self.mean = {name: parameter.detach().clone() for name, parameter in self.names.items()}
        self.decay, self.step = 1 - 1 / max(2.0, AVERAGED_SHARE * steps), 0

    @torch.no_grad()
    def update(self, *_: object) -> None:
        """Move the average towards the present weights; faster at the start, to forget the first ones."""
        self.step += 1
        decay = min(self.decay, self.step / (self.step + 9))
        for name, parameter in self.names.items():
            self.mean[name].lerp_(parameter, 1 - decay)


def train_and_read(training: Training, seed: int, readings: Sequence[str]) -> tuple[dict[str, Logits], float, Classifier]:
    """Train a network and compute its log-odds of the reward and test rows.

    Args:
        training: What is trained.
        seed: Random seed of weights, draws and dropout.
        readings: Some of `READINGS` and of the names in ``training.others``.

    Returns:
        Log-odds by reading and split, CPU seconds of the training and of one scoring, and the network with
        its last weights.
    """
    steps = training.schedule.epochs * training.schedule.steps_per_epoch
    averages: list[_Average] = []
    states: list[State] = []
    started = time.process_time()

    def start() -> Classifier:
        model = Classifier(training.model) if training.start is None else training.start()
        averages.append(_Average(model, steps))
        return model

    def after_epoch(epoch: int, figures: dict[str, Any]) -> None:
        del epoch, figures
        states.append({name: tensor.detach().clone() for name, tensor in averages[0].names.items()})

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        handle = register_optimizer_step_post_hook(lambda *_: averages[0].update())
        stack.callback(handle.remove)
        if training.optimizer is not None:
            stack.enter_context(patch.object(torch.optim, "AdamW", training.optimizer))
        trainer, figures = fit_classifier(
            training.dataset,
            training.model,
            training.treatment,
            training.schedule,
            training.options,
            seed=seed,
            device="cpu",
            checkpoint=Path(folder) / "checkpoint.safetensors",
            after_epoch=after_epoch,
            start=start,
        )
    model = trainer.model

    def scored(state: State) -> Logits:
        model.load_state_dict(state, strict=False)
        return scores_of(model, training.dataset)

    best = int(np.argmax([line["average_precision"] for line in figures]))
    found = {"last": scored(states[-1])}
    seconds = time.process_time() - started
    found |= {name: scores_of(model, dataset) for name, dataset in training.others.items() if name in readings}
    if "ema" in readings:
        found["ema"] = scored(averages[0].mean)
    if "best_epoch" in readings:
        found["best_epoch"] = found["last"] if best == len(states) - 1 else scored(states[best])
    if "snapshots" in readings:
        each = [*(scored(state) for state in states[-SNAPSHOTS:-1]), found["last"]]
        found["snapshots"] = {split: np.mean([logits[split] for logits in each], axis=0) for split in SPLITS}
    model.load_state_dict(states[-1], strict=False)
    return {reading: found[reading] for reading in readings}, seconds, model


def scores_of(model: Classifier, dataset: Dataset) -> Logits:
    """Log-odds of the reward and test rows by a network."""
    device = torch.device("cpu")
    return {split: log_odds(score_rows(model, dataset, dataset.rows(split), device=device)).astype(np.float32) for split in SPLITS}
