"""The trainings of one fold: which of them are one task, and what a task does.

:func:`trained_cells` is one seed of one fold and uses no files; the benchmarks on arrays use it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balancer.comparison.cells import Cell, slug
from balancer.comparison.classifier import SequenceTrainer
from balancer.comparison.config import SEARCHES, CompareConfig
from balancer.comparison.figures import EvaluatedRows
from balancer.comparison.folds import FoldedTable
from balancer.comparison.population import PopulationFold, PopulationTrainer
from balancer.comparison.search import search
from balancer.comparison.treatments import Tick, Trainer, named_treatment
from balancer.data.dataset import Dataset
from balancer.devices import choose_device, random_state_kept, torch_threads
from balancer.errors import InputError
from balancer.evaluation.baselines import fit_lightgbm
from balancer.options.fit import FitOptions
from balancer.options.model import ModelOptions
from balancer.policy_learning.budgets import PolicyBudget
from balancer.sampling.policies import Policy, load_policy
from balancer.sampling.seeding import integer_seed
from balancer.training.treatment import policy_treatment

BOOSTED = "lightgbm"
LEARNED = "ppo"
"""Treatment whose policy is learned once for each fold, before it is trained."""


@dataclass(frozen=True)
class Learned:
    """A policy that was learned for one fold, and the number of trainings that this took."""

    policy: Policy
    trainings: int


@dataclass(frozen=True)
class Group:
    """Treatments that one task trains on one fold with one seed; none: it learns a policy."""

    fold: int
    seed: int
    names: tuple[str, ...] = ()
    learned: Learned | None = None
    """Policy of the treatment `LEARNED`, where it is one of them."""

    def cells(self) -> list[Cell]:
        """The cells that the task makes."""
        return [Cell(name, self.fold, self.seed) for name in self.names]

    def folder(self, work: Path) -> Path:
        """Folder of the checkpoints of the task, in the folder of those of all tasks."""
        return work / f"fold-{self.fold}" / f"{slug(self.names[0])}-{self.seed}"


def groups_of(missing: Sequence[Cell], *, side_by_side: bool) -> list[Group]:
    """Which cells are trained together; all are of one fold, in the order of seeds.

    The bits of a training may depend on those beside it, so a cluster gets the same groups as one process.

    Args:
        missing: Cells to train.
        side_by_side: Whether treatments other than searches and boosted trees are trained together.
    """
    groups: list[Group] = []
    for seed in dict.fromkeys(cell.seed for cell in missing):
        fold, names = missing[0].fold, [cell.treatment for cell in missing if cell.seed == seed]
        plain = [name for name in names if name not in (*SEARCHES, BOOSTED)]
        together = [tuple(plain)] if side_by_side and plain else [(name,) for name in plain]
        alone = [(name,) for name in names if name in SEARCHES] + [(name,) for name in names if name == BOOSTED]
        groups += [Group(fold, seed, group) for group in (*together, *alone)]
    return groups


def trained_cells(
    trainer: Trainer,
    evaluated: EvaluatedRows,
    names: Sequence[str],
    seed: int,
    *,
    trials: int,
    tick: Tick,
    learned: Mapping[str, Learned] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train treatments on one fold with one seed.

    Args:
        trainer: Trains the treatments.
        evaluated: Rows from which figures are computed.
        names: Treatments: searches, names in ``learned``, and those of
            :func:`balancer.comparison.treatments.named_treatment`.
        seed: Random seed.
        trials: Trainings of each search.
        tick: Called with a short text about the progress.
        learned: Policies that were learned for this fold.

    Yields:
        Treatment and figures, as each training is finished.
    """
    learned = learned or {}
    treatments = [
        policy_treatment(name, learned[name].policy) if name in learned else named_treatment(name, trainer.counts, seed)
        for name in names
        if name not in SEARCHES
    ]
    for batch in [treatments] if trainer.side_by_side and treatments else [[treatment] for treatment in treatments]:
        shown = batch[0].name if len(batch) == 1 else "treatments"
        trained = trainer.train(batch, seed, lambda text, shown=shown: tick(f"{shown}: {text}"))  # type: ignore[misc]
        for index, (treatment, scores) in enumerate(zip(batch, trained.scores(range(len(batch))), strict=True)):
            cell = evaluated.figures(*scores) | {
                "trainings": 1 + (learned[treatment.name].trainings if treatment.name in learned else 0),
                "reward_average_precision": float(trained.reward[index]),
                "minority_share": float(trained.minority_share[index]),
                "hardness": float(trained.hardness[index]),
            }
            yield treatment.name, cell | ({"notes": list(trained.notes[index])} if trained.notes[index] else {})
    for name in (name for name in names if name in SEARCHES):
        found = search(name, trainer, seed, trials, lambda text, name=name: tick(f"{name}: {text}"))  # type: ignore[misc]
        yield (
            name,
            evaluated.figures(*found.scores)
            | {
                "trainings": found.trainings,
                "reward_average_precision": found.reward,
                "minority_share": found.share,
                "hardness": found.constant.hardness,
            },
        )


