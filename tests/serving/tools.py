"""What the tests of the service share: a run to serve, rows to send, databases of both kinds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from balancer.data.checks import label_names
from balancer.serving.scoring.registry import LoadedModel
from balancer.serving.scoring.scorer import Row, Scorer, read_row
from balancer.serving.storage.database import Database

SEQUENCE = (
    *("--epochs", "2", "--steps-per-epoch", "8", "--policy-rollouts", "1", "--history-length", "16", "--form", "histories"),
    *("--attention", "sparse", "--attention-window", "4", "--global-nodes", "2", "--d-model", "16", "--layers", "2", "--threads", "1"),
)
LONG_AGO = 1e12
"""A clock tolerance under which any time will do: the tables of the tests lie where they lie."""


def sent(frame: pl.DataFrame, model: LoadedModel) -> list[dict[str, Any]]:
    """Rows as a client sends them, without labels, in order of time."""
    spec = model.schema.spec
    frame = frame.sort(spec.time, maintain_order=True).select(name for name in spec.columns() if name != spec.label)
    rows = frame.to_dicts()
    for row in rows:
        row[spec.time] = row[spec.time].isoformat() if hasattr(row[spec.time], "isoformat") else row[spec.time]
    return rows


def parsed(raw: dict[str, Any], model: LoadedModel) -> Row:
    return read_row(raw, model.schema, "row", time.time(), LONG_AGO)


def replay(scorer: Scorer, model: LoadedModel, frame: pl.DataFrame, tenant: str = "t", size: int = 1) -> dict[str, float]:
    """Score by id, `size` rows a request, each label brought when it is known."""
    spec = model.schema.spec
    assert spec.label is not None and spec.id is not None
    labels = dict(zip(frame[spec.id].cast(pl.String), label_names(frame[spec.label], spec.unlabelled), strict=True))
    rows, scores, waiting = [parsed(raw, model) for raw in sent(frame, model)], {}, []
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        known = [row for row in waiting if row.time + spec.label_delay <= part[0].time]
        if known:
            scorer.label(tenant, model.schema, {row.id: labels[row.id] for row in known})
            waiting = waiting[len(known) :]
        scores |= {answer["id"]: answer["score"] for answer in scorer.score(tenant, model, part).answers}
        waiting += part
    return scores


def postgres_programs() -> Path | None:
    """Folder of initdb and postgres, as Debian installs them, or wherever they are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    here = shutil.which("initdb")
    return found[-1].parent if found else Path(here).parent if here else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Postgres:
    """A server of our own, in a folder of our own; it refuses to run as root, so root hands it to the user postgres."""

    def __init__(self, folder: Path) -> None:
        programs = postgres_programs()
        if programs is None:
            pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
        self._programs, self.folder, self.port = programs, folder / "data", free_port()
        self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        if self._as:
            folder.chmod(0o755)
            for parent in folder.parents:
                if parent != Path("/tmp") and str(parent).startswith("/tmp/"):
                    parent.chmod(0o755)
            self.folder.mkdir()
            shutil.chown(self.folder, "postgres", "postgres")
        self._run("initdb", "-D", str(self.folder), "-U", "balancer", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self._run("pg_ctl", "-D", str(self.folder), "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, how: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.folder), "-w", "-m", how, "stop")

    def database(self, name: str) -> str:
        """URL of a fresh database."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "balancer", name)
        return f"postgresql://balancer@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._programs / program), *arguments]
        # What stays running must not keep a pipe of ours open.
        done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert done.returncode == 0, f"{program} failed; see {self.folder / 'log'}"


def opened(url: str) -> Database:
    database = Database(url)
    database.upgrade()
    return database
