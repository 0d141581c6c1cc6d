"""A finished run, loaded to score rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.schema import Schema
from balancer.devices import choose_device, torch_threads
from balancer.errors import CorruptFileError, InputError, MissingFileError
from balancer.files import read_json
from balancer.inference.decision import Decision
from balancer.inference.scoring import score_rows
from balancer.inference.streaming import score_streaming
from balancer.models import Classifier, load_classifier
from balancer.models.quantization import load_quantized_classifier
from balancer.runs.results import SCHEMA_FILE
from balancer.runs.run_folder import RunFolder

Precision = Literal["full", "quantized"]


@dataclass(frozen=True)
class TrainedRun:
    """Model, schema and decision of a complete run."""

    folder: RunFolder
    model: Classifier
    schema: Schema
    decision: Decision
    device: torch.device

    @classmethod
    def load(cls, path: Path, *, precision: Precision = "full") -> TrainedRun:
        """Read a run folder.

        Args:
            path: The folder.
            precision: The full model, or the one written by ``balancer quantize``.

        Raises:
            InputError: The run is not complete, or a file is missing, damaged or of another program; the
                message names it.
        """
        folder = RunFolder.open(path)
        if folder.pretrained:
            raise InputError(f"the run in {path} is pretrained only and its head is untrained: train it with balancer train --from {path}")
        if not folder.complete:
            raise InputError(f"the run in {path} is not complete: continue it with balancer train --resume --out {path}")
        schema = read_schema(path)
        model = load_classifier(path) if precision == "full" else load_quantized_classifier(path)
        names = (schema.numeric_fields, schema.categorical_fields, schema.classes)
        if names != (model.config.numeric_fields, model.config.categorical_fields, model.config.classes):
            files = f"{path / SCHEMA_FILE} and {path / 'model.json'}"
            raise CorruptFileError(f"{files} name different fields or classes: they belong to two runs")
        device = torch.device(choose_device())
        return cls(folder, model.to(device), schema, Decision.load(path), device)

    @property
    def threads(self) -> int:
        """CPU threads that torch used in training; with the same number scores are equal to the last bit."""
        return int(self.folder.content["threads"])

    def scores(self, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
        """Raw class probabilities (n, K) of store ``rows`` (n,)."""
        with torch_threads(self.threads):
            return score_rows(self.model, dataset, rows, device=self.device)

    def streamed_scores(self, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
        """As :meth:`scores`, one row at a time like ``balancer serve``; shows its progress on the
        terminal.
        """
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("reading rows", total=len(dataset.store))
            return score_streaming(self.model, dataset, rows, device=self.device, progress=lambda done: bar.update(task, completed=done))


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


def training_table(folder: RunFolder) -> Dataset:
    """The data set that a run was trained on.

    Raises:
        InputError: The table is missing or has changed.
    """
    config = folder.config()
    if not config.dataset.exists():
        raise MissingFileError(
            f"{config.dataset} is not here: the run in {folder.path} was trained on it; call this command where that path leads to it"
        )
    schema = read_schema(folder.path)
    dataset = load_dataset(
        config.dataset, schema.spec, bad_rows=config.bad_rows, hash_buckets=schema.hash_buckets, vocabularies=schema.vocabularies
    )
    if dataset.fingerprint != folder.content["fingerprint"]:
        raise InputError(
            f"{config.dataset} has changed since the run in {folder.path} was trained: restore the table that it was trained on"
        )
    return dataset
