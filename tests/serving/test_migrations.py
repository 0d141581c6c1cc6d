"""The revisions of the database: upgrade with data, downgrade, agreement with the tables."""

from __future__ import annotations

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from balancer.serving.storage import database as storage
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import metadata


def move(database: Database, revision: str, *, up: bool = True) -> None:
    def work(connection: Connection) -> None:
        config = storage.alembic_config()
        config.attributes["connection"] = connection
        (command.upgrade if up else command.downgrade)(config, revision)

    database.write(work)


def tables(database: Database) -> set[str]:
    return database.read(lambda connection: set(inspect(connection).get_table_names())) - {"alembic_version"}


def test_the_newest_revision_has_the_tables(database: Database) -> None:
    different = database.read(lambda connection: compare_metadata(MigrationContext.configure(connection), metadata))
    assert not different
    assert tables(database) == set(metadata.tables)
    assert database.ready()


def test_labels_of_the_first_version_are_counted_by_days(url: str) -> None:
    database = Database(url)
    move(database, "0001")
    assert "labelled_days" not in tables(database)
    hours = [("t", "m", -25, 1, 0), ("t", "m", -24, 1, 1), ("t", "m", -1, 2, 0), ("t", "m", 0, 4, 2), ("t", "m", 23, 8, 0)]
    hours += [("t", "m", 24, 16, 1), ("t", "n", 24, 32, 0), ("u", "m", 24, 64, 64)]
    add = text(
        "INSERT INTO labelled_hours (tenant, \"column\", value, hour, known, frauds) VALUES (:tenant, 'c', :value, :hour, :known, :frauds)"
    )
    rows = [dict(zip(("tenant", "value", "hour", "known", "frauds"), row, strict=True)) for row in hours]
    database.write(lambda connection: connection.execute(add, rows))
    assert not database.ready()
    database.upgrade()
    assert database.ready()
    days = text("SELECT tenant, value, day, known, frauds FROM labelled_days ORDER BY tenant, value, day")
    found = [tuple(row) for row in database.read(lambda connection: connection.execute(days).all())]
    assert found == [
        ("t", "m", -2, 1, 0),
        ("t", "m", -1, 3, 1),
        ("t", "m", 0, 12, 2),
        ("t", "m", 1, 16, 1),
        ("t", "n", 1, 32, 0),
        ("u", "m", 1, 64, 64),
    ]
    database.close()


@pytest.mark.parametrize("revision", ["0001", "base"])
def test_downgrade_and_upgrade_again(database: Database, revision: str) -> None:
    move(database, revision, up=False)
    assert "context_rows" not in tables(database)
    assert bool(tables(database)) == (revision == "0001")
    move(database, "head")
    assert tables(database) == set(metadata.tables)


def test_stored_transactions_get_room_for_scores_and_stay(url: str) -> None:
    database = Database(url)
    move(database, "0002")
    sums = "sum_cos, sum_sin, sum_level, sum_square, sum_amount"
    entity = f"INSERT INTO entities (id, tenant, name, \"rows\", {sums}) VALUES (7, 't', 'c', 1, 1, 2, 3, 4, 5)"
    row = (
        f"INSERT INTO transactions (entity, position, tenant, id, digest, time, sent_time, {sums}, fields, texts, answer) "
        "VALUES (7, 0, 't', 'a', 'd', 1, 1, 0, 0, 0, 0, 0, :fields, '{}', '{}')"
    )
    database.write(lambda connection: (connection.execute(text(entity)), connection.execute(text(row), {"fields": b"1234"})))
    database.upgrade()
    found = text("SELECT first_stage, last_logits, e.sum_score, scores, t.sum_score FROM entities e JOIN transactions t ON t.entity = e.id")
    assert tuple(database.read(lambda connection: connection.execute(found).one())) == (None, None, 0, None, 0)
    move(database, "0002", up=False)
    columns = database.read(lambda connection: {column["name"] for column in inspect(connection).get_columns("transactions")})
    assert not columns & {"scores", "sum_score"}
    left = text("SELECT fields FROM transactions")
    assert bytes(database.read(lambda connection: connection.execute(left).scalar_one())) == b"1234"
    database.close()
