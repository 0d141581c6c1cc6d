"""Statements on the bare driver: any value comes back as it was written; errors are those of SQLAlchemy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from balancer.serving.scoring.locks import Locked, lock
from balancer.serving.storage.database import Database, UnavailableError
from balancer.serving.storage.driver import Change, Driver
from benchmarks.lib.postgres import Postgres
from tests.serving.tools import opened

COLUMNS = {"name": "text", "number": "whole", "size": "float", "content": "bytes", "fits": "flag", "more": "json"}
TEXTS = ("", " ", "NULL", "null", '"', "\\", "{a,b}", "a,b", "'", "%s", "%(a)s", ":a", "$1", "é", "\U0001f600", "\n\t", "a" * 5000)
SIZES = (0.0, 0.1, 1e308, 5e-324, -1.7e9, 1.7e9 + 1e-6, 1 / 3)


@pytest.fixture
def table(database: Database) -> Database:
    whole, blob, number = ("INTEGER", "BLOB", "DOUBLE") if database.is_sqlite else ("BIGINT", "BYTEA", "DOUBLE PRECISION")
    made = f"CREATE TABLE tried (name TEXT PRIMARY KEY, number {whole}, size {number}, content {blob}, fits BOOLEAN, more JSON)"
    database.write(lambda connection: connection.execute(text(made)))
    return database


def written(database: Database, rows: list[tuple[Any, ...]], conflict: str = "") -> list[tuple[Any, ...]]:
    def work(connection: Connection) -> list[tuple[Any, ...]]:
        driver = Driver(connection)
        driver.write(Change("tried", COLUMNS, rows, conflict))
        return driver.rows("SELECT name, number, size, content, fits, CAST(more AS TEXT) FROM tried ORDER BY number")

    return database.write(work)


def test_unusual_values_come_back(table: Database) -> None:
    rows = [
        (name, 2**62 - place, SIZES[place % len(SIZES)], bytes(range(place)), place % 2 == 0, '{"a": "\\"\\\\"}')
        for place, name in enumerate(TEXTS)
    ]
    rows.append(("none", None, None, None, None, None))
    found = written(table, rows)
    by_name = {row[0]: row[1:] for row in found}
    assert len(by_name) == len(rows)
    for name, number, size, content, fits, more in rows:
        got = by_name[name]
        assert (got[0], got[1], got[4]) == (number, size, more)
        assert (None if got[2] is None else bytes(got[2]), None if got[3] is None else bool(got[3])) == (content, fits)
    some = list(TEXTS[:6])

    def work(connection: Connection) -> list[str]:
        return sorted(row[0] for row in Driver(connection).rows("SELECT name FROM tried WHERE name = ANY(:names)", {"names": some}))

    assert table.read(work) == sorted(some)
    assert table.read(lambda connection: Driver(connection).rows("SELECT name FROM tried WHERE name = ANY(:names)", {"names": []})) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20), unique=True, max_size=6))
def test_any_text_comes_back(table: Database, names: list[str]) -> None:
    table.write(lambda connection: connection.execute(text("DELETE FROM tried")))
    rows = [(name, place, 0.5, b"", True, "{}") for place, name in enumerate(names)]
    assert [row[0] for row in written(table, rows)] == names


def test_rows_that_exist_are_changed(table: Database) -> None:
    written(table, [("a", 1, 1.0, b"x", True, "{}"), ("b", 2, 2.0, b"y", False, "{}")])

    def work(connection: Connection) -> list[tuple[Any, ...]]:
        driver = Driver(connection)
        changed = {"name": "text", "size": "float", "content": "bytes"}
        new = Change("tried", COLUMNS, [("c", 3, 3.0, None, None, "{}"), ("a", 9, 9.0, None, None, "{}")], "ON CONFLICT DO NOTHING")
        driver.write(new, Change("tried", changed, [("b", 5.0, b"z")], key="name"), Change("tried", COLUMNS, []))
        driver.many("UPDATE tried SET number = :number WHERE name = :name", [{"number": 7, "name": "c"}])
        one, two = driver.together(("SELECT COUNT(*) FROM tried", {}), ("SELECT size FROM tried WHERE name = :name", {"name": "b"}))
        assert (one[0][0], two[0][0]) == (3, 5.0)
        return driver.rows("SELECT name, number, size FROM tried ORDER BY name")

    assert table.write(work) == [("a", 1, 1.0), ("b", 2, 5.0), ("c", 7, 3.0)]


def test_errors_are_those_that_the_database_knows(table: Database) -> None:
    row = ("a", 1, 1.0, b"x", True, "{}")
    written(table, [row])
    with pytest.raises(IntegrityError):
        written(table, [row])
    with pytest.raises(DBAPIError, match="nowhere"):
        table.read(lambda connection: Driver(connection).rows("SELECT * FROM nowhere"))
    assert written(table, [("b", 2, 1.0, b"x", True, "{}")])[1][0] == "b"


def test_a_lost_connection_is_opened_again(table: Database) -> None:
    if table.is_sqlite:
        pytest.skip("a file has no connection to lose")
    attempts = 0

    def work(connection: Connection) -> int:
        nonlocal attempts
        attempts += 1
        driver = Driver(connection)
        number = driver.rows("SELECT pg_backend_pid()")[0][0]
        if attempts == 1:
            with table.engine.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:number)"), {"number": number})
                other.commit()
        driver.together(("SELECT 1", {}), ("SELECT 2", {}))
        return int(driver.rows("SELECT 3")[0][0])

    assert table.write(work) == 3
    assert attempts == 2


def test_a_locked_file_is_waited_for_and_then_unavailable(tmp_path: Any) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}", patience=0.3)
    database.upgrade()
    other = Database(f"sqlite:///{tmp_path / 'a.db'}", patience=0.3)

    def reads_then_writes(connection: Connection) -> None:
        Driver(connection).rows("SELECT COUNT(*) FROM entities")
        Driver(connection).many("DELETE FROM entities WHERE id = :id", [{"id": 1}])

    def holds(connection: Connection) -> None:
        Driver(connection).many("DELETE FROM entities WHERE id = :id", [{"id": 1}])
        with pytest.raises(UnavailableError):
            other.read(reads_then_writes)

    database.write(holds)
    for each in (database, other):
        each.close()


def test_a_plan_made_for_few_rows_does_not_read_all_rows_later(postgres: Postgres) -> None:
    database = opened(postgres.database("plans"))
    new = "INSERT INTO entities (tenant, name, rows, sum_cos, sum_sin, sum_level, sum_square, sum_amount, version) "
    new += "SELECT 't', 'card ' || place, 0, 0, 0, 0, 0, 0, 0 FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS given (place)"

    def looked_up(connection: Connection) -> Locked:
        return lock(Driver(connection), "t", ["card 1", "card 3"], [], (), ("SELECT 1", {}))

    def rows_read(connection: Connection) -> int:
        counted = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'entities'"
        before: int = connection.execute(text(counted)).scalar_one()
        looked_up(connection)
        after: int = connection.execute(text(counted)).scalar_one()
        return after - before

    database.write(lambda connection: connection.execute(text("ALTER TABLE entities SET (autovacuum_enabled = false)")))
    database.write(lambda connection: connection.execute(text(new), {"first": 1, "last": 5}))
    for _ in range(20):  # the driver prepares a statement, and the server keeps its plan
        assert [each[1] for each in database.write(looked_up).entities] == ["card 1", "card 3"]
    database.write(lambda connection: connection.execute(text(new), {"first": 6, "last": 20_000}))
    assert database.write(rows_read) <= 4
    database.close()
