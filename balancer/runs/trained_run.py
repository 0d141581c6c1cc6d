"""A finished run, loaded to score rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from balancer.data.checks import BadRows
from balancer.data.dataset import Dataset, load_dataset
from balancer.data.reading import Source
from balancer.data.schema import Schema
from balancer.devices import choose_device, torch_threads
from balancer.errors import CorruptFileError, InputError, UnsupportedError
from balancer.files import read_json
from balancer.inference.contributions import Contributions, contributions_of
from balancer.inference.decision import DECISION_FILE, NETWORK, STAGE2, Decision
from balancer.inference.detector import Detector
from balancer.inference.tree_stages import load_stages
from balancer.models import Classifier, load_classifier
from balancer.models.quantization import load_quantized_classifier
from balancer.runs.results import SCHEMA_FILE
from balancer.runs.run_folder import RunFolder, has_plan
from balancer.tables.options import ReadOptions

Precision = Literal["full", "quantized"]
PRECISIONS: tuple[str, ...] = ("auto", "full", "quantized")
"""What commands take as ``--precision``."""


def chosen_precision(folder: Path, asked: str) -> Precision:
    """What ``auto`` means for a run: the network with planned layers where the run has one.

    Args:
        folder: The run folder.
        asked: One of `PRECISIONS`.
    """
    if asked == "full":
        return "full"
    return "quantized" if asked == "quantized" or has_plan(folder) else "full"


@dataclass(frozen=True)
class TrainedRun:
    """Detector, schema and decision of a complete run."""

    folder: RunFolder
    detector: Detector
    schema: Schema
    decision: Decision
    device: torch.device

    @classmethod
    def load(cls, path: Path, *, precision: str = "full") -> TrainedRun:
        """Read a run folder.

        Args:
            path: The folder.
            precision: The ``full`` network, the ``quantized`` one, whose layers have the planned precision,
                or ``auto`` for `chosen_precision`.

        Raises:
            InputError: The run is not complete, or a file is missing, damaged or of another program; the
                message names it.
        """
        folder, precision = RunFolder.open_complete(path), chosen_precision(path, precision)
        schema, decision = read_schema(path), Decision.load(path)
        members = decision.members or {NETWORK: 1.0}
        stages = load_stages(path, schema)
        if (stages is None) != (decision.members is None):
            files = f"{path / SCHEMA_FILE} and {path / DECISION_FILE}"
            raise CorruptFileError(f"of {files} one names boosted trees and the other does not: they belong to two runs")
        _check_members(folder, decision)
        device, model = torch.device(choose_device()), None
        if NETWORK in members:
            if precision == "quantized":
                folder.refuse_other_plan()
            model = (load_classifier(path) if precision == "full" else load_quantized_classifier(path)).to(device)
            names = (schema.numeric_fields, schema.categorical_fields, schema.classes)
            if names != (model.config.numeric_fields, model.config.categorical_fields, model.config.classes):
                files = f"{path / SCHEMA_FILE} and {path / 'model.json'}"
                raise CorruptFileError(f"{files} name different fields or classes: they belong to two runs")
        elif precision == "quantized":
            raise UnsupportedError(
                f"the run in {path} has boosted trees and no network, so there is nothing quantized: leave --precision out"
            )
        folder.refuse_other_parts()
        return cls(folder, Detector(model, stages, members, len(schema.classes)), schema, decision, device)

    @property
    def model(self) -> Classifier:
        """The network of the detector.

        Raises:
            UnsupportedError: The detector is boosted trees alone.
        """
        if self.detector.model is None:
            raise UnsupportedError(
                f"the run in {self.folder.path} has boosted trees and no network: train one with balancer train --learner hybrid"
            )
        return self.detector.model

    def table(self, source: Source, *, past: Source | None = None, bad_rows: BadRows = "error", read: ReadOptions | None = None) -> Dataset:
        """Read a table to score, with all fields of the detector.

        Args:
            source: The table.
            past: Earlier rows, which serve as history and context only.
            bad_rows: What to do with rows that can't be used.
            read: How text files are read, where it differs from the table of training.

        Raises:
            InputError: The table can't be used.
        """
        schema = self.schema
        if read is not None and read.to_dict():
            merged = ReadOptions.from_dict(schema.spec.read.to_dict() | read.to_dict())
            schema = replace(schema, spec=replace(schema.spec, read=merged))
        return self.filled(load_dataset(source, schema.spec, schema=schema, past=past, bad_rows=bad_rows, left_out=()))

    def filled(self, dataset: Dataset) -> Dataset:
        """``dataset`` after its score fields were computed, in place; they are the first stage's scores."""
        if self.detector.stages is not None:
            self.detector.stages.fill(dataset)
        return dataset

    @property
    def threads(self) -> int:
        """CPU threads that torch used in training; with the same number scores are equal to the last bit."""
        return int(self.folder.content["threads"])

    def scores(self, dataset: Dataset, rows: np.ndarray, *, alike: bool = False) -> np.ndarray:
        """Raw class probabilities (n, K) of store ``rows`` (n,).

        With ``alike`` the scores of a row do not depend on the rows that are scored with it, to the last bit.
        """
        with torch_threads(self.threads):
            return self.detector.scores(dataset, rows, device=self.device, alike=alike)

    def contributions(self, dataset: Dataset, rows: np.ndarray) -> Contributions:
        """What each field contributes to the scores of store ``rows`` (n,)."""
        with torch_threads(self.threads):
            return contributions_of(self.detector, dataset, rows, device=self.device)

    def streamed_scores(self, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
        """As :meth:`scores`, one row at a time like ``balancer serve``; shows its progress on the
        terminal.
        """
        console = Console(markup=False, stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("reading rows", total=len(dataset.store))
            return self.detector.streamed_scores(dataset, rows, device=self.device, progress=lambda done: bar.update(task, completed=done))


def _check_members(folder: RunFolder, decision: Decision) -> None:
    """Check that the members of a decision are those that the run was finished with, and are there.

    Raises:
        CorruptFileError: They are others.
    """
    if decision.members is None:
        return
    file, found = folder.path / DECISION_FILE, dict(decision.members)
    has_network = (folder.path / "model.json").is_file()
    wanted = {STAGE2, *((NETWORK,) if has_network else ())}
    if not wanted <= set(found):
        raise CorruptFileError(f"{file} does not name {sorted(wanted - set(found))[0]}, which the run has: restore the file")
    if NETWORK in found and not has_network:
        raise CorruptFileError(f"{file} names a network, and {folder.path / 'model.json'} is missing: restore the file that is wrong")
    trained = folder.content.get("members")
    if trained is not None and trained != found:
        raise CorruptFileError(f"{file} weights the members otherwise than the run was finished with: restore the file")


def read_schema(folder: Path) -> Schema:
    """Read the schema of the table that the run in ``folder`` was trained on.

    Raises:
        MissingFileError: The file is missing.
        CorruptFileError: The file is damaged.
    """
    content = read_json(folder / SCHEMA_FILE, what="it holds the fields the model was trained on")
    try:
        return Schema.from_dict(content)
    except (InputError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{folder / SCHEMA_FILE} can't be used ({error}): give a run folder that balancer train wrote") from error


def training_table(folder: RunFolder, table: Path | None = None) -> Dataset:
    """The data set that a run was trained on.

    Args:
        folder: The run.
        table: Where the table is now; None looks for it (:meth:`RunFolder.find_table`).

    Raises:
        InputError: The table is missing or has changed.
    """
    config, path = folder.config(), folder.find_table(table)
    schema = read_schema(folder.path)
    dataset = load_dataset(
        path,
        schema.spec,
        bad_rows=config.bad_rows,
        like=schema,
    )
    stages = load_stages(folder.path, schema)
    if stages is not None:
        stages.fill(dataset)
    if dataset.fingerprint != folder.content["fingerprint"]:
        raise InputError(
            f"{path} is not the table that the run in {folder.path} was trained on, has changed since, or is a copy in another format: "
            "restore that table, or name it with --dataset"
        )
    return dataset
