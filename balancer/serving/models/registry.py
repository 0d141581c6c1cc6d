"""The models in service: run folders, found by their names and replaced while requests continue.

What is special: a request keeps the models that it started with, so an old model stays in memory until its
last request has ended. The database stores which models are in service (`model_states`), and every worker
follows it. A model is known by the digest of its files: where a folder has other files than those that were
put in service, no worker loads it. A model is loaded and tried before anything changes, beside the requests,
and once per process. A name from a request is looked up in a listing and never becomes part of a path.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.runs.results import SCHEMA_FILE
from balancer.serving.errors import ConflictError
from balancer.serving.models import model_states
from balancer.serving.models.loaded_model import LoadedModel, same_rows
from balancer.serving.models.model_states import InService, RegisteredModel, State
from balancer.serving.models.probe import what_is_wrong
from balancer.serving.models.run_files import run_digests
from balancer.serving.storage.database import Database

__all__ = ["FOLLOW_SECONDS", "LoadedModel", "Registry", "Serving", "same_rows"]

LOG = logging.getLogger("balancer.service")
FOLLOW_SECONDS = 1.0
"""Seconds between two checks for another model in service."""
RETRY_SECONDS = 10.0
"""Seconds after which a model that could not be loaded is tried again."""


@dataclass(frozen=True)
class Serving:
    """The models of a worker at one moment."""

    generation: int = -1
    """Number of the activation of the champion; -1 before the first one."""
    champion: LoadedModel | None = None
    challenger: LoadedModel | None = None
    """A model that scores every row beside the champion."""
    canary_share: float = 0.0
    """Share of the entities for which the challenger decides; 0: it decides for none."""


class Registry:
    """Loads the models in service of a worker, and changes which ones are.

    Args:
        database: Stores which models are in service.
        run: Run folder to put in service if the database names none.
        folder: Folder of run folders that may be put in service; None: only `run`.
        precision: One of `balancer.runs.trained_run.PRECISIONS`.
    """

    def __init__(self, database: Database, run: Path | None, folder: Path | None, precision: str = "auto") -> None:
        self._database, self._run, self._folder, self._precision = database, run, folder, precision
        self._changing, self._loading = threading.Lock(), threading.Lock()
        self._serving = Serving()
        self._looked, self._failed, self._failures = 0.0, 0.0, dict[str, str]()
        self.notes: list[str] = []
        """What an operator should know after `begin`; it is logged too."""

    @property
    def serving(self) -> Serving:
        """The models in service; a request keeps them until its end."""
        return self._serving

    @property
    def current(self) -> LoadedModel | None:
        """The champion; a request keeps it until its end."""
        return self._serving.champion

    @property
    def challenger(self) -> LoadedModel | None:
        """The model that scores beside the champion, if there is one."""
        return self._serving.challenger

    @property
    def canary_share(self) -> float:
        """Share of the entities for which the challenger decides."""
        return self._serving.canary_share

    @property
    def problem(self) -> str | None:
        """Why a model that the database names is not loaded here; None if all are."""
        return next(iter(self._failures.values()), None)

    def names(self) -> dict[str, Path]:
        """Return the run folders that can be put in service, by name.

        Raises:
            InputError: If the folder of runs can't be read.
        """
        found = {} if self._run is None else {self._run.resolve().name: self._run}
        if self._folder is not None:
            try:
                found |= {each.name: each for each in sorted(self._folder.iterdir()) if (each / SCHEMA_FILE).is_file()}
            except OSError as error:
                raise InputError(f"the folder of --models can't be read ({error.strerror}): restore it") from error
        return found

    def begin(self) -> None:
        """Load the models in service; if there is none, put the given run in service.

        Raises:
            InputError: If the model in service can't be loaded, is not here, or its files have changed.
        """
        wanted = self._database.read(model_states.in_service)
        given = None if self._run is None else self._run.resolve().name
        if given is None and self._folder is None:
            if wanted is not None:
                self._note(
                    f"the database names the model {wanted.name!r}, but there is no --run and no --models, so only sampling sessions are "
                    "served; restart with --models FOLDER, the folder of that run, to score"
                )
            return
        if wanted is None:
            if given is not None:
                self.activate(given)
            return
        try:
            self._adopt(wanted, refuse=True)
        except InputError as error:
            self._failed, self._failures = time.monotonic(), {wanted.name: str(error)}
            raise
        champion = self.current
        assert champion is not None
        if champion.digest != wanted.digest:  # the same files, as an earlier version or another --precision recorded them
            self._note(
                f"the files of {wanted.name!r} are recorded again, as they are read with --precision {self._precision}: an earlier version "
                "recorded them in another way, or they were last served with another precision"
            )
            self._record(champion, None)
        if given is not None and given != wanted.name:
            self._note(
                f"--run {given} is not in service, because {wanted.name!r} was put in service since; to replace it, send POST /v1/models "
                f'with {{"name": "{given}"}}'
            )

    def activate(self, name: str, *, key: str | None = None) -> LoadedModel:
        """Put a run in service for all workers, as champion.

        The present model stays in service until the new one is loaded and tried.

        Args:
            name: Name of the run, one of `names`.
            key: Id of the key that approves it; None: the command line.

        Raises:
            ConflictError: If its files are not those that were put in service under this name.
            InputError: If there is no such run, it can't be loaded or gives scores that are no numbers, or it
                reads other columns than the present model.
        """
        fresh = self._found(name)
        self._record(fresh, key)
        return fresh

    def put(self, name: str, state: State, *, share: float | None = None, key: str | None = None) -> None:
        """Give a run a state, for all workers.

        Args:
            name: Name of the run, one of `names`; one that is retired need not be there.
            state: The new state.
            share: Share of the entities for which a canary decides, above 0 and at most 1; None in other
                states.
            key: Id of the key that approves it; None: the command line.

        Raises:
            ConflictError: As of `activate` and `model_states.make_challenger`.
            InputError: As of `activate`, or if the share does not fit the state.
        """
        if state == "canary" and (share is None or not 0 < share <= 1):
            raise InputError("share: a canary decides for a share of the entities; give a number above 0 and at most 1")
        if state != "canary" and share is not None:
            raise InputError(f"share: only a canary has one, not a {state}; leave it out")
        if state == "champion":
            self.activate(name, key=key)
            return
        fresh = None if state == "retired" else self._found(name)

        def work(connection: Connection) -> InService | None:
            model_states.lock(connection)
            if fresh is None:
                model_states.retire(connection, name, key)
            else:
                _check_same_files(connection, fresh, self._precision)
                model_states.make_challenger(connection, name, fresh.digest, state, share or 0.0, key)
            return model_states.in_service(connection)

        with self._changing:
            self._adopt(self._database.write(work), fresh)

    def roll_back(self, *, key: str | None = None) -> LoadedModel:
        """Put the champion before the present one in service again.

        Args:
            key: Id of the key that approves it; None: the command line.

        Raises:
            ConflictError: If there was no other champion, or its files have changed.
            InputError: As of `activate`.
        """
        before = model_states.champion_before(self._database.read(lambda connection: model_states.activations(connection, 10_000)))
        if before is None:
            raise ConflictError("there was no other champion before this one; put a run in service by its name")
        fresh = self._found(before[0], before[1])
        self._record(fresh, key, rolled_back=True)
        return fresh

    def follow(self, *, at_once: bool = False) -> None:
        """Load the models that another worker has put in service.

        What can't be loaded is said in the log, and what is loaded stays in service.
        """
        if self._run is None and self._folder is None:
            return  # balancing sessions only
        now = time.monotonic()
        if not at_once and (now - self._looked < FOLLOW_SECONDS or (self._failures and now - self._failed < RETRY_SECONDS)):
            return
        self._looked = now
        with self._changing:  # so that what is read is not older than what is served
            self._adopt(self._database.read(model_states.in_service))

    def states(self) -> list[RegisteredModel]:
        """List the registered models, last changed first."""
        return self._database.read(model_states.listed)

    def known(self, name: str) -> tuple[str, str]:
        """Return name and digest of a registered model.

        Raises:
            InputError: If no model of the name is registered.
        """
        found = {each.name: each.digest for each in reversed(self.states())}
        if name not in found:
            raise InputError(f"there is no registered model {name!r}; {nearest(name, found)}")
        return name, found[name]

    def activations(self) -> list[dict[str, Any]]:
        """List the last hundred activations, latest first."""
        return self._database.read(model_states.activations)

    def _record(self, fresh: LoadedModel, key: str | None, *, rolled_back: bool = False) -> None:
        """Make a loaded model the champion in the database, and then here."""

        def work(connection: Connection) -> InService | None:
            model_states.lock(connection)
            _check_same_files(connection, fresh, self._precision)
            model_states.make_champion(connection, fresh.name, fresh.digest, key, rolled_back=rolled_back)
            return model_states.in_service(connection)

        with self._changing:
            self._adopt(self._database.write(work), fresh)

    def _found(self, name: str, recorded: str | None = None) -> LoadedModel:
        """A run that may be put in service, loaded and tried. Raises as `activate`."""
        known = self.names()
        if name not in known:
            raise InputError(f"name: there is no run {name!r} to put in service; {nearest(name, known)}")
        if recorded is None:
            recorded = self._database.read(lambda connection: model_states.recorded_digest(connection, name))
        fresh, current = self._loaded(known[name], name, recorded), self.current
        if current is not None and (why := same_rows(current.schema, fresh.schema)):
            raise InputError(f"name: {name!r} can't replace {current.name!r}, because {why}; serve it with another database")
        return fresh

    def _adopt(self, wanted: InService | None, fresh: LoadedModel | None = None, *, refuse: bool = False) -> None:
        """Serve what the database names.

        Args:
            wanted: What is in service.
            fresh: A model that was just loaded, which may be one of them.
            refuse: Whether a champion that can't be loaded is an error; else the log says so.
        """
        if wanted is None:
            return
        now, challenger = self._serving, wanted.challenger
        ready = [each for each in (fresh, now.champion, now.challenger) if each is not None]
        failures: dict[str, str] = {}

        def loaded(name: str, digest: str) -> LoadedModel | None:
            """The model; None if it can't be loaded."""
            found = next((each for each in ready if digest == each.digest or digest in each.others), None)
            if found is not None:
                return found if found.name == name else replace(found, name=name)
            try:
                return self._located(name, digest)
            except InputError as error:
                failures[name] = str(error)
                if refuse and digest == wanted.digest:
                    raise
                return None  # the error is logged below

        champion = now.champion if wanted.generation == now.generation else loaded(wanted.name, wanted.digest)
        second = None if challenger is None else loaded(challenger.name, challenger.digest)
        if champion is None:
            champion, generation = now.champion, now.generation
        else:
            generation = wanted.generation
        canary_share = challenger.share if second is not None and challenger is not None and challenger.state == "canary" else 0.0
        self._serving = Serving(generation, champion, second, canary_share)
        self._report(failures)

    def _note(self, text: str) -> None:
        """Log what an operator should know, once."""
        if text not in self.notes:
            self.notes.append(text)
            LOG.warning(text)

    def _report(self, failures: dict[str, str]) -> None:
        """Log what can't be loaded, once."""
        for name, text in failures.items():
            if self._failures.get(name) != text:
                LOG.error(f"the model {name!r} can't be served here, and what is loaded stays in service: {text}")
        self._failed, self._failures = time.monotonic(), failures

    def _located(self, name: str, digest: str) -> LoadedModel:
        """Load a model that the database names.

        Raises:
            InputError: It is not here, can't be loaded, or its files have changed.
        """
        known = self.names()
        if name not in known:
            here = f"only {', '.join(known)} is here" if known else "no run is here"
            raise InputError(
                f"the run in service, {name!r}, is not among the runs of --run and --models ({here}): restart with --models FOLDER, the "
                f"folder that has {name!r} in it"
            )
        return self._loaded(known[name], name, digest)

    def _loaded(self, folder: Path, name: str, recorded: str | None) -> LoadedModel:
        """Load and try a run; errors name the run, and not where it is on this machine.

        Args:
            folder: The run.
            name: Its name.
            recorded: The digest under which the name is known; None for a new name.

        Raises:
            ConflictError: It has other files than those that are known under its name.
            InputError: It can't be used.
        """
        with self._loading:
            digests = run_digests(folder, self._precision)
            if recorded is not None and not digests.includes(recorded):
                raise ConflictError(changed_files(name))
            serving = self._serving
            for each in (serving.champion, serving.challenger):
                if each is not None and each.digest == digests.digest:
                    return each if each.name == name else replace(each, name=name, folder=folder)
            try:
                fresh = LoadedModel.load(folder, name, self._precision)
            except InputError as error:
                text = str(error).replace(str(folder), name).replace(str(folder.resolve()), name)
                raise type(error)(text.replace(f"{folder.resolve().parent}/", "").replace(f"{folder.parent}/", "")) from error
            if (why := what_is_wrong(fresh)) is not None:
                raise InputError(f"the run {name!r} can't be put in service, because {why}: train it again, or restore its files")
            return fresh


def changed_files(name: str) -> str:
    """Say that a run has other files than before, and what to do."""
    return (
        f"the files of {name!r} changed since it was put in service: restore them, and copy the new run under another name, which can then "
        "be put in service"
    )


def _check_same_files(connection: Connection, fresh: LoadedModel, precision: str) -> None:
    """Check, in the transaction that changes a state, that nobody has registered other files under the name.

    Raises:
        ConflictError: Somebody has.
    """
    recorded = model_states.recorded_digest(connection, fresh.name)
    if recorded not in (None, fresh.digest) and not run_digests(fresh.folder, precision).includes(str(recorded)):
        raise ConflictError(changed_files(fresh.name))
