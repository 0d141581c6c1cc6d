"""Purging: what remains scores exactly as before, old data goes, and a stopped purge is continued."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sqlalchemy import Connection, delete, func, select, text, update

from balancer.data.labels import label_names
from balancer.data.spec import DAY
from balancer.errors import InputError
from balancer.serving.models.registry import LoadedModel
from balancer.serving.operations.needed import least_age
from balancer.serving.operations.retention import NOBODY, Purged, purge
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import challenger_scores, decisions, entities, entity_states, labelled, transactions
from tests.serving.tools import opened, parsed, sent


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> LoadedModel:
    return LoadedModel.load(tiny_run, "run")


@pytest.fixture(scope="module")
def rows(tiny_table: Path) -> pl.DataFrame:
    """Rows of 120 days of busy cards and of rare ones, and of one that stops in the first days."""
    table = pl.read_parquet(tiny_table).sort("time")
    busy = table["card_id"].value_counts(sort=True)["card_id"].head(2).to_list()
    early = table.head(400)["card_id"].to_list()
    stopped = next(card for card in early if card not in busy)
    rare = table["card_id"].value_counts(sort=True)["card_id"][10:14].to_list()
    seen = pl.col("card_id").cum_count().over("card_id")
    begins = pl.col("time") < table["time"][0] + pl.duration(days=20)
    return table.filter(
        pl.col("card_id").is_in(busy) | (pl.col("card_id").is_in(rare) & (seen % 15 == 0)) | ((pl.col("card_id") == stopped) & begins)
    )


class Feed:
    """Sends rows in order of time to several databases, and labels when they become known."""

    def __init__(self, model: LoadedModel, frame: pl.DataFrame) -> None:
        spec = model.schema.spec
        self.model, self.delay = model, spec.label_delay
        self.labels = dict(zip(frame[spec.id].cast(pl.String), label_names(frame[spec.label], spec.unlabelled), strict=True))
        self.rows = [parsed(raw, model) for raw in sent(frame, model)]
        self.place = self.known = 0

    def until(self, moment: float, *databases: Database) -> list[dict[str, float]]:
        """Scores by id in each database."""
        found: list[dict[str, float]] = [{} for _ in databases]
        while self.place < len(self.rows) and self.rows[self.place].time <= moment:
            first, begun = self.known, self.rows[self.place].time
            while self.rows[self.known].time + self.delay <= begun:
                self.known += 1
            due = {each.id: self.labels[each.id] for each in self.rows[first : self.known]}
            end = min(moment, self.rows[self.known].time + self.delay - 1)
            batch = [row for row in self.rows[self.place : self.place + 50] if row.time <= end]
            for database, scores in zip(databases, found, strict=True):
                if due:
                    Entities(database).label("t", self.model.schema, due)
                answers = Scorer(database).score("t", self.model, batch).answers
                scores |= {answer["id"]: answer["score"] for answer in answers}
            self.place += len(batch)
        return found


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Database]:
    database = opened(f"sqlite:///{tmp_path / 'other.db'}")
    yield database
    database.close()


def count(database: Database, table: Any) -> int:
    return database.read(lambda connection: connection.execute(select(func.count()).select_from(table)).scalar_one())


def forget_states(database: Database) -> None:
    """Let the states of the network be computed again from the rows that are left."""

    def work(connection: Connection) -> None:
        connection.execute(update(entities).values(version=entities.c.version + 1))
        connection.execute(delete(entity_states))

    database.write(work)


def test_scores_after_a_purge_are_those_without(database: Database, other: Database, model: LoadedModel, rows: pl.DataFrame) -> None:
    feed = Feed(model, rows)
    now = feed.rows[0].time + 85 * DAY
    feed.until(now, database, other)
    before = count(database, transactions), count(database, labelled)
    age = least_age([model])
    planned = purge(database, [model], age, now, dry_run=True)
    assert (count(database, transactions), count(database, labelled)) == before
    done = purge(database, [model], age, now)
    assert done == planned
    assert done.transactions > 50 and done.entities == 1 and done.context_rows > 50
    assert done.decisions == done.transactions
    assert count(database, transactions) == before[0] - done.transactions
    assert purge(database, [model], age, now) == Purged()  # nothing is left to do

    forget_states(database)
    one, two = feed.until(feed.rows[0].time + 100 * DAY, database, other)
    assert one == two and len(one) > 20
    purge(database, [model], age, now + 15 * DAY)
    one, two = feed.until(float("inf"), database, other)
    assert one == two and len(one) > 20


def test_another_model_reads_what_is_left(
    database: Database, other: Database, model: LoadedModel, network_run: Path, rows: pl.DataFrame
) -> None:
    before = LoadedModel.load(network_run, "before")
    feed = Feed(before, rows)
    now = feed.rows[0].time + 85 * DAY
    feed.until(now, database, other)
    assert purge(database, [before, model], least_age([before, model]), now).transactions > 50
    feed.model = model  # its first stage scores the stored rows again
    one, two = feed.until(float("inf"), database, other)
    assert one == two and len(one) > 50


def test_what_a_terminal_needs_of_old_rows_stays_without_a_name(database: Database, model: LoadedModel, rows: pl.DataFrame) -> None:
    feed = Feed(model, rows)
    now = feed.rows[0].time + 85 * DAY
    feed.until(now, database)
    purge(database, [model], least_age([model]), now)
    nobody = database.read(lambda connection: connection.execute(select(entities).where(entities.c.name == NOBODY)).mappings().one())
    assert nobody["rows"] == 0
    owned = select(func.count()).select_from(labelled).where(labelled.c.entity == nobody["id"])
    assert database.read(lambda connection: connection.execute(owned).scalar_one()) > 0
    orphans = "SELECT COUNT(*) FROM labelled l WHERE entity <> :nobody AND NOT EXISTS "
    orphans += "(SELECT 1 FROM transactions t WHERE t.entity = l.entity AND t.position = l.position)"
    assert database.read(lambda connection: connection.execute(text(orphans), {"nobody": nobody["id"]}).scalar_one()) == 0


def test_a_short_age_is_refused_with_the_smallest_possible(database: Database, model: LoadedModel) -> None:
    with pytest.raises(InputError, match="give 38d or more"):
        purge(database, [model], 37 * DAY, 1e9)


def test_a_purge_that_was_stopped_is_continued(
    database: Database, other: Database, model: LoadedModel, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balancer.serving.operations.retention.ROWS_AT_ONCE", 7)
    feed = Feed(model, rows)
    now = feed.rows[0].time + 85 * DAY
    feed.until(now, database, other)
    age = least_age([model])
    planned = purge(database, [model], age, now, dry_run=True)

    def stop(what: str, done: int, total: int) -> None:
        assert (what, done, total) == ("entities", 1, 7)
        raise KeyboardInterrupt

    first = count(database, transactions)
    with pytest.raises(KeyboardInterrupt):
        purge(database, [model], age, now, progress=stop)
    middle = count(database, transactions)
    rest = purge(database, [model], age, now)
    assert first - middle + rest.transactions == planned.transactions
    one, two = feed.until(float("inf"), database, other)
    assert one == two


def test_old_decisions_go_with_their_age(database: Database, model: LoadedModel, rows: pl.DataFrame) -> None:
    Feed(model, rows).until(float("inf"), database)  # decisions are received now
    columns = ("tenant", "transaction", "entity", "received", "score", "threshold", "decision")
    chosen = select(*(decisions.c[name] for name in columns))

    def copy(connection: Connection) -> None:
        found = connection.execute(chosen).mappings().all()
        connection.execute(challenger_scores.insert(), [{**row, "digest": "d"} for row in found])

    database.write(copy)
    done = purge(database, [model], 400 * DAY, 1e11)  # everything is old
    assert count(database, transactions) == count(database, decisions) == count(database, challenger_scores) == 0
    assert done.decisions == done.challenger_scores == len(rows)
    assert count(database, entities) == 1  # what is left of the labels of terminals
