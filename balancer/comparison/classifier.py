"""The transaction-sequence classifier as student of a comparison: the same fit as ``balancer train``, one arm after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from balancer.comparison.cells import slug
from balancer.comparison.treatments import Arm, ScorePair, Tick, Trained
from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.options.train import Budget, TrainConfig
from balancer.sampling.policies import OutsideTraining, policy_notes
from balancer.sampling.seeding import generator
from balancer.sampling.weights import Floats
from balancer.training.fitting import Pools, Scheme, baseline_scheme, fit_classifier
from balancer.training.preparation import model_config
from balancer.training.trainer import ClassifierStudent


class SequenceStudent:
    """Classifiers on one window.

    Args:
        dataset: the window.
        config: sizes, recipe, epochs and steps, as of ``balancer train``; its seed is replaced by each training's.
        folder: where checkpoints lie, so that a comparison that was stopped goes on within a training or a search; whoever keeps the result clears it.
        device: where it trains.
    """

    side_by_side = False

    def __init__(self, dataset: Dataset, config: TrainConfig, *, folder: Path, device: str = "cpu") -> None:
        self.dataset, self.config, self.folder, self.device = dataset, config, folder, device
        self.model = model_config(dataset, config)
        self._held, self._test = dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)

    @property
    def counts(self) -> Floats:
        """(K,) training rows of each class."""
        return Pools.of(self.dataset).train_counts.astype(np.float64)

    def train(self, arms: Sequence[Arm], seed: int, tick: Tick) -> Trained:
        """Train the arms one after another; see :class:`balancer.comparison.treatments.Student`."""
        students: list[ClassifierStudent] = []
        figures: list[dict[str, object]] = []
        for index, arm in enumerate(arms):
            prefix = f"{index + 1} of {len(arms)}, " if len(arms) > 1 else ""
            student, history = self._fit(arm, seed, lambda epoch, prefix=prefix: tick(f"{prefix}epoch {epoch}"))  # type: ignore[misc]
            students.append(student)
            figures.append(history[-1])

        def scores(wanted: Sequence[int]) -> list[ScorePair]:
            return [(students[index].score(self._held), students[index].score(self._test)) for index in wanted]

        shares = [np.asarray(each["share"], dtype=np.float64) for each in figures]
        return Trained(
            np.array([each["average_precision"] for each in figures], dtype=np.float64),
            np.array([1.0 - share[0] for share in shares]),
            np.array([each["hardness"] for each in figures], dtype=np.float64),
            tuple(tuple(policy_notes(arm.policy)) for arm in arms),
            scores,
        )

    def _fit(self, arm: Arm, seed: int, after_epoch: Callable[[int], None]) -> tuple[ClassifierStudent, list[dict[str, object]]]:
        config = self.config
        schedule = config.schedule()
        checkpoint = self.folder / f"{slug(arm.name)}-{seed}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutsideTraining)  # said in the cell's notes instead
            student, figures = fit_classifier(
                thinned_train(self.dataset, seed) if arm.rows == "under" else self.dataset,
                self.model,
                self._scheme(arm),
                Budget(schedule.epochs, schedule.steps_per_epoch),
                replace(config, seed=seed),
                device=self.device,
                checkpoint=checkpoint,
                after_epoch=lambda epoch, line: after_epoch(epoch),
            )
        return student, figures

    def _scheme(self, arm: Arm) -> Scheme:
        # The fixed ways go without a policy: nothing has to be scored for them after an epoch.
        if arm.name in ("none", "one_to_one", "class_weight"):
            return baseline_scheme(arm.name, self.counts)
        if arm.rows == "under":
            return Scheme(arm.name, share=baseline_scheme("one_to_one", self.counts).share)
        return Scheme(arm.name, policy=arm.policy)


def thinned_train(dataset: Dataset, seed: int) -> Dataset:
    """``dataset`` with the first class of its training rows thinned to the number of the others; what is left out stays as history."""
    train = dataset.rows(Split.TRAIN)
    common = train[dataset.store.label[train] == 0]
    kept = min(len(common), len(train) - len(common))
    split = dataset.split.copy()
    split[generator(seed, "under-sampling").permutation(common)[kept:]] = Split.GAP
    return replace(dataset, split=split)
