"""Train the transaction-sequence classifier under treatments, one after another, as ``balancer train``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from balancer.comparison.cells import slug
from balancer.comparison.treatments import ScorePair, Tick, Trained
from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.options.fit import FitOptions
from balancer.options.model import ModelOptions
from balancer.runs.run_folder import make_folder
from balancer.sampling.policies import OutsideTraining, policy_notes
from balancer.sampling.weights import Floats
from balancer.training.fitting import Pools, fit_classifier
from balancer.training.preparation import model_config
from balancer.training.trainer import ClassifierTrainer
from balancer.training.treatment import Treatment


class SequenceTrainer:
    """Trains classifiers on one fold.

    Args:
        dataset: The fold.
        model: Architecture and size of the classifier.
        fit: Length and method of training.
        seed: Seed of the search for bin edges; each training has a seed of its own.
        folder: Folder of the checkpoints, with which a comparison that was stopped continues within a
            training or a search. The caller deletes it when it has stored the result.
        device: Where to train.
    """

    side_by_side = False

    def __init__(self, dataset: Dataset, model: ModelOptions, fit: FitOptions, *, seed: int, folder: Path, device: str = "cpu") -> None:
        self.dataset, self.fit, self.folder, self.device = dataset, fit, folder, device
        self.model = model_config(dataset, model, seed=seed)
        self._threshold, self._test = dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)

    @property
    def counts(self) -> Floats:
        """(K,) training rows of each class."""
        return Pools.of(self.dataset).train_counts.astype(np.float64)

    def train(self, treatments: Sequence[Treatment], seed: int, tick: Tick) -> Trained:
        """Train the treatments one after another; see :class:`balancer.comparison.treatments.Trainer`."""
        trainers: list[ClassifierTrainer] = []
        last: list[dict[str, object]] = []
        for index, treatment in enumerate(treatments):
            prefix = f"{index + 1} of {len(treatments)}, " if len(treatments) > 1 else ""
            trainer, epochs = self._fit(treatment, seed, lambda epoch, prefix=prefix: tick(f"{prefix}epoch {epoch}"))  # type: ignore[misc]
            trainers.append(trainer)
            last.append(epochs[-1])

        def scores(wanted: Sequence[int]) -> list[ScorePair]:
            return [(trainers[index].score(self._threshold), trainers[index].score(self._test)) for index in wanted]

        shares = [np.asarray(figures["share"], dtype=np.float64) for figures in last]
        return Trained(
            np.array([figures["average_precision"] for figures in last], dtype=np.float64),
            np.array([1.0 - share[0] for share in shares]),
            np.array([figures["hardness"] for figures in last], dtype=np.float64),
            tuple(tuple(policy_notes(treatment.policy)) for treatment in treatments),
            scores,
        )

    def _fit(
        self, treatment: Treatment, seed: int, after_epoch: Callable[[int], None]
    ) -> tuple[ClassifierTrainer, list[dict[str, object]]]:
        make_folder(self.folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutsideTraining)  # the cell's notes report it
            return fit_classifier(
                self.dataset,
                self.model,
                treatment,
                self.fit.schedule(),
                self.fit,
                seed=seed,
                device=self.device,
                checkpoint=self.folder / f"{slug(treatment.name)}-{seed}.safetensors",
                after_epoch=lambda epoch, figures: after_epoch(epoch),
            )
