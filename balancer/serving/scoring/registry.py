"""The model in service: a run folder, found by its name and replaced while requests continue.

What is special: a request keeps the model that it started with, so the old model stays in memory until its
last request has ended. The database stores which model is in service, and every worker follows it. A name
from a request is looked up in a listing and never becomes part of a path.
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
from balancer.inference.detector import Detector
from balancer.inference.streaming import RowState, RowStream
from balancer.inference.tree_stages import TREES_FOLDER, digest_of
from balancer.runs.results import REFERENCE_FILE, SCHEMA_FILE
from balancer.runs.trained_run import Precision, TrainedRun
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import models

FOLLOW_SECONDS = 1.0
"""Seconds between two checks for another model in service."""
_FILES = ("model.json", "model.safetensors", "model.quantized.safetensors", "precision.json", SCHEMA_FILE, "decision.json")


@dataclass(frozen=True)
class LoadedModel:
    """A run that is loaded for scoring."""

    name: str
    digest: str
    """SHA-256 of its files. A stored state belongs to one digest."""
    schema: Schema
    base: Schema
    """The schema without score fields; stored rows have these fields."""
    decision: Decision
    detector: Detector
    first_stage: str | None
    """Digest of all that the score fields depend on, to which stored scores belong; None without trees."""
    stream: RowStream | None
    """Reads the rows of an entity one after another; None without a network."""
    folder: Path
    coder: FieldCoder = field(repr=False)
    reference: Reference | None = field(repr=False)
    """The distribution of the training rows, for drift; None for runs of older versions."""

    @classmethod
    def load(cls, folder: Path, name: str, precision: Precision = "full") -> LoadedModel:
        """Read a run folder.

        Raises:
            InputError: As `TrainedRun.load`; or if the run was trained without a time.
        """
        run = TrainedRun.load(folder, precision=precision)
        if run.schema.spec.time is None:
            raise InputError(f"{folder} was trained without a time (--time none), and the service needs one: serve a run with --time")
        digest = hashlib.sha256(precision.encode())
        for file in (*(folder / name for name in _FILES), *sorted((folder / TREES_FOLDER).glob("*"))):
            digest.update(file.name.encode() + (file.read_bytes() if file.is_file() else b""))
        reference = None
        if (folder / REFERENCE_FILE).is_file():
            reference = Reference.from_dict(read_json(folder / REFERENCE_FILE, what="it holds the distribution of the training rows"))
        detector = run.detector
        return cls(
            name=name,
            digest=digest.hexdigest(),
            schema=run.schema,
            base=run.schema.without_score_fields(),
            decision=run.decision,
            detector=detector,
            first_stage=_first_stage(detector, run.schema),
            stream=RowStream(detector.model, run.device) if detector.model is not None and detector.uses_network else None,
            folder=folder,
            coder=FieldCoder(run.schema),
            reference=reference,
        )

    def encoded(self, numeric: NDArray[np.float32], texts: dict[str, str | None]) -> NDArray[np.float32]:
        """Compute the input (C,) of the model for one row, without score fields.

        Args:
            numeric: (F,) numeric fields; NaN is kept where the training rows had it too, and is replaced by
                their median in other fields.
            texts: Values of the categorical and context columns.
        """
        schema = self.base
        values = np.empty(len(schema.numeric_fields) + len(schema.categorical_fields), np.float32)
        values[: len(numeric)] = numeric
        for place, name in enumerate(schema.numeric_fields):
            if name in schema.fill and name not in schema.missing and np.isnan(values[place]):
                values[place] = np.float32(schema.fill[name])
        for place, (name, column) in enumerate(schema.categorical_columns.items(), len(numeric)):
            values[place] = self.coder.code(name, texts[column])
        return values

    def step(self, values: NDArray[np.float32], state: RowState | None) -> tuple[NDArray[np.floating], RowState | None]:
        """Score the next row of an entity.

        Args:
            values: (C,) all fields of the row.
            state: State of the network before the row, which must not be used again; None without a network.

        Returns:
            Class probabilities (1, K), and the state after the row.
        """
        if self.stream is None or state is None:
            return self.detector.combine(None, values[None]), None
        network, after = self.stream.advance(values, state)
        return self.detector.combine(network[None], values[None]), after


_ROLES = {
    "entity": "entity is",
    "time": "time is",
    "amount": "amount is",
    "id": "id is",
    "label_delay": "label delay in seconds is",
    **{role: f"{role} columns are" for role in ("numeric", "categorical", "context")},
}


def _said(role: Any) -> str:
    """Columns with a role, or a delay, in words."""
    if role is None or role == ():
        return "none"
    return ", ".join(role) if isinstance(role, tuple) else f"{role:g}" if isinstance(role, float) else str(role)


def same_rows(one: Schema, two: Schema) -> str | None:
    """Return why a model with schema `two` can't read rows that were stored for `one`; None if it can."""
    for role in ("entity", "time", "amount", "id", "numeric", "categorical", "context", "label_delay"):
        if getattr(one.spec, role) != getattr(two.spec, role):
            return f"its {_ROLES.get(role, role)} {_said(getattr(two.spec, role))}, not {_said(getattr(one.spec, role))}"
    if (one.values, one.joined) != (two.values, two.joined):
        return "it was trained by another version of balancer, which compares categories and keys in another way"
    here, there = (each.without_score_fields().numeric_fields for each in (one, two))
    if here == there:
        return None
    # With the same roles of the columns, only the version decides which fields there are.
    other = next((name for name in (*here, *there) if (name in here) != (name in there)), None)
    example = "" if other is None else f", for example {'without' if other in here else 'with'} {other!r}"
    return f"it was trained by another version of balancer and has other fields{example}"


