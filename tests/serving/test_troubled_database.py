"""A database that is frozen, locked, full, or read by other users; and what is left of an erased card."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text

from balancer.serving.config import ServeConfig
from balancer.serving.http import health
from balancer.serving.http.app import create_app
from balancer.serving.storage import disk, keys, sqlite
from balancer.serving.storage.database import Database, DiskFullError, UnavailableError
from balancer.serving.storage.deadline import REQUEST, Deadline
from balancer.serving.storage.sqlite import checkpoint
from balancer.serving.storage.tables import entities
from benchmarks.lib.postgres import Postgres
from tests.serving.test_scoring import card
from tests.serving.tools import opened


@contextmanager
def frozen(server: Postgres) -> Iterator[None]:
    """Stop every process of a server."""
    parent = psutil.Process(int((server.folder / "postmaster.pid").read_text().split()[0]))
    processes = [parent, *parent.children(recursive=True)]
    for each in processes:
        each.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for each in processes:
            if each.is_running():
                each.send_signal(signal.SIGCONT)


def test_a_frozen_postgresql_is_not_waited_for(postgres: Postgres) -> None:
    database = Database(postgres.database("frozen"), patience=1.0, statement_seconds=1.0)
    database.upgrade()
    with frozen(postgres):
        begun = time.monotonic()
        with pytest.raises(UnavailableError):
            database.read(lambda connection: connection.execute(text("SELECT 1")))
        assert time.monotonic() - begun < 6
    assert database.read(lambda connection: connection.execute(text("SELECT 1")).scalar()) == 1
    database.close()


def test_statements_and_locks_end_and_a_long_transaction_of_short_ones_goes_on(postgres: Postgres) -> None:
    url = postgres.database("slow")
    database, other = opened(url), Database(url, patience=0.3, statement_seconds=0.5)
    with pytest.raises(UnavailableError):
        other.read(lambda connection: connection.execute(text("SELECT pg_sleep(30)")))
    limits = other.read(lambda connection: [connection.execute(text(f"SHOW {name}_timeout")).scalar() for name in ("statement", "lock")])
    assert limits == ["500ms", "500ms"]

    def many(connection: Any) -> int:
        for _ in range(8):
            connection.execute(text("SELECT pg_sleep(0.1)"))
        return 1

    token = REQUEST.set(Deadline(0.6))
    try:
        assert other.write(many) == 1, "no limit cuts off a transaction that runs"
    finally:
        REQUEST.reset(token)
    with database.engine.begin() as connection:
        connection.execute(text("LOCK TABLE api_keys"))
        begun = time.monotonic()
        with pytest.raises(UnavailableError):
            keys.any_ever(other)
        assert time.monotonic() - begun < 3
    assert database.read(lambda connection: connection.execute(text("SHOW statement_timeout")).scalar()) == "0", "commands have no limit"
    database.close()
    other.close()


def test_a_frozen_postgresql_lets_health_answer_and_ends_requests_in_time(postgres: Postgres) -> None:
    url = postgres.database("health")
    opened(url).close()
    with TestClient(create_app(ServeConfig(database=url, timeout=4.0))) as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/sessions").status_code == 200
        with frozen(postgres):
            answers: list[tuple[float, int]] = []

            def ask() -> None:
                begun = time.monotonic()
                status = client.get("/v1/sessions").status_code
                answers.append((time.monotonic() - begun, status))

            asking = [threading.Thread(target=ask) for _ in range(20)]
            for each in asking:
                each.start()
            time.sleep(0.3)
            for path, status, least in (("/healthz", 200, 1.5), ("/readyz", 503, health.READY_SECONDS + 3), ("/healthz", 200, 1.5)):
                begun = time.monotonic()
                assert client.get(path).status_code == status
                assert time.monotonic() - begun < least, path
            for each in asking:
                each.join()
            assert {status for _, status in answers} == {503}
            assert max(seconds for seconds, _ in answers) < 8
        until = time.monotonic() + 10
        while client.get("/readyz").status_code != 200 and time.monotonic() < until:
            time.sleep(0.1)
        assert client.get("/v1/sessions").status_code == 200


def test_a_locked_sqlite_ends_requests_in_time(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    database = opened(url)
    with TestClient(create_app(ServeConfig(database=url, timeout=3.0))) as client, database.engine.connect() as connection:
        connection.execution_options(balancer_write=True).begin()
        begun = time.monotonic()
        answer = client.post("/v1/sessions", json={"classes": {"a": 1, "b": 2}, "epochs": 2})
        assert answer.status_code == 503
        assert time.monotonic() - begun < 3.5
        assert client.get("/readyz").status_code == 200
        connection.rollback()
        assert client.post("/v1/sessions", json={"classes": {"a": 1, "b": 2}, "epochs": 2}).status_code == 201
    database.close()


def test_a_full_disk_is_said_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    opened(url).close()
    full = True
    begin = {"classes": {"a": 1, "b": 2}, "epochs": 2}

    def has_room(folder: Path, *, probe: bool) -> bool:
        assert folder == tmp_path
        return not (full and probe) and disk.has_room(folder, probe=probe)

    monkeypatch.setattr("balancer.serving.storage.database.has_room", has_room)
    app = create_app(ServeConfig(database=url))
    with TestClient(app) as client:
        assert client.get("/readyz").status_code == 200
        engine = app.state.registry._database.engine

        @event.listens_for(engine, "begin")
        def limit(connection: Any) -> None:
            pages = 1 if full else 1_000_000  # 1: as many as there are
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

        for _ in range(200):
            answer = client.post("/v1/sessions", json=begin)
            if answer.status_code != 201:
                break
        assert answer.status_code == 503
        assert "disk" in answer.json()["error"]
        assert any("disk" in record.getMessage() for record in caplog.records)
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert "disk" in ready.json()["error"]
        assert client.get("/healthz").status_code == 200
        full = False
        assert client.get("/readyz").status_code == 200
        assert client.post("/v1/sessions", json=begin).status_code == 201


@pytest.mark.parametrize("state", ["53100", "58030"])
def test_a_full_disk_of_postgresql_is_recognised(postgres: Postgres, state: str) -> None:
    database = opened(postgres.database(f"full{state}"))

    def fails(connection: Any) -> None:
        connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '{state}'; END $$"))

    with pytest.raises(DiskFullError, match="disk"):
        database.write(fails)
    assert database.disk_full
    assert database.has_room(probe=True)
    database.write(lambda connection: connection.execute(text("SELECT 1")))
    assert not database.disk_full
    database.close()


def test_a_disk_without_room_is_found_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk.has_room(tmp_path, probe=True)
    assert list(tmp_path.iterdir()) == []

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk.os, "fsync", full)
    assert not disk.has_room(tmp_path, probe=True)
    assert disk.has_room(tmp_path, probe=False)


@pytest.mark.skipif(os.name != "posix", reason="files have no modes")
def test_only_the_owner_can_read_the_file_of_the_database(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "service.db"
    before = os.umask(0o022)
    try:
        database = opened(f"sqlite:///{path}")
        keys.create(database, "t", ("score",))
        files = list(tmp_path.iterdir())
        assert len(files) == 3
        assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
        database.close()
        path.chmod(0o644)  # as versions before left it
        with caplog.at_level("WARNING", "balancer.service"):
            opened(f"sqlite:///{path}").close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert "0600" in caplog.text
    finally:
        os.umask(before)


def test_nothing_of_an_erased_card_is_in_the_files(tmp_path: Path, tiny_run: Path) -> None:
    secret, kept = "C-4929123498761234-SECRET", "C-4000056655665556-KEPT"
    url = f"sqlite:///{tmp_path / 'service.db'}"
    opened(url).close()
    with TestClient(create_app(ServeConfig(database=url, run=tiny_run))) as client:
        for number in range(30):
            for name in (secret, kept):
                raw = card(card_id=name, transaction_id=f"{name}-{number}", time=f"2026-01-05T10:{number:02d}:00")
                assert client.post("/v1/score", json={"transactions": [raw]}).status_code == 200
        content = b"".join(each.read_bytes() for each in tmp_path.iterdir())
        assert secret.encode() in content
        assert client.delete(f"/v1/entities/{secret}").status_code == 204
        until = time.monotonic() + 5
        while secret.encode() in b"".join(each.read_bytes() for each in tmp_path.iterdir()) and time.monotonic() < until:
            time.sleep(0.1)
        content = b"".join(each.read_bytes() for each in tmp_path.iterdir())
        assert secret.encode() not in content
        assert kept.encode() in content


def test_an_erasure_is_completed_once_nobody_reads_any_more(tmp_path: Path) -> None:
    database = opened(f"sqlite:///{tmp_path / 'service.db'}")
    log = tmp_path / "service.db-wal"
    with database.engine.connect() as reader:
        reader.execute(entities.select()).all()
        keys.create(database, "t", ("score",))
        assert not database.erased(0.1), "a reader still needs the log"
        assert log.stat().st_size > 0
    until = time.monotonic() + 5
    while log.stat().st_size and time.monotonic() < until:
        time.sleep(0.05)
    assert log.stat().st_size == 0
    assert database.erased()
    database.close()


def test_the_log_is_written_into_the_file_by_a_thread_and_not_by_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_COMMITS", 20)
    kinds: list[tuple[str, str]] = []

    def noted(path: str, kind: str) -> bool:
        worked = checkpoint(path, kind)
        kinds.append((kind, threading.current_thread().name))
        return worked

    monkeypatch.setattr(sqlite, "checkpoint", noted)
    file, log = tmp_path / "service.db", tmp_path / "service.db-wal"
    engine, checkpoints, sizes = sqlite.sqlite_engine(f"sqlite:///{file}", {}), sqlite.Checkpoints(str(file)), []
    with engine.connect() as writer:
        for number in range(400):
            writer.execute(text("CREATE TABLE many (content BLOB)") if not number else text("INSERT INTO many VALUES (zeroblob(8000))"))
            writer.commit()
            checkpoints.committed()
            sizes.append(log.stat().st_size)
            if number % 20 == 19:
                until = time.monotonic() + 5
                while len(kinds) < (number + 1) // 20 and time.monotonic() < until:
                    time.sleep(0.001)
    checkpoints.close()
    engine.dispose()
    assert kinds == [("PASSIVE", "checkpoints")] * 20
    assert max(sizes) < 1_000_000, "the log begins again after each checkpoint"
