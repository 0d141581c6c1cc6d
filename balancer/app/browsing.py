"""Find the runs and comparisons of a folder, in any state; this module does not use Streamlit.

What is special: a run that is damaged or was written by a later version is listed with the reason instead of
hidden, and a run in training shows its progress.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl

from balancer.comparison.summary import present_document
from balancer.errors import CorruptFileError, InputError, MissingFileError, reason_of
from balancer.files import read_json, read_meta
from balancer.inference.decision import NETWORK, STAGE2
from balancer.runs.progress import PROGRESS_FILE
from balancer.runs.run_folder import RunFolder, epochs_file
from balancer.training.treatment import BASELINES

Status = Literal["complete", "running", "stopped", "pretrained", "broken"]
REQUIRED = ("average_precision", "f1", "fpr", "recall", "precision", "threshold", "positives", "rows")
"""Metrics that a report must have to be shown."""
TREES = "trees/stages.json"
"""The file of a run that names its trees: that of `balancer.inference.tree_stages`, which loads torch."""


@dataclass(frozen=True)
class Run:
    """Summary of a run folder."""

    path: Path
    status: Status
    problem: str = ""
    """Why the run can't be shown, or how to continue it."""
    dataset: str = ""
    policy: str = ""
    created: datetime | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    """The test metrics of report.json; empty unless complete."""
    size: int = 0
    """Bytes of network and trees on disk."""
    curve: tuple[float, ...] = ()
    """Validation average precision of the network by epoch; empty without one."""
    members: dict[str, float] = field(default_factory=dict)
    """Weight of each member of the detector; empty unless complete."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def has_network(self) -> bool:
        """Whether the detector has a network."""
        return NETWORK in self.members

    @property
    def has_trees(self) -> bool:
        """Whether the detector has boosted trees."""
        return STAGE2 in self.members

    @property
    def kind(self) -> str:
        """What the detector consists of, as `--learner` names it."""
        return "hybrid" if self.has_network and self.has_trees else "trees" if self.has_trees else NETWORK


def find_runs(folder: Path) -> list[Run]:
    """List the runs in `folder`, newest first; empty if the folder does not exist."""
    found = [read_run(path) for path in folder.glob("*") if (path / "run.json").is_file() or (path / "report.json").is_file()]
    return sorted(found, key=lambda run: (run.created.timestamp() if run.created else run.path.stat().st_mtime, run.name), reverse=True)


def read_run(path: Path) -> Run:
    """Read the summary of a run; any error is in `problem`."""
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
        return Run(
            path,
            "pretrained",
            f"pretrained, a model without a head: continue with balancer train --dataset TABLE --from {shlex.quote(str(path))}",
            **known,
        )
    if not folder.complete:
        if folder.is_locked():
            return Run(path, "running", "in training", **known)
        return Run(path, "stopped", f"not finished: continue with balancer train --resume --out {shlex.quote(str(path))}", **known)
    try:
        report = read_json(path / "report.json", what="it is the report of the run")
        metrics = checked_metrics(report, path)
        decision = read_json(path / "decision.json", what="it holds threshold and calibration")
        members = decision.get("members") or {NETWORK: 1.0}
        curve = _validation_curve(epochs_file(path)) if NETWORK in members else ()
        wanted = {NETWORK: ("model.safetensors", "the weights of the model"), STAGE2: (TREES, "the trees")}
        for name, content in (*(wanted[member] for member in members if member in wanted), ("predictions.parquet", "every test row")):
            if not (path / name).is_file():
                raise MissingFileError(f"{path / name} is missing: it holds {content}; give a complete run folder")
        size = sum(file.stat().st_size for file in model_files(path))
    except InputError as error:
        return Run(path, "broken", str(error), **known)
    except OSError as error:  # e.g. no permission, or the run is being deleted
        return Run(
            path, "broken", f"a file of {path} can't be read ({reason_of(error)}): check its permissions, or train the run again", **known
        )
    return Run(path, "complete", metrics=metrics, size=size, curve=curve, members=members, **known)


def model_files(run: Path) -> list[Path]:
    """The files of the network and of the trees in a run folder."""
    return [file for file in (run / "model.safetensors", *sorted((run / TREES).parent.glob("*"))) if file.is_file()]


def _validation_curve(file: Path) -> tuple[float, ...]:
    if not file.is_file():
        raise MissingFileError(f"{file} is missing: it holds the weights by epoch; give a complete run folder")
    try:
        epochs = pl.scan_parquet(file, glob=False).filter(pl.col("model") == "run").select("average_precision").collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CorruptFileError(
            f"{file} can't be read ({reason_of(error)}): it holds the weights by epoch; it is damaged, train the run again"
        ) from error
    return tuple(epochs["average_precision"].to_list())


def checked_metrics(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the test metrics of a report.

    Raises:
        CorruptFileError: If one is missing that every page needs.
    """
    metrics = report.get("test")
    missing = [name for name in REQUIRED if not isinstance(metrics, dict) or name not in metrics]
    if missing or not isinstance(report.get("baselines"), dict):
        raise CorruptFileError(
            f"{path / 'report.json'} lacks {', '.join(missing) or 'baselines'}: it was written by another version, train the run again"
        )
    assert isinstance(metrics, dict)
    return metrics


def find_comparisons(folder: Path) -> list[Path]:
    """List the files of finished comparisons, newest first."""
    files = (path for path in folder.glob("*/comparison.json") if not path.parent.name.startswith("."))
    return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)


def read_comparison(path: Path) -> dict[str, Any]:
    """Read the document of a comparison.

    Raises:
        CorruptFileError: If it is damaged or was not written by balancer.
    """
    content = read_json(path, what="it is the result of balancer compare")
    missing = [name for name in ("results", "reference", "paired", "means", "sentence") if name not in content]
    if missing:
        raise CorruptFileError(f"{path} lacks {', '.join(missing)}: it was not written by balancer compare")
    return present_document(content)


def progress_of(path: Path) -> dict[str, Any] | None:
    """Read the progress of a run in training (`balancer.runs.progress`); None before it has begun."""
    try:
        return read_json(path / "work" / PROGRESS_FILE, what="it holds the progress of the run")
    except (MissingFileError, CorruptFileError):
        return None


def metrics_so_far(path: Path) -> pl.DataFrame:
    """Read the validation metrics of a run in training and of its baselines.

    Columns `model, epoch, ...`; the shares are lists.
    """
    lines: list[dict[str, Any]] = []
    for name in ("run", *BASELINES):
        for file in (path / "work" / f"{name}.scores.safetensors", path / "work" / f"{name}.checkpoint.safetensors"):
            try:
                lines += read_meta(file, what="it holds figures by epoch")["figures"]
                break
            except (MissingFileError, CorruptFileError, KeyError):  # not begun, or replaced while being read
                continue
    return pl.DataFrame(lines)
