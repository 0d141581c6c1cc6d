"""Train and compare in separate processes, which continue without the page and without the app.

What is special: a running job holds a lock on its log file, so the app does not depend on process numbers,
which the system may reuse. A job is stopped by SIGTERM: its finished work is on disk, and it can be resumed
with the same result.
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
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import balancer
from balancer.errors import CorruptFileError, InputError, MissingFileError
from balancer.files import atomic_path, read_json, write_json

try:
    import fcntl
except ImportError:  # Windows has no such lock, so there are no jobs
    fcntl = None  # type: ignore[assignment]

Kind = Literal["train", "compare"]
JOBS = ".jobs"
UPLOADS = "uploads"
ENDINGS = (".parquet", ".csv", ".tsv", ".txt", ".jsonl", ".ndjson")
PACKED = (".gz", ".zst")
"""Endings of tables that can be uploaded, and of compressed ones."""
MAX_UPLOAD = 500 * 2**20
"""Most bytes of an uploaded table; give the path of a larger one."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TAIL = 16_384
"""Bytes of the log that are read from its end."""


@dataclass(frozen=True)
class Job:
    """A process that trains or compares, running or ended."""

    name: str
    kind: Kind
    out: Path
    """Output folder."""
    log: Path
    pid: int
    started: datetime
    arguments: tuple[str, ...] = ()
    """Arguments of the command, without the output folder."""
    stopped: bool = False
    """Whether it was stopped on the page."""

    @property
    def alive(self) -> bool:
        """Whether the job is running."""
        return _locked(self.log)

    def tail(self) -> str:
        """Return the end of the log."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - _TAIL))
                return stream.read().decode("utf-8", "replace")
        except OSError:
            return ""

    @property
    def error(self) -> str | None:
        """The error message that the job ended with, or None."""
        lines = self.tail().strip().splitlines()
        return None if self.alive or not lines or not lines[-1].startswith("error: ") else lines[-1].removeprefix("error: ")

    def stop(self) -> None:
        """Stop the job and wait until it has ended."""
        was_alive = False
        while self.alive:
            was_alive = True
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.killpg(self.pid, signal.SIGTERM)
            time.sleep(0.05)
        if was_alive:
            _write_note(replace(self, stopped=True))


def checked_name(name: str) -> str:
    """Check the name of a run.

    Raises:
        InputError: If it can't be the name of a folder inside the runs folder.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"the name {name!r} can't be used for a run: give 1 to 64 letters, digits, '.', '_' or '-' that begin with a letter or digit"
        )
    return name


def start(runs: Path, name: str, kind: Kind, arguments: list[str], *, resume: bool = False) -> Job:
    """Start `balancer KIND ARGUMENTS --out RUNS/NAME`, or resume it.

    Raises:
        InputError: If the name is invalid or exists already, or if the job is running.
    """
    if fcntl is None:
        raise InputError(f"the app can't start processes on this system: run balancer {kind} in a terminal")
    out = runs.resolve() / checked_name(name)
    if not resume and out.exists():
        raise InputError(f"there is already a run {name!r}: give another name")
    folder = runs.resolve() / JOBS
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    if _locked(log):
        raise InputError(f"{name!r} is already running: wait for it or stop it")
    command = [sys.executable, "-m", "balancer", kind, *arguments, "--out", str(out), *(["--resume"] if resume else [])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(balancer.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "110",
    }
    with log.open("ab" if resume else "wb") as stream:
        # The process inherits the open file and with it the lock, which ends when the last process closes the
        # file.
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
    threading.Thread(target=process.wait, daemon=True).start()  # otherwise it would stay a zombie process after its end
    before = next((job.arguments for job in find_jobs(runs) if job.name == name and job.kind == kind), ()) if resume else ()
    job = Job(name, kind, out, log, process.pid, datetime.now(UTC), tuple(arguments) or before)
    _write_note(job)
    return job


def _write_note(job: Job) -> None:
    """Write the file that describes a job to later sessions."""
    content = {"kind": job.kind, "pid": job.pid, "started": job.started.isoformat(), "arguments": job.arguments, "stopped": job.stopped}
    write_json(job.log.with_suffix(".json"), content)


def find_jobs(runs: Path) -> list[Job]:
    """List the jobs that were started in `runs`, newest first; damaged job files are left out."""
    found = []
    for file in (runs.resolve() / JOBS).glob("*.json"):
        try:
            content: dict[str, Any] = read_json(file, what="it describes a job")
            started = datetime.fromisoformat(content["started"])
            out, log, pid = runs.resolve() / file.stem, file.with_suffix(".log"), int(content["pid"])
            arguments = tuple(str(each) for each in content.get("arguments", ()))
            found.append(Job(file.stem, content["kind"], out, log, pid, started, arguments, bool(content.get("stopped"))))
        except (MissingFileError, CorruptFileError, KeyError, ValueError, TypeError):  # removed meanwhile, or damaged
            continue
    return sorted(found, key=lambda job: job.started, reverse=True)


def forget(job: Job) -> None:
    """Remove the notes on a job that has ended from the pages; its run stays."""
    if not job.alive:
        job.log.with_suffix(".json").unlink(missing_ok=True)
        job.log.unlink(missing_ok=True)


def keep_upload(runs: Path, name: str, content: bytes) -> Path:
    """Write an uploaded table into the runs folder.

    A file of the same name and other content gets a number: a run may have been trained on the first one.

    Returns:
        The path of the table.

    Raises:
        InputError: If the file is of another kind, or too large.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in (*ENDINGS, *PACKED):
        raise InputError(f"{name} is not a table: give a file that ends in {', '.join((*ENDINGS, *PACKED))}")
    if len(content) > MAX_UPLOAD:
        raise InputError(
            f"{name} has {len(content) / 2**20:,.0f} MB, more than {MAX_UPLOAD / 2**20:,.0f}: copy it to this machine and give its path"
        )
    inner = Path(Path(name).stem).suffix.lower()
    suffix = inner + suffix if suffix in PACKED and inner in ENDINGS else suffix
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(name).name[: -len(suffix)])[:60].strip("_-") or "table"
    target, number = runs.resolve() / UPLOADS / f"{stem}{suffix}", 1
    target.parent.mkdir(parents=True, exist_ok=True)
    while target.exists():
        if target.stat().st_size == len(content) and target.read_bytes() == content:
            return target
        number += 1
        target = target.with_name(f"{stem}-{number}{suffix}")
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    return target


def keep_shares(runs: Path, shares: tuple[float, float, float]) -> Path:
    """Write the shares of training, validation and test as a spec file, which `balancer train --spec` reads.

    Equal shares have one file, so that nothing is overwritten that a run has been started with.
    """
    file = runs.resolve() / JOBS / f"split-{'-'.join(f'{100 * share:.0f}' for share in shares)}.toml"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{name} = {share:g}" for name, share in zip(("train", "validation", "test"), shares, strict=True)]
        with atomic_path(file) as temporary:
            temporary.write_text("\n".join(["[split]", *lines, ""]), encoding="utf-8")
    return file


def uploaded(runs: Path) -> list[Path]:
    """List the uploaded tables by name."""
    return sorted(path for path in (runs.resolve() / UPLOADS).glob("*") if path.is_file() and not path.name.startswith("."))


def _locked(log: Path) -> bool:
    if fcntl is None or not log.exists():
        return False
    with log.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
