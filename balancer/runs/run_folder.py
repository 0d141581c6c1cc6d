"""The folder that ``balancer train`` writes. It can be read without this package, and is complete or
resumable at any time.

``run.json`` holds configuration, data fingerprint and status. ``work/`` holds the finished stages until the
run is complete. A lock prevents two processes from writing the same run.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from balancer.errors import CorruptFileError, InputError, MissingFileError, UnwritableFileError
from balancer.files import file_digest, locked, read_json, try_lock, write_json
from balancer.options.flags import flag_of, from_dict, to_dict
from balancer.options.run import folder_to_resume
from balancer.options.train import NOT_PART_OF_THE_RESULT, TrainConfig
from balancer.tables.options import NORMAL

FORMAT = 1
PRETRAINED = "pretrained"
PARTS = ("schema.json", "model.json", "trees/stages.json")
"""Files that say what a detector is: its fields, its network with the digest of the weights, and its trees
with theirs."""
PLANNED = "precision.json"
"""The precision plan of the network, with the digest of the rounded weights."""
EPOCHS_FILE = "epochs.parquet"
"""Sampling weights and validation metrics by epoch."""
LIBRARIES = ("balancer", "torch", "stable-baselines3", "gymnasium", "polars", "scikit-learn", "lightgbm", "numpy")
_TO_WRITE = "copy the run to a writable folder"


def has_plan(folder: Path) -> bool:
    """Whether a run is scored with planned precisions where nothing is said.

    Runs of versions that stored no digest of the plan are not: their report is about the full network.
    """
    with suppress(InputError):  # what is wrong with the run is said where it is read
        return PLANNED in read_json(folder / "run.json", what="it describes the run").get("parts", {})
    return False


def epochs_file(folder: Path) -> Path:
    """The table of metrics by epoch of a run; version 0.1 called it ``history.parquet``."""
    old = folder / "history.parquet"
    return old if old.is_file() and not (folder / EPOCHS_FILE).is_file() else folder / EPOCHS_FILE


class RunFolder:
    """A run on disk; use :meth:`create` or :meth:`open`.

    Args:
        path: The folder.
        content: The content of its ``run.json``.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content
        self.work = path / "work"

    @staticmethod
    def default_path(dataset: Path) -> Path:
        """``runs/NAME-DATE-TIME``, with a number appended if it exists."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        base = Path("runs") / f"{dataset.resolve().stem}-{stamp}"
        path, number = base, 1
        while path.exists():
            number += 1
            path = base.with_name(f"{base.name}-{number}")
        return path

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Check that ``path`` does not exist or is an empty folder.

        Raises:
            InputError: It holds something.
        """
        refuse_existing(path, "run.json", "run")

    @classmethod
    def create(cls, path: Path, config: TrainConfig, *, fingerprint: str, device: str, threads: int, data: dict[str, Any]) -> RunFolder:
        """Make the folder and its ``run.json`` with status ``running``.

        Args:
            path: The folder.
            config: Configuration of the run.
            fingerprint: Fingerprint of the data set.
            device: Device of the run.
            threads: Number of torch threads of the run.
            data: Description of the data, for the report.

        Raises:
            InputError: The folder is not empty or can't be made.
        """
        cls.refuse_existing(path)
        make_folder(path)
        content = {
            "format": FORMAT,
            "status": "running",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": to_dict(config),
            "fingerprint": fingerprint,
            "values": NORMAL,
            "seed": config.seed,
            "device": device,
            "threads": threads,
            "data": data,
            "table": _places(config.dataset, path),
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        }
        folder = cls(path, content)
        write_json(path / "run.json", content)
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read an existing run of any status.

        Raises:
            InputError: The folder or its ``run.json`` is missing, damaged, of another program or of a later
                version.
        """
        if not path.is_dir():
            raise MissingFileError(f"{path} is not a run folder: give the folder that balancer train wrote")
        content = read_json(path / "run.json", what="it describes the run")
        missing = [key for key in ("format", "status", "config", "fingerprint", "device", "threads") if key not in content]
        if missing:
            raise CorruptFileError(f"{path / 'run.json'} lacks {', '.join(missing)}: it was not written by balancer train")
        if content["format"] != FORMAT:
            raise CorruptFileError(
                f"{path} has run format {content['format']}, this balancer reads {FORMAT}: use the version that wrote it"
            )
        return cls(path, content)

    @classmethod
    def open_complete(cls, path: Path) -> RunFolder:
        """Read a finished run of ``balancer train``.

        Raises:
            InputError: As of :meth:`open`, or the run is not complete, or pretrained only.
        """
        folder = cls.open(path)
        if folder.pretrained:
            raise InputError(
                f"the run in {path} is pretrained only and its head is untrained: train it with balancer train --from {shlex.quote(str(path))}"
            )
        if not folder.complete:
            raise InputError(f"the run in {path} is not complete: continue it with balancer train --resume --out {shlex.quote(str(path))}")
        return folder

    @property
    def complete(self) -> bool:
        """Whether the run has finished and has all its files."""
        return bool(self.content["status"] == "complete")

    @property
    def pretrained(self) -> bool:
        """Whether this is a finished run of ``balancer pretrain``: a model without threshold and report."""
        return bool(self.content["status"] == PRETRAINED)

    @property
    def plain_values(self) -> bool:
        """Whether a version started it that compared categories and keys by their plain text.

        It also filled every missing number.
        """
        return self.content.get("values") != NORMAL

    @property
    def before_trees(self) -> bool:
        """Whether a version started it that had no boosted trees, and no fields of the known labels and the
        activity of context values.
        """
        return "learner" not in self.content["config"]

    def config(self) -> TrainConfig:
        """The configuration that the run was started with.

        Raises:
            CorruptFileError: It was written by a later version, or is damaged.
        """
        try:
            # Without boosted trees a run was a network alone, and without precision plans it had none.
            config = from_dict(TrainConfig, {"learner": "network", "precision": "full"} | self.content["config"])
        except (TypeError, KeyError) as error:
            raise CorruptFileError(f"{self.path / 'run.json'} has a configuration that this balancer can't read ({error})") from error
        assert isinstance(config, TrainConfig)
        return config

    def find_table(self, given: Path | None = None) -> Path:
        """The table that the run was trained on, where it is now.

        Tried in turn are ``given``, the absolute path of the table, its path from the run folder, so that a
        run that was copied with its table finds it, and the path as it was typed.

        Args:
            given: The value of ``--dataset``; None if it was not typed.

        Raises:
            MissingFileError: It is at none of these places.
        """
        if given is not None:
            if not given.exists():
                raise MissingFileError(f"--dataset {given} does not exist: check the path of the table")
            return given
        typed, places = self.config().dataset, self.content.get("table") or {}
        tried = [Path(places["absolute"])] if "absolute" in places else []
        tried += [self.path / places["relative"]] if "relative" in places else []
        found = next((place for place in [*tried, typed] if place.exists()), None)
        if found is None:
            raise MissingFileError(f"{typed} is not here: the run in {self.path} was trained on it; name the table with --dataset")
        return typed if typed.exists() and typed.samefile(found) else found

    def refuse_other_flags(self, given: dict[str, Any]) -> None:
        """Check that the flags agree with those the run was started with.

        Args:
            given: Values that were typed, by field name.

        Raises:
            InputError: A flag that changes the result differs.
        """
        saved = self.config()
        for name, value in given.items():
            if name in NOT_PART_OF_THE_RESULT or name == "dataset":  # the table may have moved; its fingerprint is compared
                continue
            before = getattr(saved, name)
            same = Path(value).resolve() == Path(before).resolve() if isinstance(value, Path) and before is not None else value == before
            if not same:
                flag = flag_of(name)
                raise InputError(
                    f"{flag} {value} differs from the run in {self.path}, started with {before}: leave {flag} out to resume it"
                )

    def finish(self, status: str = "complete", *, members: Mapping[str, float] | None = None) -> None:
        """Set the status to complete (or pretrained) and remove the intermediate files.

        The digests of `PARTS` are stored, so that files of another run are found out
        (:meth:`refuse_other_parts`).

        Args:
            status: What the run is now.
            members: Weight of each member of the detector; None for a network alone.
        """
        parts = {name: file_digest(self.path / name) for name in (*PARTS, PLANNED) if (self.path / name).is_file()}
        self.content = self.content | {"status": status, "parts": parts}
        if members is not None:
            self.content["members"] = dict(members)
        write_json(self.path / "run.json", self.content)
        shutil.rmtree(self.work, ignore_errors=True)

    def record_plan(self) -> None:
        """Store the digest of a precision plan that was written after the run had finished."""
        self.content["parts"] = self.content.get("parts", {}) | {PLANNED: file_digest(self.path / PLANNED)}
        write_json(self.path / "run.json", self.content)

    def refuse_other_plan(self) -> None:
        """Check that the run has a precision plan of its own. Plans without a recorded digest are accepted.

        Raises:
            MissingFileError: The run was trained without a plan.
            CorruptFileError: The plan is missing, of another run, or was edited.
        """
        digest, file = (self.content.get("parts") or {}).get(PLANNED), self.path / PLANNED
        if digest is None and not file.is_file():
            raise MissingFileError(
                f"the run in {self.path} has no {PLANNED}: run balancer quantize {shlex.quote(str(self.path))}, or leave --precision quantized out"
            )
        if digest is not None and (not file.is_file() or file_digest(file) != digest):
            raise CorruptFileError(
                f"{file} is not the plan of this run: restore it, or run balancer quantize {shlex.quote(str(self.path))} again"
            )

    def refuse_other_parts(self) -> None:
        """Check that schema, network and trees are those that this run was finished with.

        Runs of versions that stored no digests are accepted.

        Raises:
            CorruptFileError: A file is of another run, or was edited.
        """
        for name, digest in (self.content.get("parts") or {}).items():
            file = self.path / name
            if name in PARTS and (not file.is_file() or file_digest(file) != digest):
                raise CorruptFileError(
                    f"{file} is not the file that the run was finished with: it is of another run or was edited; restore it, or train "
                    "the run again"
                )

    def is_locked(self) -> bool:
        """Whether another process is writing the run now."""
        try:
            with try_lock(self.path, _TO_WRITE) as held:
                return not held
        except UnwritableFileError:  # where nobody can write, nobody is writing
            return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder until the block ends; the lock also ends with the process.

        Raises:
            InputError: Another process has locked it.
        """
        with locked(self.path, _TO_WRITE):
            yield


