"""Runs and comparisons of a folder, whatever state they are in; no Streamlit here.

Special: a run that is torn, foreign or of a later version is listed with the reason instead of hidden, and a run that is being trained shows how far it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl

from balancer.errors import CorruptFileError, InputError, MissingFileError
from balancer.files import read_json, read_meta
from balancer.runs.progress import PROGRESS_FILE
from balancer.runs.run_folder import RunFolder, epochs_file
from balancer.training.fitting import BASELINES

Status = Literal["complete", "running", "stopped", "pretrained", "broken"]
WANTED = ("average_precision", "f1", "fpr", "recall", "precision", "threshold", "positives", "rows")
"""Figures that a report must have to be shown."""


@dataclass(frozen=True)
class Run:
    """A run folder as a list shows it."""

    path: Path
    status: Status
    problem: str = ""
    """Why it can't be shown, or what is left to do."""
    dataset: str = ""
    policy: str = ""
    created: datetime | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    """The test figures of report.json; empty unless complete."""
    size: int = 0
    """Bytes of the model on disk."""
    curve: tuple[float, ...] = ()
    """Validation average precision by epoch."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name


def find_runs(folder: Path) -> list[Run]:
    """All runs in ``folder``, the newest first; an empty list where there is no such folder."""
    found = [read_run(path) for path in folder.glob("*") if (path / "run.json").is_file() or (path / "report.json").is_file()]
    return sorted(found, key=lambda run: (run.created.timestamp() if run.created else run.path.stat().st_mtime, run.name), reverse=True)


def read_run(path: Path) -> Run:
    """One run; whatever is wrong with it is in ``problem``."""
    try:
        folder = RunFolder.open(path)
        config = folder.config()
        known: dict[str, Any] = {
            "dataset": str(config.dataset),
            "policy": config.policy,
            "created": datetime.fromisoformat(str(folder.content["created"])),
        }
    except (InputError, KeyError, ValueError) as error:
        return Run(path, "broken", str(error))
    if folder.pretrained:
        return Run(path, "pretrained", f"a model without a head; go on with: balancer train --dataset TABLE --from {path}", **known)
    if not folder.complete:
        if folder.is_locked():
            return Run(path, "running", "being trained now", **known)
        return Run(path, "stopped", f"not finished; go on with: balancer train --resume --out {path}", **known)
    try:
        report = read_json(path / "report.json", what="it is the report of the run")
        figures = checked_figures(report, path)
        read_json(path / "decision.json", what="it holds threshold and calibration")
        curve = _validation_curve(epochs_file(path))
        size = (path / "model.safetensors").stat().st_size
        if not (path / "predictions.parquet").is_file():
            raise MissingFileError(f"{path / 'predictions.parquet'} is missing: it holds every test row; give a complete run folder")
    except (InputError, OSError) as error:
        return Run(path, "broken", str(error), **known)
    return Run(path, "complete", figures=figures, size=size, curve=curve, **known)


def _validation_curve(file: Path) -> tuple[float, ...]:
    try:
        epochs = pl.scan_parquet(file).filter(pl.col("model") == "run").select("average_precision").collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CorruptFileError(f"{file} can't be read ({error}): it holds the weights by epoch; it is damaged or missing, train anew") from error
    return tuple(epochs["average_precision"].to_list())


def checked_figures(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """The test figures of a report; InputError where one that every page needs is missing."""
    figures = report.get("test")
    missing = [name for name in WANTED if not isinstance(figures, dict) or name not in figures]
    if missing or not isinstance(report.get("baselines"), dict):
        raise CorruptFileError(f"{path / 'report.json'} lacks {', '.join(missing) or 'baselines'}: it was written by another version; train anew")
    assert isinstance(figures, dict)
    return figures


def find_comparisons(folder: Path) -> list[Path]:
    """Files of finished comparisons, the newest first."""
    return sorted(folder.glob("*/comparison.json"), key=lambda path: path.stat().st_mtime, reverse=True)


def read_comparison(path: Path) -> dict[str, Any]:
    """The document of a comparison; InputError where it is damaged or foreign."""
    content = read_json(path, what="it is the result of balancer compare")
    missing = [name for name in ("results", "reference", "paired", "means", "sentence") if name not in content]
    if missing:
        raise CorruptFileError(f"{path} lacks {', '.join(missing)}: it was not written by balancer compare")
    return content


def progress_of(path: Path) -> dict[str, Any] | None:
    """How far a run in training is (see :class:`balancer.runs.progress.TrainingProgress`); None where it has not begun."""
    try:
        return read_json(path / "work" / PROGRESS_FILE, what="it says how far the run is")
    except (MissingFileError, CorruptFileError):
        return None


def figures_so_far(path: Path) -> pl.DataFrame:
    """Validation figures by epoch of a run in training, its own and its baselines' as far as they are: columns ``model, epoch, ...``, shares as lists."""
    lines: list[dict[str, Any]] = []
    for name in ("run", *BASELINES):
        for file in (path / "work" / f"{name}.scores.safetensors", path / "work" / f"{name}.checkpoint.safetensors"):
            try:
                lines += read_meta(file, what="it holds figures by epoch")["figures"]
                break
            except (MissingFileError, CorruptFileError, KeyError):  # not begun, or replaced while it was read
                continue
    return pl.DataFrame(lines)
