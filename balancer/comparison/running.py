"""Run a comparison cell by cell: folds, then seeds, then treatments; finished cells are never repeated.

:func:`trained_cells` is one seed of one fold and uses no files; the benchmarks on arrays use it too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from balancer.comparison.cells import RESULT_FILE, Cell, CellFolder
from balancer.comparison.classifier import SequenceTrainer
from balancer.comparison.config import NOT_OF_A_CELL, SEARCHES, CompareConfig
from balancer.comparison.figures import EvaluatedRows
from balancer.comparison.folds import Fold, FoldedTable
from balancer.comparison.population import PopulationFold, PopulationTrainer
from balancer.comparison.search import search
from balancer.comparison.summary import document
from balancer.comparison.treatments import Tick, Trainer, named_treatment
from balancer.data.dataset import Dataset
from balancer.devices import choose_device, random_state_kept, torch_threads
from balancer.errors import InputError
from balancer.evaluation.baselines import fit_lightgbm
from balancer.files import check_writable_folder, write_json
from balancer.models.attention.choice import check_variable
from balancer.names import counted
from balancer.options.data import ROLES
from balancer.options.fit import FitOptions
from balancer.options.flags import to_dict
from balancer.options.model import ModelOptions
from balancer.policy_learning.budgets import PolicyBudget
from balancer.runs.progress import PROGRESS_FILE, TrainingProgress
from balancer.runs.run_folder import RunFolder
from balancer.sampling.policies import Policy, load_policy
from balancer.sampling.seeding import integer_seed
from balancer.training.treatment import policy_treatment


@dataclass(frozen=True)
class Learned:
    """A policy that was learned for one fold, and the number of trainings that this took."""

    policy: Policy
    trainings: int


@random_state_kept()
def run_comparison(config: CompareConfig, progress: TrainingProgress) -> tuple[Path, dict[str, Any]]:
    """Run a comparison, or continue one.

    Args:
        config: What is compared.
        progress: Display of the progress.

    Returns:
        The folder of cells, and the content of the JSON file.

    Raises:
        InputError: The flags, the table or the folder can't be used. Either no file was written, or the
            comparison can be resumed.
    """
    config.check_treatments()
    # Reported before the folder is made.
    choose_device(config.device)
    check_variable()
    path = config.out or _default_path(config.dataset)
    check_writable_folder(path, "--out")
    config.check_files()
    table = FoldedTable(config.dataset, folds=config.folds, spec_file=config.spec, roles=config.role_overrides(), bad_rows=config.bad_rows)
    for note in table.notes:
        progress.say(escape(f"note: {note}"))
    flags = {name: value for name, value in to_dict(config).items() if value is not None or name not in ROLES}
    if config.resume:
        assert config.out is not None
        folder = CellFolder.resume(config.out, flags, may_differ=NOT_OF_A_CELL)
    else:
        folder = CellFolder.create(path, flags)
    progress.file = folder.path / PROGRESS_FILE
    progress.say(f"cells in {folder.path}")
    with RunFolder(folder.path, {}).locked(), torch_threads(config.threads):
        results = _Comparison(config, table, folder, progress).run()
    content = document(results, config.reference_treatment()) | {
        "student": config.student,
        "folds": [fold.describe() for fold in table.folds],
        **({"notes": table.notes} if table.notes else {}),
        "flags": flags,
    }
    write_json(folder.path / RESULT_FILE, content)
    progress.file.unlink(missing_ok=True)
    if config.json is not None:
        write_json(config.json, content)
    return folder.path, content


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


class _Comparison:
    """The cells of one comparison."""

    def __init__(self, config: CompareConfig, table: FoldedTable, folder: CellFolder, progress: TrainingProgress) -> None:
        self.config, self.table, self.folder, self.progress = config, table, folder, progress
        self.device = choose_device(config.device)
        self.done = 0
        self.work = folder.path / "work"
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.all = [Cell(name, fold.index, seed) for fold in table.folds for seed in self.seeds for name in config.chosen()]

    def run(self) -> list[dict[str, Any]]:
        """Train the missing cells; all cells, in the order of folds, seeds and treatments."""
        self.done = len(self.all) - len(self.folder.missing(self.all))
        with self.progress.stage("cells", len(self.all), self.done) as advance:
            for fold in self.table.folds:
                missing = self.folder.missing([cell for cell in self.all if cell.fold == fold.index])
                if missing:
                    self._fold(fold, missing, advance)
        cells = [self.folder.read(cell) for cell in self.all]
        return [cell for cell in cells if cell is not None]

    def _fold(self, fold: Fold, missing: list[Cell], advance: Callable[..., None]) -> None:
        place = f"fold {fold.index + 1}/{len(self.table.folds)}"
        self.progress.say(f"{place}: {counted(fold.rows, 'row')}")
        dataset = self.table.load(fold)
        self._check_unchanged(fold, dataset)
        trainer, evaluated = self._trainer(fold, dataset, {cell.treatment for cell in missing})
        learned: dict[str, Learned] = {}
        for seed in self.seeds:
            names = [cell.treatment for cell in missing if cell.seed == seed]

            def tick(text: str, seed: int = seed) -> None:
                advance(self.done, f"{place}, seed {seed}: {text}")

            if "ppo" in names and "ppo" not in learned:
                assert isinstance(trainer, PopulationTrainer)
                learned["ppo"] = self._fine_tuned(trainer.fold, fold.index, tick)
            if trainer is not None:
                trained = [name for name in names if name != "lightgbm"]
                cells = trained_cells(trainer, evaluated, trained, seed, trials=self.config.search_trials, tick=tick, learned=learned)
                for name, cell in cells:
                    self._finish(Cell(name, fold.index, seed), cell | {"fingerprint": dataset.fingerprint}, tick)
            if "lightgbm" in names:
                self._finish(Cell("lightgbm", fold.index, seed), self._boosted(dataset, evaluated, seed, tick), tick)

    def _finish(self, cell: Cell, content: dict[str, Any], tick: Tick) -> None:
        self.folder.write(cell, content)
        shutil.rmtree(self.work, ignore_errors=True)  # checkpoints of the finished cell
        self.done += 1
        tick(f"{cell.treatment} AP {content['average_precision']:.3f}")

    def _trainer(self, fold: Fold, dataset: Dataset, names: set[str]) -> tuple[PopulationTrainer | SequenceTrainer | None, EvaluatedRows]:
        config = self.config
        if names == {"lightgbm"}:
            return None, EvaluatedRows.of(dataset)
        if config.student == "population":
            encoded = PopulationFold.of(dataset, config.seed)
            trainer = PopulationTrainer(
                encoded, epochs=config.epochs, steps_per_epoch=config.steps_per_epoch, batch_size=config.batch_size, device=self.device
            )
            return trainer, encoded.evaluated
        sequence_trainer = SequenceTrainer(
            dataset,
            ModelOptions(history_length=config.history_length, d_model=config.d_model, layers=config.layers),
            FitOptions(epochs=config.epochs, steps_per_epoch=config.steps_per_epoch, batch_size=config.batch_size),
            seed=config.seed,
            folder=self.work / f"fold-{fold.index}",
            device=self.device,
        )
        return sequence_trainer, EvaluatedRows.of(dataset)

    def _check_unchanged(self, fold: Fold, dataset: Dataset) -> None:
        """Check that the finished cells of a fold came from the same rows."""
        finished = (self.folder.read(cell) for cell in self.all if cell.fold == fold.index)
        if any(cell is not None and cell.get("fingerprint") != dataset.fingerprint for cell in finished):
            raise InputError(
                f"--dataset {self.config.dataset} has changed since the comparison in {self.folder.path} was started: start a new comparison"
            )

    def _fine_tuned(self, encoded: PopulationFold, index: int, tick: Tick) -> Learned:
        """Fine-tune the policy of the package on a fold, once for all seeds.

        PPO learns on the training and reward rows. It is kept where it is better than the constant
        (:func:`balancer.policy_learning.training.train_policy`).
        """
        # Importing PPO takes a second, and most comparisons don't need it.
        from balancer.policy_learning.training import shipped_start, train_policy

        config = self.config
        budget = PolicyBudget(
            rollouts=config.ppo_rollouts,
            epochs=config.epochs,
            steps_per_epoch=config.steps_per_epoch,
            factors=(1.0,),
            batch_size=config.batch_size,
        )
        bundle = train_policy(
            encoded.problem,
            budget,
            seed=integer_seed(config.seed, "fine-tuning", index),
            folder=self.folder.path / "policies" / f"fold-{index}",
            start=shipped_start(),
            reward="average_precision",
            resume=True,
            device=self.device,
            progress=lambda figures: tick(f"ppo: rollout {figures['rollout']}/{figures['rollouts']}"),
        )
        trainings = budget.rollouts * budget.episodes_per_rollout * budget.num_students
        return Learned(load_policy(bundle, num_classes=encoded.problem.num_classes), trainings)

    def _boosted(self, dataset: Dataset, evaluated: EvaluatedRows, seed: int, tick: Tick) -> dict[str, Any]:
        boosted = fit_lightgbm(dataset, seed=seed, threads=self.config.threads, progress=lambda done, total: tick(f"lightgbm: tree {done}"))
        figures = evaluated.figures(boosted.threshold_score, boosted.test_score)
        return figures | {"trainings": 1, "trees": boosted.trees, "fingerprint": dataset.fingerprint}


def _default_path(dataset: Path) -> Path:
    path = RunFolder.default_path(dataset)
    return path.with_name(f"compare-{path.name}")