def _first_stage(detector: Detector, schema: Schema) -> str | None:
    """Digest of the first stage, its fields and how they are encoded; None without trees."""
    if detector.stages is None:
        return None
    trees = [trees.digest for trees in detector.stages.folds]
    encoding = (digest_of(schema), sorted(schema.fill.items()), *([schema.missing] if schema.missing else []))
    return hashlib.sha256(repr((trees, detector.stages.train_end, *encoding)).encode()).hexdigest()


class Registry:
    """Loads the model in service of a worker, and puts models in service.

    Args:
        database: Stores which model is in service.
        run: Run folder to put in service if the database names none.
        folder: Folder of run folders that may be put in service; None: only `run`.
        precision: The full or the quantized model.
    """

    def __init__(self, database: Database, run: Path | None, folder: Path | None, precision: Precision = "full") -> None:
        self._database, self._run, self._folder, self._precision = database, run, folder, precision
        self._lock = threading.Lock()
        self._current: LoadedModel | None = None
        self._generation, self._looked = -1, 0.0

    def names(self) -> dict[str, Path]:
        """Return the run folders that can be put in service, by name."""
        found = {} if self._run is None else {self._run.resolve().name: self._run}
        if self._folder is not None:
            found |= {each.name: each for each in sorted(self._folder.iterdir()) if (each / SCHEMA_FILE).is_file()}
        return found

    def begin(self) -> None:
        """Load the model in service; if there is none, put the given run in service."""
        self.follow(at_once=True)
        if self._current is None and self._run is not None:
            self.activate(self._run.resolve().name)

    @property
    def current(self) -> LoadedModel | None:
        """The model in service; a request keeps it until its end."""
        return self._current

    def activate(self, name: str) -> LoadedModel:
        """Put a run in service for all workers.

        The current model stays in service until the new one is loaded.

        Raises:
            InputError: If there is no such run, it can't be loaded, or it reads other columns than the
                current model.
        """
        known = self.names()
        if name not in known:
            raise InputError(f"name: there is no run {name!r} to put in service; {nearest(name, known)}")
        fresh = self._loaded(known[name], name)
        with self._lock:
            if self._current is not None and (why := same_rows(self._current.schema, fresh.schema)):
                raise InputError(f"name: {name!r} can't replace {self._current.name!r}, because {why}; serve it with another database")

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
        """Load the model that another worker has put in service, if there is one."""
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
                f"the run in service, {latest['name']!r}, is not among the runs here ({', '.join(known)}): give it with --run or --models"
            )
        fresh = self._loaded(known[latest["name"]], latest["name"])
        with self._lock:
            if latest["generation"] > self._generation:
                self._current, self._generation = fresh, latest["generation"]

    def _loaded(self, folder: Path, name: str) -> LoadedModel:
        """Load a run; a client reads the name of the run in an error, and not where it is on this machine.

        Raises:
            InputError: It can't be used.
        """
        try:
            return LoadedModel.load(folder, name, self._precision)
        except InputError as error:
            text = str(error).replace(str(folder), name).replace(str(folder.resolve()), name)
            raise type(error)(text.replace(f"{folder.resolve().parent}/", "").replace(f"{folder.parent}/", "")) from error

    def activations(self) -> list[dict[str, Any]]:
        """List the last hundred activations, latest first."""
        chosen = select(models).order_by(models.c.generation.desc()).limit(100)
        return [dict(each) for each in self._database.read(lambda connection: connection.execute(chosen).mappings().all())]


def _latest(connection: Connection) -> dict[str, Any] | None:
    found = connection.execute(select(models).order_by(models.c.generation.desc()).limit(1)).mappings().first()
    return None if found is None else dict(found)