@dataclass
class SharedComparison:
    """What all tasks of a comparison have in common; a process that does several of a fold loads it once."""

    config: CompareConfig
    table: FoldedTable
    folder: Path
    """Folder of the comparison, for checkpoints and policies that are learned; all machines should see it."""
    fingerprints: dict[int, set[str]]
    """By fold, fingerprints of the rows from which its finished cells came."""
    device: str
    _fold: _LoadedFold | None = field(default=None, repr=False)

    def fold(self, index: int) -> _LoadedFold:
        """A fold of the table; the last one is kept.

        Raises:
            InputError: Its rows are not those of the finished cells.
        """
        if self._fold is None or self._fold.index != index:
            self._fold = None  # before the next one is loaded, so that memory holds one
            dataset = self.table.load(self.table.folds[index])
            if self.fingerprints.get(index, set()) - {dataset.fingerprint}:
                raise InputError(
                    f"--dataset {self.config.dataset} has changed since the comparison in {self.folder} was started: start a new comparison"
                )
            self._fold = _LoadedFold(self, index, dataset)
        return self._fold


class _LoadedFold:
    """One fold and its trainer, which is made where a treatment other than boosted trees is trained."""

    def __init__(self, shared: SharedComparison, index: int, dataset: Dataset) -> None:
        self.shared, self.index, self.dataset = shared, index, dataset
        self._trainer: PopulationTrainer | SequenceTrainer | None = None
        self._evaluated: EvaluatedRows | None = None

    @property
    def evaluated(self) -> EvaluatedRows:
        """The rows from which figures are computed."""
        if self._evaluated is None:
            self._evaluated = EvaluatedRows.of(self.dataset)
        return self._evaluated

    def trainer(self) -> PopulationTrainer | SequenceTrainer:
        """The trainer of the fold."""
        if self._trainer is None:
            config, device = self.shared.config, self.shared.device
            if config.student == "population":
                self._trainer = PopulationTrainer(
                    PopulationFold.of(self.dataset, config.seed),
                    epochs=config.epochs,
                    steps_per_epoch=config.steps_per_epoch,
                    batch_size=config.batch_size,
                    device=device,
                )
                self._evaluated = self._trainer.fold.evaluated
            else:
                self._trainer = SequenceTrainer(
                    self.dataset,
                    ModelOptions(history_length=config.history_length, d_model=config.d_model, layers=config.layers),
                    FitOptions(epochs=config.epochs, steps_per_epoch=config.steps_per_epoch, batch_size=config.batch_size),
                    seed=config.seed,
                    folder=self.shared.folder,
                    device=device,
                )
        return self._trainer


@random_state_kept()
def do_group(shared: SharedComparison, group: Group, tick: Tick) -> Learned | list[tuple[Cell, dict[str, Any]]]:
    """Do one task of a comparison.

    Args:
        shared: What the tasks have in common.
        group: The task.
        tick: Called with a short text about the progress.

    Returns:
        The policy that was learned, or the finished cells.

    Raises:
        InputError: The table has changed, or the folder can't be written.
    """
    choose_device(shared.device)  # another machine may have no GPU
    with torch_threads(shared.config.threads):
        fold = shared.fold(group.fold)
        if not group.names:
            return _learned(shared, fold, tick)
        if group.names == (BOOSTED,):
            cells = [(BOOSTED, _boosted(shared, fold, group.seed, tick))]
        else:
            trainer = fold.trainer()
            if isinstance(trainer, SequenceTrainer):
                trainer.folder = group.folder(shared.folder / "work")
            learned = {} if group.learned is None else {LEARNED: group.learned}
            trials = shared.config.search_trials
            cells = list(trained_cells(trainer, fold.evaluated, group.names, group.seed, trials=trials, tick=tick, learned=learned))
        return [(Cell(name, group.fold, group.seed), cell | {"fingerprint": fold.dataset.fingerprint}) for name, cell in cells]


def _boosted(shared: SharedComparison, fold: _LoadedFold, seed: int, tick: Tick) -> dict[str, Any]:
    threads = shared.config.threads
    boosted = fit_lightgbm(fold.dataset, seed=seed, threads=threads, progress=lambda done, total: tick(f"lightgbm: tree {done}"))
    return fold.evaluated.figures(boosted.threshold_score, boosted.test_score) | {"trainings": 1, "trees": boosted.trees}


def _learned(shared: SharedComparison, fold: _LoadedFold, tick: Tick) -> Learned:
    """Fine-tune the policy of the package on a fold, once for all seeds.

    PPO learns on the training and reward rows. It is kept where it is better than the constant
    (:func:`balancer.policy_learning.training.train_policy`).
    """
    # Importing PPO takes a second, and most comparisons don't need it.
    from balancer.policy_learning.training import shipped_start, train_policy

    config, trainer = shared.config, fold.trainer()
    assert isinstance(trainer, PopulationTrainer)
    budget = PolicyBudget(
        rollouts=config.ppo_rollouts,
        epochs=config.epochs,
        steps_per_epoch=config.steps_per_epoch,
        factors=(1.0,),
        batch_size=config.batch_size,
    )
    bundle = train_policy(
        trainer.fold.problem,
        budget,
        seed=integer_seed(config.seed, "fine-tuning", fold.index),
        folder=shared.folder / "policies" / f"fold-{fold.index}",
        start=shipped_start(),
        reward="average_precision",
        resume=True,
        device=shared.device,
        progress=lambda figures: tick(f"ppo: rollout {figures['rollout']}/{figures['rollouts']}"),
    )
    trainings = budget.rollouts * budget.episodes_per_rollout * budget.num_students
    return Learned(load_policy(bundle, num_classes=trainer.fold.problem.num_classes), trainings)
