"""A comparison, cell by cell: windows, then seeds, then policies; what is finished is on disk at once, what is on disk is never made again.

:func:`trained_cells` is one seed of one window and knows nothing of files; the benchmarks on arrays use it too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancer.comparison.cells import Cell, CellFolder
from balancer.comparison.classifier import SequenceStudent
from balancer.comparison.config import NOT_OF_A_CELL, SEARCHES, CompareConfig
from balancer.comparison.figures import JudgedRows
from balancer.comparison.population import PopulationStudent, PopulationTask
from balancer.comparison.search import search
from balancer.comparison.summary import document
from balancer.comparison.treatments import Arm, Student, Tick, fixed_arm
from balancer.comparison.windows import Window, WindowedTable
from balancer.data.dataset import Dataset
from balancer.devices import choose_device, torch_threads
from balancer.errors import InputError
from balancer.evaluation.baselines import fit_lightgbm
from balancer.files import write_json
from balancer.options.flags import to_dict
from balancer.options.train import TrainConfig
from balancer.policy_learning.budgets import PolicyBudget
from balancer.runs.progress import TrainingProgress
from balancer.runs.run_folder import RunFolder
from balancer.sampling.policies import Policy, load_policy
from balancer.sampling.seeding import integer_seed

RESULT_FILE = "comparison.json"
"""The document of a comparison in its folder; what --json names is a copy."""


@dataclass(frozen=True)
class Learned:
    """A policy made for the window before its students train, and the trainings that this took."""

    policy: Policy
    trainings: int


def run_comparison(config: CompareConfig, roles: Mapping[str, Any], progress: TrainingProgress) -> tuple[Path, dict[str, Any]]:
    """Compare as ``config`` says, or go on with a comparison; the folder of cells and the content of the JSON file.

    Args:
        config: what is compared.
        roles: roles of columns from flags.
        progress: where a person sees how far it is.

    Raises:
        InputError: on what a person can mend; nothing was written then, or what was written can be resumed.
    """
    config.check_policies()
    choose_device(config.device)  # an unsuitable one is reported before the folder is made
    table = WindowedTable(config.dataset, windows=config.windows, spec_file=config.spec, roles=roles, bad_rows=config.bad_rows)
    said = to_dict(config) | {name: list(value) if isinstance(value, tuple) else value for name, value in roles.items()}
    if config.resume:
        assert config.out is not None
        folder = CellFolder.resume(config.out, said, may_differ=NOT_OF_A_CELL)
    else:
        folder = CellFolder.create(config.out or _default_path(config.dataset), said)
    progress.say(f"cells in {folder.path}")
    with RunFolder(folder.path, {}).locked(), torch_threads(config.threads):
        results = _Comparison(config, table, folder, progress).run()
    content = document(results, config.reference_policy()) | {
        "student": config.student,
        "windows": [window.describe() for window in table.windows],
        "flags": said,
    }
    write_json(folder.path / RESULT_FILE, content)
    if config.json is not None:
        write_json(config.json, content)
    return folder.path, content


def trained_cells(
    student: Student,
    judged: JudgedRows,
    names: Sequence[str],
    seed: int,
    *,
    trials: int,
    tick: Tick,
    learned: Mapping[str, Learned] | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Policy and figures, one after another as they are finished, of ``names`` trained on one task with one seed.

    Args:
        student: who trains.
        judged: rows that figures are taken from.
        names: policies: of the searches, of :func:`balancer.comparison.treatments.fixed_arm`, or in ``learned``.
        seed: of everything random.
        trials: trainings of each search.
        tick: told what is going on.
        learned: policies made for this task.
    """
    learned = learned or {}
    fixed = [name for name in names if name not in SEARCHES]
    arms = [Arm(name, learned[name].policy) if name in learned else fixed_arm(name, student.counts, seed) for name in fixed]
    for batch in [arms] if student.side_by_side and arms else [[arm] for arm in arms]:
        said = batch[0].name if len(batch) == 1 else "policies"
        trained = student.train(batch, seed, lambda text, said=said: tick(f"{said}: {text}"))  # type: ignore[misc]
        for index, (arm, scores) in enumerate(zip(batch, trained.scores(range(len(batch))), strict=True)):
            cell = judged.figures(*scores) | {
                "trainings": 1 + (learned[arm.name].trainings if arm.name in learned else 0),
                "reward_average_precision": float(trained.reward[index]),
                "minority_share": float(trained.minority_share[index]),
                "hardness": float(trained.hardness[index]),
            }
            yield arm.name, cell | ({"notes": list(trained.notes[index])} if trained.notes[index] else {})
    for name in (name for name in names if name in SEARCHES):
        found = search(name, student, seed, trials, lambda text, name=name: tick(f"{name}: {text}"))  # type: ignore[misc]
        yield (
            name,
            judged.figures(*found.scores)
            | {
                "trainings": found.trainings,
                "reward_average_precision": found.reward,
                "minority_share": found.constant.share,
                "hardness": found.constant.hardness,
            },
        )