def refuse_existing(path: Path, file: str, kind: str) -> None:
    """Check that ``path``, the value of ``--out``, does not exist or is an empty folder.

    Args:
        path: The folder to write.
        file: File by which a folder that can be resumed is recognized.
        kind: What such a folder holds, for the message.

    Raises:
        InputError: It holds something.
    """
    # Hidden files do not count: a process that was killed at its start may have left a temporary one.
    if path.exists() and (not path.is_dir() or any(not entry.name.startswith(".") for entry in path.iterdir())):
        hint = f"add --resume to continue that {kind}, or " if (path / file).is_file() else ""
        raise InputError(f"--out {path} exists and is not empty: {hint}name another folder")


def make_folder(path: Path) -> None:
    """Make the folder of ``--out`` and its parents.

    Raises:
        UnwritableFileError: It can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableFileError(f"--out {path} can't be made: {error.strerror or error}; name another folder") from error


def with_saved_dataset(given: dict[str, Any]) -> dict[str, Any]:
    """The flags of a command with ``--resume``; the data set is added from the run if it was not typed.

    Args:
        given: Values that were typed, by field name.

    Raises:
        InputError: ``--out`` is missing, or does not name a run.
    """
    folder = RunFolder.open(folder_to_resume(given.get("out")))
    return given | {"dataset": folder.find_table(given.get("dataset"))}


def _places(table: Path, folder: Path) -> dict[str, str]:
    """The absolute path of a table, and its path from a run folder, which has none on another drive."""
    absolute = table.resolve()
    places = {"absolute": str(absolute)}
    with suppress(ValueError):
        places["relative"] = os.path.relpath(absolute, folder.resolve())
    return places


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout that is not installed has no metadata
        return "checkout"
