"""Databases of both kinds, for the tests of the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer.serving.storage.database import Database
from benchmarks.lib.postgres import Postgres
from tests.conftest import HYBRID, TINY, fewer_trees
from tests.serving.tools import opened, postgres_copy, started_postgres


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = started_postgres(tmp_path_factory.mktemp("postgres"))
    yield server
    server.stop("immediate")


@pytest.fixture(scope="session")
def second_run(tiny_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `tiny_run` with other weights and trees; read it, don't write it."""
    from balancer.cli import main

    out = tmp_path_factory.mktemp("second") / "run"
    with fewer_trees():
        assert main(["train", "--dataset", str(tiny_table), "--out", str(out), *HYBRID, *TINY, "--policy", "auto", "--seed", "7"]) == 0
    return out


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'service.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    name = f"d{abs(hash(str(tmp_path))) % 10**9}"
    # A test that asks for no more than the URL may need a database without tables.
    return postgres_copy(server, name) if "database" in request.fixturenames else server.database(name)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = opened(url)
    yield database
    database.close()
