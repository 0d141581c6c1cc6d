"""The model in service: found by name among the run folders of one folder, swapped while requests go on.

What is special: a request holds the model that it began with, so the old one lives until its last request has ended. Which model is in service stands
in the database; every worker follows it. A name from a request is looked up in a listing and never becomes part of a path.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, insert, select

from balancer.data.schema import FieldCoder, Schema
from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.evaluation.drift import Reference
from balancer.files import read_json
from balancer.inference.decision import Decision
from balancer.inference.streaming import RowStream
from balancer.runs.results import REFERENCE_FILE, SCHEMA_FILE
from balancer.runs.trained_run import Precision, TrainedRun
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import models

FOLLOW_SECONDS = 1.0
"""How often a worker looks whether another model is in service."""
_FILES = ("model.json", "model.safetensors", "model.quantized.safetensors", "precision.json", SCHEMA_FILE, "decision.json")


@dataclass(frozen=True)
class LoadedModel:
    """A run that is ready to score."""

    name: str
    digest: str
    """SHA-256 of its files: an entity's memory belongs to one of them."""
    schema: Schema
    decision: Decision
    stream: RowStream
    folder: Path
    coder: FieldCoder = field(repr=False)
    reference: Reference | None = field(repr=False)
    """The training rows, to tell drift by; None for runs that were trained before it was written."""

    @classmethod
    def load(cls, folder: Path, name: str, precision: Precision = "full") -> LoadedModel:
        """Read a run folder; InputError as `TrainedRun.load`."""
        run = TrainedRun.load(folder, precision=precision)
        digest = hashlib.sha256(precision.encode())
        for file in (folder / name for name in _FILES):
            digest.update(file.name.encode() + (file.read_bytes() if file.is_file() else b""))
        reference = None
        if (folder / REFERENCE_FILE).is_file():
            reference = Reference.from_dict(read_json(folder / REFERENCE_FILE, what="it holds the distribution of the training rows"))
        stream = RowStream(run.model, run.device)
        return cls(name, digest.hexdigest(), run.schema, run.decision, stream, folder, FieldCoder(run.schema), reference)

    def encoded(self, numeric: NDArray[np.float32], texts: dict[str, str | None]) -> NDArray[np.float32]:
        """(C,) what the model reads: numbers with the training median where there was none, then codes."""
        schema = self.schema
        values = np.empty(len(schema.numeric_fields) + len(schema.categorical_fields), np.float32)
        values[: len(numeric)] = numeric
        for place, name in enumerate(schema.numeric_fields):
            if name in schema.fill and np.isnan(values[place]):
                values[place] = np.float32(schema.fill[name])
        for place, name in enumerate(schema.categorical_fields, len(numeric)):
            values[place] = self.coder.code(name, texts[name])
        return values


def same_rows(one: Schema, two: Schema) -> str | None:
    """What keeps a model of schema `two` from reading what was stored for `one`; None where nothing does."""
    for what in ("entity", "time", "amount", "id", "numeric", "categorical", "context", "label_delay"):
        if getattr(one.spec, what) != getattr(two.spec, what):
            return f"{what} is {getattr(two.spec, what)!r} there and {getattr(one.spec, what)!r} in service"
    return None if one.numeric_fields == two.numeric_fields else "its numeric fields are others"


class Registry:
    """The models of a worker.

    Args:
        database: where it stands which one is in service.
        run: run folder to begin with where none was ever put in service.
        folder: folder of run folders that may be put in service; None: only `run`.
        precision: full or quantized.
    """

    def __init__(self, database: Database, run: Path | None, folder: Path | None, precision: Precision = "full") -> None:
        self._database, self._run, self._folder, self._precision = database, run, folder, precision
        self._lock = threading.Lock()
        self._current: LoadedModel | None = None
        self._generation, self._looked = -1, 0.0

    def names(self) -> dict[str, Path]:
        """Run folders that can be put in service, by name."""
        found = {} if self._run is None else {self._run.resolve().name: self._run}
        if self._folder is not None:
            found |= {each.name: each for each in sorted(self._folder.iterdir()) if (each / SCHEMA_FILE).is_file()}
        return found

    def begin(self) -> None:
        """Load the model in service; where there is none yet, put the run that was given in service."""
        self.follow(at_once=True)
        if self._current is None and self._run is not None:
            self.activate(self._run.resolve().name)

    @property
    def current(self) -> LoadedModel | None:
        """The model to judge with; hold it for the length of a request."""
        return self._current

    def activate(self, name: str) -> LoadedModel:
        """Put a run in service, for all workers; the present one stays until the new one is loaded and its requests have ended.

        Raises:
            InputError: There is no such run, it can't be loaded, or it reads other columns than the one in service.
        """
        known = self.names()
        if name not in known:
            raise InputError(f"name: there is no run {name!r} to put in service; {nearest(name, known)}")
        fresh = LoadedModel.load(known[name], name, self._precision)
        with self._lock:
            if self._current is not None and (why := same_rows(self._current.schema, fresh.schema)):
                raise InputError(f"name: {name!r} can't follow {self._current.name!r}, {why}; serve it from a database of its own")

            def work(connection: Connection) -> int:
                latest = _latest(connection)
                if latest is not None and latest["digest"] == fresh.digest:
                    return int(latest["generation"])
                number = 1 if latest is None else latest["generation"] + 1
                values = {"generation": number, "name": name, "digest": fresh.digest, "activated": time.time()}
                connection.execute(insert(models).values(values))
                return int(number)

            self._generation = self._database.write(work)
            self._current = fresh
        return fresh

    def follow(self, *, at_once: bool = False) -> None:
        """Load the model that another worker has put in service, if there is one; cheap otherwise."""
        if self._run is None and self._folder is None:
            return  # balancing sessions only
        if not at_once and time.monotonic() - self._looked < FOLLOW_SECONDS:
            return
        self._looked = time.monotonic()
        latest = self._database.read(_latest)
        if latest is None or latest["generation"] == self._generation:
            return
        known = self.names()
        if latest["name"] not in known:
            raise InputError(
                f"the run in service, {latest['name']!r}, is not among those here ({', '.join(known)}): give it by --run or --models"
            )
        fresh = LoadedModel.load(known[latest["name"]], latest["name"], self._precision)
        with self._lock:
            if latest["generation"] > self._generation:
                self._current, self._generation = fresh, latest["generation"]

    def activations(self) -> list[dict[str, Any]]:
        """What was put in service, the latest first; a hundred at most."""
        chosen = select(models).order_by(models.c.generation.desc()).limit(100)
        return [dict(each) for each in self._database.read(lambda connection: connection.execute(chosen).mappings().all())]


def _latest(connection: Connection) -> dict[str, Any] | None:
    found = connection.execute(select(models).order_by(models.c.generation.desc()).limit(1)).mappings().first()
    return None if found is None else dict(found)
