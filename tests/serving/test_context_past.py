"""Fields of a context value in the service: the bits of the table, late rows and labels, erased entities."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from sqlalchemy import Connection, text

from balancer.data.context_features import ACTIVITY_AMOUNT_FIELDS, ACTIVITY_FIELDS, LABEL_FIELDS
from balancer.data.dataset import load_dataset
from balancer.data.schema import Schema
from balancer.data.spec import DAY, Spec, SplitSpec
from balancer.serving.scoring.batch import Batch, active_columns
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.locks import lock
from balancer.serving.scoring.memory import Memory
from balancer.serving.scoring.row import Row
from balancer.serving.scoring.scorer import Scorer, lock_rows
from balancer.serving.storage.database import Database
from balancer.serving.storage.driver import Driver
from tests.data.context_reference import Row as Earlier
from tests.data.context_reference import reference

SPEC = Spec(time="time", entity="card", label="fraud", negative="0", amount="amount", context=("shop", "till"), split=SplitSpec(gap=0.0))
NAMES = (*LABEL_FIELDS, *ACTIVITY_FIELDS, *ACTIVITY_AMOUNT_FIELDS)
CLASSES = ("0", "1", "2")


def make_table(rows: int, seed: int, days: float = 45.0) -> pl.DataFrame:
    """Three quarters of the rows are at full hours, so that moments are equal and on the borders of spans."""
    rng = np.random.default_rng(seed)
    time = rng.random(rows) * days * DAY
    time = np.sort(np.where(rng.random(rows) < 0.75, np.floor(time / 3600) * 3600.0, np.round(time, 3))) - 5 * DAY
    fraud = np.where(np.floor(time / (4 * DAY)) % 3 == 0, np.arange(rows) % 3, 0)  # whole runs of frauds
    return pl.DataFrame(
        {
            "time": time,
            "card": rng.integers(0, 5, rows),
            "amount": np.round(rng.lognormal(3, 1.5, rows) * rng.choice([1, 1, 1, -1], rows), 2),
            "shop": pl.Series(rng.choice(["a", "b", "=", None], rows, p=[0.6, 0.2, 0.1, 0.1]).tolist(), dtype=pl.String),
            "till": rng.integers(0, 3, rows),
            "fraud": pl.Series(np.where(rng.random(rows) < 0.15, None, fraud).tolist(), dtype=pl.Int8),
        }
    )


def schema_for(delay: float = 7 * DAY) -> Schema:
    return load_dataset(make_table(350, 1), replace(SPEC, label_delay=delay)).schema


def sent(table: pl.DataFrame) -> list[Row]:
    """The rows as the service parses them; their ids are their numbers."""
    return [
        Row(str(number), str(card), time, time, amount, {}, {"shop": shop, "till": str(till)}, "")
        for number, (time, card, amount, shop, till) in enumerate(table.select("time", "card", "amount", "shop", "till").iter_rows())
    ]


def model_of(schema: Schema) -> Any:
    """What a batch needs of a model that gives no scores."""
    return SimpleNamespace(base=schema, schema=schema, digest="d", first_stage=None, stream=None)


def store(database: Database, schema: Schema, row: Row, tenant: str = "t") -> tuple[np.ndarray, float]:
    """Store a row; return its (F,) fields and its effective time."""
    model = model_of(schema)

    def work(connection: Connection) -> tuple[np.ndarray, float]:
        batch = Batch(connection, Memory(), tenant, [row], model)
        batch.open(lock_rows(batch.driver, tenant, model, [row]))
        batch.gather()
        no_scores: Any = SimpleNamespace(model=model, fields=None, before=[0])
        Scorer(database)._write(batch, no_scores, [{}], [], [])
        return batch.numeric[0], batch.rows[0].time

    return database.write(work)


def is_known(time: float, now: float, delay: float) -> bool:
    return time <= now - delay if delay else time < now


@pytest.mark.parametrize("delay", [0.0, 3600.0, 3 * DAY])
def test_fields_are_those_of_the_table_to_the_last_bit(database: Database, delay: float) -> None:
    table = make_table(350, 1)
    data = load_dataset(table, replace(SPEC, label_delay=delay))
    expected = data.store.values[np.argsort(data.store.row)]
    entities, rng = Entities(database), np.random.default_rng(0)
    labels = {str(number): str(label) for number, label in enumerate(table["fraud"]) if label is not None}
    waiting: dict[str, float] = {}
    for number, row in enumerate(sent(table)):
        # Labels come when they are due, or earlier with a delay: that makes no difference.
        due = [name for name, time in waiting.items() if is_known(time, row.time, delay) or (delay and rng.random() < 0.05)]
        entities.label("t", data.schema, {name: labels[name] for name in due})
        waiting = {name: time for name, time in waiting.items() if name not in due}
        fields, _ = store(database, data.schema, row)
        np.testing.assert_array_equal(fields, expected[number, : data.store.num_numeric], err_msg=str(number))
        if row.id in labels:
            waiting[row.id] = row.time
    for name in NAMES:
        assert len(np.unique(expected[:, data.schema.numeric_fields.index(f"shop_{name}")])) > 1, name


def test_late_rows_late_labels_and_erased_entities(database: Database) -> None:
    delay = 2 * DAY
    table = make_table(260, 2, days=20.0)
    schema = schema_for(delay)
    rng, entities = np.random.default_rng(3), Entities(database)
    columns = {column: [schema.numeric_fields.index(f"{column}_{name}") for name in NAMES] for column in SPEC.context}
    # Each row is sent up to two days late.
    rows = sorted(sent(table), key=lambda row: row.time + 2 * DAY * rng.random() * (rng.random() < 0.3))
    stored: list[tuple[Row, float]] = []  # in the order of arrival, with the effective time
    label: dict[str, bool] = {}
    late = 0
    for row in rows:
        for name in rng.choice([each.id for each, _ in stored] or [""], 2):
            if name:
                chosen = rng.choice([*CLASSES, ""])  # "" takes a label back
                entities.label("t", schema, {str(name): chosen or None})
                label.pop(name, None)
                label |= {name: chosen != "0"} if chosen else {}
        if len(stored) in (90, 170):
            entities.delete("t", stored[-1][0].entity)
            stored = [each for each in stored if each[0].entity != stored[-1][0].entity]
            label = {name: fraud for name, fraud in label.items() if name in {each.id for each, _ in stored}}
        fields, time = store(database, schema, row)
        late += any(earlier > time for _, earlier in stored)
        for column, places in columns.items():
            before = _earlier(stored, label, column)
            labelled = [each for each in before if each.fraud is not None]
            seen = [each for each in sorted(before, key=lambda each: each.time) if each.time <= time]
            expected = reference(seen, Earlier(time, row.texts[column], row.amount or 0.0, None), labelled, delay)
            np.testing.assert_allclose(fields[places], [expected[name] for name in NAMES], rtol=1e-5, atol=1e-5, err_msg=f"{row} {column}")
        stored.append((row, time))
    assert late > 50


def _earlier(stored: Sequence[tuple[Row, float]], label: dict[str, bool], column: str) -> list[Earlier]:
    return [Earlier(time, row.texts[column], row.amount or 0.0, label.get(row.id)) for row, time in stored]


def test_an_erased_entity_leaves_no_row_and_no_sum(database: Database) -> None:
    table = make_table(60, 4)
    schema = schema_for()
    for row in sent(table):
        store(database, schema, row)
    store(database, schema, sent(table)[0], tenant="other")
    labels = {str(number): str(label) for number, label in enumerate(table["fraud"]) if label is not None}
    Entities(database).label("t", schema, labels)
    counts = "SELECT COUNT(*) FROM {} WHERE tenant = 't'"
    for table_name in ("context_rows", "context_spans", "labelled", "labelled_days"):
        assert database.read(lambda connection, name=table_name: connection.execute(text(counts.format(name))).scalar_one()), table_name
    for card in table["card"].unique():
        Entities(database).delete("t", str(card))
    for table_name in ("context_rows", "context_spans", "labelled"):
        assert not database.read(lambda connection, name=table_name: connection.execute(text(counts.format(name))).scalar_one()), table_name
    left = text("SELECT SUM(known), SUM(frauds) FROM labelled_days WHERE tenant = 't'")
    assert [int(each) for each in database.read(lambda connection: connection.execute(left).one())] == [0, 0]
    others = text("SELECT COUNT(*) FROM context_rows")
    assert database.read(lambda connection: connection.execute(others).scalar_one()) == (2 if table["shop"][0] is not None else 1)


def test_a_model_without_the_fields_keeps_no_rows(database: Database) -> None:
    table, schema = make_table(40, 5), schema_for()
    added = {f"{column}_{name}" for column in SPEC.context for name in NAMES}
    old = Schema.from_dict(schema.to_dict() | {"numeric_fields": [name for name in schema.numeric_fields if name not in added]})
    assert active_columns(model_of(schema)) == ["shop", "till"]
    assert active_columns(model_of(old)) == []
    for row in sent(table):
        fields, _ = store(database, old, row)
        assert len(fields) == len(old.numeric_fields)
    rows = text("SELECT COUNT(*) FROM context_rows")
    assert database.read(lambda connection: connection.execute(rows).scalar_one()) == 0


def test_transactions_with_the_same_value_wait_for_each_other(database: Database) -> None:
    """Otherwise two of them would both miss the row of the other."""
    if database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    entered, order = threading.Event(), []

    def second() -> None:
        def work(connection: Connection) -> None:
            entered.set()
            lock(Driver(connection), "t", [], [("shop", "a"), ("shop", "b")], ["shop"], ("SELECT 1", {}))
            order.append("second")

        database.write(work)

    def first(connection: Connection) -> None:
        lock(Driver(connection), "t", [], [("shop", "a")], ["shop"], ("SELECT 1", {}))
        other.start()
        assert entered.wait(30)
        other.join(0.3)
        assert other.is_alive()
        order.append("first")

    other = threading.Thread(target=second)
    database.write(first)
    other.join(30)
    assert order == ["first", "second"]
