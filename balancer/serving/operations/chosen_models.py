"""The models that a command of the service needs, from `--run` and `--models`; others may be damaged."""

from __future__ import annotations

from pathlib import Path

from balancer.errors import InputError, reason_of
from balancer.names import counted, listed
from balancer.runs.results import SCHEMA_FILE
from balancer.serving.models import model_states
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.models.run_files import run_digests
from balancer.serving.operations.retention import models_that_score
from balancer.serving.storage.database import Database


def chosen_models(
    database: Database, run: Path | None, folder: Path | None, precision: str, *, registered: bool = False
) -> tuple[list[LoadedModel], list[str]]:
    """Load the models of the runs that are named, or are in the folder that is named.

    Args:
        database: The database of the service, which says what is registered.
        run: A run folder that is named.
        folder: A folder of run folders.
        precision: The full or the quantized models.
        registered: Whether runs of the folder that were never in service, and are no candidates, are left
            out; a service that has registered none needs all of them.

    Returns:
        The models, and notes about runs that were left out.

    Raises:
        InputError: A run that is named, or one that scores in the service, can't be loaded.
    """
    models = [] if run is None else [LoadedModel.load(run, run.resolve().name, precision)]
    if folder is None:
        return models, []
    needed = {digest for _, digest in database.read(models_that_score)}
    known = needed | {each.digest for each in database.read(model_states.listed)}
    notes: list[str] = []
    others: list[str] = []
    for each in _runs(folder):
        if run is not None and each.samefile(run):
            continue
        try:
            digests = run_digests(each, precision)
            if registered and known and not any(digests.includes(digest) for digest in known):
                others.append(repr(each.name))
                continue
            models.append(LoadedModel.load(each, each.resolve().name, precision))
        except (InputError, OSError) as error:
            if isinstance(error, InputError) and any(digests.includes(digest) for digest in needed):
                raise
            notes.append(f"the run {each.name!r} was left out, because it can't be loaded: {reason_of(error)}")
    if others:
        were = "was" if len(others) == 1 else "were"
        notes.append(
            f"{counted(len(others), 'run')} of --models {were} left out, because their files are not those of a model that is registered "
            f"in the service: {listed(others)}"
        )
    return models, notes


def _runs(folder: Path) -> list[Path]:
    """The run folders of a folder, by name.

    Raises:
        InputError: It can't be read.
    """
    try:
        return [each for each in sorted(folder.iterdir()) if (each / SCHEMA_FILE).is_file()]
    except OSError as error:
        raise InputError(f"--models {folder} can't be read ({reason_of(error)}): give the one of balancer serve") from error
