"""Shared by the tests of the service: rows to send, databases of both kinds."""

from __future__ import annotations

import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest

from balancer.data.labels import label_names
from balancer.serving.models.registry import LoadedModel
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.parsing import parse_transaction
from balancer.serving.scoring.row import Row
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage.database import Database
from benchmarks.lib.postgres import Postgres, postgres_programs

SEQUENCE = (
    *("--epochs", "2", "--steps-per-epoch", "8", "--policy-rollouts", "1", "--history-length", "16", "--form", "histories"),
    *("--attention", "sparse", "--attention-window", "4", "--global-nodes", "2", "--d-model", "16", "--layers", "2", "--threads", "1"),
)
LONG_AGO = 1e12
"""A clock tolerance that accepts any time, because the tables of the tests have fixed dates."""
CARD: dict[str, Any] = {
    "transaction_id": "t-1",
    "card_id": "c-17",
    "time": "2026-05-31T13:45:00",
    "amount": 19.99,
    "merchant_id": "m-4",
    "merchant_category": "grocery",
    "channel": "chip",
    "region": "r-2",
    "distance_km": 1.5,
}


def sent(frame: pl.DataFrame, model: LoadedModel) -> list[dict[str, Any]]:
    """Rows as a client sends them, without labels, in order of time."""
    spec = model.schema.spec
    frame = frame.sort(spec.time, maintain_order=True).select(name for name in spec.columns() if name != spec.label)
    rows = frame.to_dicts()
    for row in rows:
        row[spec.time] = row[spec.time].isoformat() if hasattr(row[spec.time], "isoformat") else row[spec.time]
    return rows


def parsed(raw: dict[str, Any], model: LoadedModel) -> Row:
    return parse_transaction(raw, model.schema, "row", time.time(), LONG_AGO)


def replay(database: Database, model: LoadedModel, frame: pl.DataFrame, tenant: str = "t", size: int = 1) -> dict[str, float]:
    """Return scores by id, with `size` rows per request; labels are sent when they become known."""
    scorer, entities, spec = Scorer(database), Entities(database), model.schema.spec
    assert spec.label is not None and spec.id is not None
    labels = dict(zip(frame[spec.id].cast(pl.String), label_names(frame[spec.label], spec.unlabelled), strict=True))
    rows, scores, waiting = [parsed(raw, model) for raw in sent(frame, model)], {}, []
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        known = [row for row in waiting if row.time + spec.label_delay <= part[0].time]
        if known:
            entities.label(tenant, model.schema, {row.id: labels[row.id] for row in known})
            waiting = waiting[len(known) :]
        scores |= {answer["id"]: answer["score"] for answer in scorer.score(tenant, model, part).answers}
        waiting += part
    return scores


def started_postgres(folder: Path) -> Postgres:
    """A PostgreSQL server in `folder`; without PostgreSQL the test is skipped."""
    if postgres_programs() is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    server = Postgres(folder)
    # A test outlives neither the machine nor its disk, so nothing waits for the disk.
    with psycopg.connect(f"postgresql://balancer@127.0.0.1:{server.port}/postgres", autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    return server


def opened(url: str) -> Database:
    """The database of a URL with all tables; a new SQLite file is a copy of one that has them."""
    path = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(_empty_file())
    database = Database(url)
    database.upgrade()
    return database


@cache
def _empty_file() -> bytes:
    """An SQLite database with the tables and no rows. Making the tables takes longer than most tests do."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        database = Database(f"sqlite:///{path}")
        database.upgrade()
        database.close()
        return path.read_bytes()


def postgres_copy(server: Postgres, name: str) -> str:
    """Create the database ``name`` with all tables and no rows, and return its URL."""
    template = _TEMPLATES.get(server.port)
    if template is None:
        _TEMPLATES[server.port] = template = "empty"
        database = Database(server.database(template))
        database.upgrade()
        database.close()
    with psycopg.connect(f"postgresql://balancer@127.0.0.1:{server.port}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE {template}')
    return f"postgresql://balancer@127.0.0.1:{server.port}/{name}"


_TEMPLATES: dict[int, str] = {}
"""Name of the database that `postgres_copy` copies, by port of the server."""