class _Comparison:
    """The cells of one comparison."""

    def __init__(self, config: CompareConfig, table: WindowedTable, folder: CellFolder, progress: TrainingProgress) -> None:
        self.config, self.table, self.folder, self.progress = config, table, folder, progress
        self.device = choose_device(config.device)
        self.done = 0
        self.work = folder.path / "work"
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.all = [Cell(name, window.index, seed) for window in table.windows for seed in self.seeds for name in config.chosen()]

    def run(self) -> list[dict[str, Any]]:
        """Make what is missing; all cells, in the order of windows, seeds, policies."""
        self.done = len(self.all) - len(self.folder.missing(self.all))
        with self.progress.stage("cells", len(self.all), self.done) as advance:
            for window in self.table.windows:
                missing = self.folder.missing([cell for cell in self.all if cell.window == window.index])
                if missing:
                    self._window(window, missing, advance)
        cells = [self.folder.read(cell) for cell in self.all]
        return [cell for cell in cells if cell is not None]

    def _window(self, window: Window, missing: list[Cell], advance: Callable[..., None]) -> None:
        place = f"window {window.index + 1}/{len(self.table.windows)}"
        self.progress.say(f"{place}: {window.rows:,} rows")
        dataset = self.table.load(window)
        self._check_unchanged(window, dataset)
        student, judged = self._student(window, dataset, {cell.policy for cell in missing})
        learned: dict[str, Learned] = {}
        for seed in self.seeds:
            names = [cell.policy for cell in missing if cell.seed == seed]

            def tick(text: str, seed: int = seed) -> None:
                advance(self.done, f"{place}, seed {seed}: {text}")

            if "ppo" in names and "ppo" not in learned:
                assert isinstance(student, PopulationStudent)
                learned["ppo"] = self._fine_tuned(student.task, window, tick)
            if student is not None:
                own = [name for name in names if name != "lightgbm"]
                for name, cell in trained_cells(student, judged, own, seed, trials=self.config.search_trials, tick=tick, learned=learned):
                    self._finish(Cell(name, window.index, seed), cell | {"fingerprint": dataset.fingerprint}, tick)
            if "lightgbm" in names:
                self._finish(Cell("lightgbm", window.index, seed), self._boosted(dataset, judged, seed, tick), tick)

    def _finish(self, cell: Cell, content: dict[str, Any], tick: Tick) -> None:
        self.folder.write(cell, content)
        shutil.rmtree(self.work, ignore_errors=True)  # checkpoints of what is finished now
        self.done += 1
        tick(f"{cell.policy} AP {content['average_precision']:.3f}")

    def _student(self, window: Window, dataset: Dataset, names: set[str]) -> tuple[PopulationStudent | SequenceStudent | None, JudgedRows]:
        config = self.config
        if names == {"lightgbm"}:
            return None, JudgedRows.of(dataset)
        if config.student == "population":
            task = PopulationTask.of(dataset, config.seed)
            student = PopulationStudent(
                task, epochs=config.epochs, steps_per_epoch=config.steps_per_epoch, batch_size=config.batch_size, device=self.device
            )
            return student, task.judged
        training = TrainConfig(
            dataset=config.dataset,
            epochs=config.epochs,
            steps_per_epoch=config.steps_per_epoch,
            batch_size=config.batch_size,
            history_length=config.history_length,
            d_model=config.d_model,
            layers=config.layers,
            threads=config.threads,
            seed=config.seed,
        )
        return SequenceStudent(dataset, training, folder=self.work / f"window-{window.index}", device=self.device), JudgedRows.of(dataset)

    def _check_unchanged(self, window: Window, dataset: Dataset) -> None:
        """Whether the cells of ``window`` that are there came from these very rows."""
        finished = (self.folder.read(cell) for cell in self.all if cell.window == window.index)
        if any(cell is not None and cell.get("fingerprint") != dataset.fingerprint for cell in finished):
            raise InputError(
                f"--dataset {self.config.dataset} has changed since the comparison in {self.folder.path} was started: start anew"
            )

    def _fine_tuned(self, task: PopulationTask, window: Window, tick: Tick) -> Learned:
        """``auto``, trained on by PPO on this window's own training and reward rows; one policy for all seeds of the window."""
        from balancer.policy_learning.training import (
            train_policy,  # Stable-Baselines3 takes a second to import, and most comparisons need none
        )

        config = self.config
        budget = PolicyBudget(
            rollouts=config.ppo_rollouts,
            epochs=config.epochs,
            steps_per_epoch=config.steps_per_epoch,
            factors=(1.0,),
            batch_size=config.batch_size,
        )
        bundle = train_policy(
            task.problem,
            budget,
            seed=integer_seed(config.seed, "fine-tuning", window.index),
            folder=self.folder.path / "policies" / f"window-{window.index}",
            start="auto",
            reward="average_precision",
            resume=True,
            device=self.device,
            progress=lambda figures: tick(f"ppo: rollout {figures['rollout']}/{figures['rollouts']}"),
        )
        trainings = budget.rollouts * budget.episodes_per_rollout * budget.num_students
        return Learned(load_policy(bundle, num_classes=task.problem.num_classes), trainings)

    def _boosted(self, dataset: Dataset, judged: JudgedRows, seed: int, tick: Tick) -> dict[str, Any]:
        boosted = fit_lightgbm(dataset, seed=seed, threads=self.config.threads, progress=lambda done, total: tick(f"lightgbm: tree {done}"))
        figures = judged.figures(boosted.threshold_score, boosted.test_score)
        return figures | {"trainings": 1, "trees": boosted.trees, "fingerprint": dataset.fingerprint}


def _default_path(dataset: Path) -> Path:
    path = RunFolder.default_path(dataset)
    return path.with_name(f"compare-{path.name}")
