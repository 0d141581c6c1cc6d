"""Training and comparing in processes of their own: they outlive a page reload, a closed browser and the app itself.

Special: whether a job lives is asked of a lock that it holds on its log, not of a process number that another program may have by now. A job is stopped
by SIGTERM: what it had finished is on disk, and it can be resumed to the result it would have had.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import balancer
from balancer.errors import CorruptFileError, InputError, MissingFileError
from balancer.files import atomic_path, read_json, write_json

try:
    import fcntl
except ImportError:  # Windows: the lock is then missing, and so are jobs
    fcntl = None  # type: ignore[assignment]

Kind = Literal["train", "compare"]
JOBS = ".jobs"
UPLOADS = "uploads"
MAX_UPLOAD = 500 * 2**20
"""Bytes of an uploaded table; larger ones are named by their path."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TAIL = 16_384


@dataclass(frozen=True)
class Job:
    """A process that trains or compares, or did."""

    name: str
    kind: Kind
    out: Path
    """Folder that it writes."""
    log: Path
    pid: int
    started: datetime

    @property
    def alive(self) -> bool:
        """Whether it is at work."""
        return _locked(self.log)

    def tail(self) -> str:
        """The end of what it printed."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - _TAIL))
                return stream.read().decode("utf-8", "replace")
        except OSError:
            return ""

    @property
    def error(self) -> str | None:
        """The message it ended with, if it ended with one."""
        lines = self.tail().strip().splitlines()
        return None if self.alive or not lines or not lines[-1].startswith("error: ") else lines[-1].removeprefix("error: ")

    def stop(self) -> None:
        """End it; returns when it has ended."""
        while self.alive:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself in between
                os.killpg(self.pid, signal.SIGTERM)
            time.sleep(0.05)


def checked_name(name: str) -> str:
    """``name``, if it can be that of a folder inside the runs folder; else InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"the name {name!r} can't be a run's: give 1 to 64 letters, digits, '.', '_' or '-', the first a letter or a digit"
        )
    return name


def start(runs: Path, name: str, kind: Kind, arguments: list[str], *, resume: bool = False) -> Job:
    """Start ``balancer KIND ARGUMENTS --out RUNS/NAME``, or go on with it.

    Raises InputError where the name is none, taken, or already at work.
    """
    if fcntl is None:
        raise InputError(f"the app starts no process on this system: run balancer {kind} in a terminal")
    out = runs.resolve() / checked_name(name)
    if not resume and out.exists():
        raise InputError(f"there is a run {name!r} already: give another name")
    folder = runs.resolve() / JOBS
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    if _locked(log):
        raise InputError(f"{name!r} is at work already: wait for it or stop it")
    command = [sys.executable, "-m", "balancer", kind, *arguments, "--out", str(out), *(["--resume"] if resume else [])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(balancer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "110",
    }
    with log.open("ab" if resume else "wb") as stream:
        # The lock belongs to the open file, which the process inherits: it ends with the last one that holds it.
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    threading.Thread(target=process.wait, daemon=True).start()  # or it would stay a zombie after its end
    job = Job(name, kind, out, log, process.pid, datetime.now(UTC))
    write_json(folder / f"{name}.json", {"kind": kind, "pid": process.pid, "started": job.started.isoformat(), "command": command})
    return job


def find_jobs(runs: Path) -> list[Job]:
    """All jobs started in ``runs``, the newest first; a damaged note of one is passed over."""
    found = []
    for note in (runs.resolve() / JOBS).glob("*.json"):
        try:
            content: dict[str, Any] = read_json(note, what="it is the note of a job")
            started = datetime.fromisoformat(content["started"])
            found.append(
                Job(note.stem, content["kind"], runs.resolve() / note.stem, note.with_suffix(".log"), int(content["pid"]), started)
            )
        except (MissingFileError, CorruptFileError, KeyError, ValueError):  # removed meanwhile, or damaged
            continue
    return sorted(found, key=lambda job: job.started, reverse=True)


def keep_upload(runs: Path, name: str, content: bytes) -> Path:
    """Write an uploaded table into the runs folder; its path. InputError for another kind of file, or too large a one."""
    suffix = Path(name).suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise InputError(f"{name} is no table: give a .parquet or .csv file")
    if len(content) > MAX_UPLOAD:
        raise InputError(
            f"{name} has {len(content) / 2**20:,.0f} MB, more than {MAX_UPLOAD / 2**20:,.0f}: put it on this machine and give its path"
        )
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(name).stem)[:60].strip("_-") or "table"
    target = runs.resolve() / UPLOADS / f"{stem}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.read_bytes() != content:
        with atomic_path(target) as temporary:
            temporary.write_bytes(content)
    return target


def _locked(log: Path) -> bool:
    if fcntl is None or not log.exists():
        return False
    with log.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
