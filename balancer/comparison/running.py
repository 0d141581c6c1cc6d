"""Run a comparison in this process or on a cluster; finished cells are never repeated."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from balancer.cluster.connection import connected
from balancer.cluster.tasks import run_tasks
from balancer.comparison.cells import RESULT_FILE, Cell, CellFolder
from balancer.comparison.config import NOT_OF_A_CELL, WHERE, CompareConfig
from balancer.comparison.fold_training import LEARNED, Group, Learned, SharedComparison, do_group, groups_of
from balancer.comparison.folds import Fold, FoldedTable
from balancer.comparison.summary import document
from balancer.devices import choose_device, random_state_kept, torch_threads
from balancer.files import check_writable_folder, write_json
from balancer.models.attention.choice import check_variable
from balancer.names import counted
from balancer.options.data import ROLES
from balancer.options.flags import to_dict
from balancer.runs.progress import PROGRESS_FILE, TrainingProgress
from balancer.runs.run_folder import RunFolder


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
    cluster = config.address()
    device = config.device if cluster is not None and config.device == "cuda" else choose_device(config.device)
    check_variable()
    path = config.out or _default_path(config.dataset)
    check_writable_folder(path, "--out")
    config.check_files()
    table = FoldedTable(config.dataset, folds=config.folds, spec_file=config.spec, roles=config.role_overrides(), bad_rows=config.bad_rows)
    for note in table.notes:
        progress.say(f"note: {note}")
    flags = {name: value for name, value in to_dict(config).items() if name not in WHERE and (value is not None or name not in ROLES)}
    with connected(cluster, config.workers) if cluster is not None else nullcontext():  # no folder is made where nobody answers
        return _compared(config, table, path, flags, progress, device)


def _compared(
    config: CompareConfig, table: FoldedTable, path: Path, flags: dict[str, Any], progress: TrainingProgress, device: str
) -> tuple[Path, dict[str, Any]]:
    """Make or open the folder, and fill it; the folder and the content of the JSON file."""
    if config.resume:
        assert config.out is not None
        folder = CellFolder.resume(config.out, flags, may_differ=NOT_OF_A_CELL)
    else:
        folder = CellFolder.create(path, flags)
    progress.file = folder.path / PROGRESS_FILE
    progress.say(f"cells in {folder.path}")
    with RunFolder(folder.path, {}).locked(), torch_threads(config.threads):
        results = _Comparison(config, table, folder, progress, device).run()
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


class _Comparison:
    """The cells of one comparison."""

    def __init__(self, config: CompareConfig, table: FoldedTable, folder: CellFolder, progress: TrainingProgress, device: str) -> None:
        self.config, self.table, self.folder, self.progress = config, table, folder, progress
        self.done = 0
        self.seeds = range(config.seed, config.seed + config.seeds)
        self.all = [Cell(name, fold.index, seed) for fold in table.folds for seed in self.seeds for name in config.chosen()]
        finished = [(cell.fold, folder.read(cell)) for cell in self.all]
        prints: dict[int, set[str]] = {}
        for fold, content in finished:
            if content is not None:
                prints.setdefault(fold, set()).add(str(content.get("fingerprint")))
        self.shared = SharedComparison(config, table, folder.path, prints, device)

    def run(self) -> list[dict[str, Any]]:
        """Train the missing cells; all cells, in the order of folds, seeds and treatments."""
        self.done = len(self.all) - len(self.folder.missing(self.all))
        cluster = self.config.address()
        with self.progress.stage("cells", len(self.all), self.done) as advance:
            for folds in [self.table.folds] if self.config.several() else [[fold] for fold in self.table.folds]:
                self._train(folds, cluster, advance)
        shutil.rmtree(self.folder.path / "work", ignore_errors=True)
        cells = [self.folder.read(cell) for cell in self.all]
        return [cell for cell in cells if cell is not None]

    def _train(self, folds: Sequence[Fold], cluster: str | None, advance: Callable[..., None]) -> None:
        """Train the missing cells of folds: last those with a policy that is learned in this comparison."""
        groups: list[Group] = []
        for fold in folds:
            missing = self.folder.missing([cell for cell in self.all if cell.fold == fold.index])
            if missing:
                self.progress.say(f"{self._place(fold.index)}: {counted(fold.rows, 'row')}")
                groups += groups_of(missing, side_by_side=self.config.student == "population")
        if self.config.several():  # a process that goes on with the seeds of a fold has read its rows already
            at_once = self.config.workers or len(folds)
            groups.sort(key=lambda group: (group.fold // at_once, group.seed, group.fold))
        learning = list(dict.fromkeys(group.fold for group in groups if LEARNED in group.names))
        first = [Group(fold, self.config.seed) for fold in learning] + [group for group in groups if LEARNED not in group.names]
        learned = self._finish(first, cluster, advance)
        second = [replace(group, learned=learned[group.fold]) for group in groups if LEARNED in group.names]
        self._finish(second, cluster, advance)

    def _finish(self, groups: Sequence[Group], cluster: str | None, advance: Callable[..., None]) -> dict[int, Learned]:
        """Do tasks and store their cells as they finish; the policies that were learned, by fold."""
        learned: dict[int, Learned] = {}

        def tell(index: int, text: str) -> None:
            group = groups[index]
            advance(self.done, f"{self._place(group.fold)}, seed {group.seed}: {text}")

        on_gpu = self.shared.device == "cuda"
        where: dict[str, Any] = {"cluster": cluster, "workers": self.config.workers}
        tasks = run_tasks(do_group, groups, shared=self.shared, **where, cpus=self.config.threads, gpus=1 if on_gpu else 0, tell=tell)
        with closing(tasks) as results:
            for index, result in results:
                if isinstance(result, Learned):
                    learned[groups[index].fold] = result
                    continue
                for cell, content in result:
                    self.folder.write(cell, content)
                    self.done += 1
                    tell(index, f"{cell.treatment} AP {content['average_precision']:.3f}")
                shutil.rmtree(groups[index].folder(self.folder.path / "work"), ignore_errors=True)  # its checkpoints
        return learned

    def _place(self, fold: int) -> str:
        return f"fold {fold + 1}/{len(self.table.folds)}"


def _default_path(dataset: Path) -> Path:
    path = RunFolder.default_path(dataset)
    return path.with_name(f"compare-{path.name}")
