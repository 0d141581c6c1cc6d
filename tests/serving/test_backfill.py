"""Importing a table: scores of the table, labels when they are known, resumed, bad rows named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sqlalchemy import func, select

from balancer.errors import InputError
from balancer.runs.tables import score_file
from balancer.runs.trained_run import TrainedRun
from balancer.serving.errors import ConflictError
from balancer.serving.models import model_states
from balancer.serving.models.registry import LoadedModel
from balancer.serving.operations.backfill import IMPORT_KEY, History, Imported, _batches, import_history, note_on_model, read_history
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import context_spans, decisions, labelled_days, transactions
from tests.serving.tools import LONG_AGO, parsed, replay, sent

TENANT = "t"


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> LoadedModel:
    return LoadedModel.load(tiny_run, "run")


@pytest.fixture(scope="module")
def rows(tiny_table: Path) -> pl.DataFrame:
    table = pl.read_parquet(tiny_table)
    busy = table["card_id"].value_counts(sort=True)["card_id"].head(4)
    return table.filter(pl.col("card_id").is_in(busy.implode())).sample(fraction=1.0, shuffle=True, seed=1)  # in no order


def history(model: LoadedModel, source: Any, **options: Any) -> History:
    return read_history(model, source, tolerance=LONG_AGO, **options)


def stored(database: Database) -> dict[str, tuple[float, str | None]]:
    columns = transactions.c
    chosen = select(columns.id, columns.answer, columns.label)
    found = database.read(lambda connection: connection.execute(chosen).all())
    return {row.id: (row.answer["score"], row.label) for row in found}


def sums(database: Database, table: Any) -> list[tuple[Any, ...]]:
    return database.read(lambda connection: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key)).all()])


def streamed(run: Path, frame: pl.DataFrame, folder: Path) -> dict[str, float]:
    frame.write_parquet(folder / "in.parquet")
    score_file(
        TrainedRun.load(run, precision="auto"), folder / "in.parquet", folder / "out.parquet", past=None, bad_rows="error", streaming=True
    )
    columns = pl.col("transaction_id").cast(pl.String), "score"
    return dict(pl.read_parquet(folder / "out.parquet").select(*columns).iter_rows())


def test_scores_are_those_of_the_streamed_table(
    database: Database, tmp_path: Path, tiny_run: Path, model: LoadedModel, rows: pl.DataFrame
) -> None:
    done = import_history(database, TENANT, model, history(model, rows))
    assert (done.rows, done.scored, done.repeated, done.late) == (len(rows), len(rows), 0, 0)
    assert done.labels == rows["is_fraud"].is_not_null().sum()
    assert {name: score for name, (score, _) in stored(database).items()} == streamed(tiny_run, rows, tmp_path)
    keys = database.read(lambda connection: set(connection.execute(select(decisions.c.key)).scalars()))
    assert keys == {IMPORT_KEY}
    assert done.to_dict()["rows_per_second"] > 10


def test_the_database_is_that_of_a_replay(tmp_path: Path, model: LoadedModel, rows: pl.DataFrame) -> None:
    one, two = (Database(f"sqlite:///{tmp_path / name}") for name in ("one.db", "two.db"))
    part = rows.sort("time").head(250)
    for database in (one, two):
        database.upgrade()
    import_history(one, TENANT, model, history(model, part))
    scores = replay(two, model, part)
    assert {name: score for name, (score, _) in stored(one).items()} == scores
    assert sums(one, context_spans) == sums(two, context_spans)
    # The replay ends before the last labels are known; the import has them all.
    assert len(sums(one, labelled_days)) >= len(sums(two, labelled_days))
    repeated = Scorer(one).score(TENANT, model, [parsed(raw, model) for raw in sent(part.head(9), model)])
    assert all(answer["repeated"] for answer in repeated.answers)  # a client that sends the same row is recognized
    for database in (one, two):
        database.close()


def test_an_import_that_was_killed_is_continued(
    database: Database, tmp_path: Path, model: LoadedModel, rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balancer.serving.operations.backfill.MOST_ROWS", 20)
    part = rows.sort("time").head(250)
    read = history(model, part)

    def stop(done: int, total: int) -> None:
        assert total == len(part)
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_history(database, TENANT, model, read, progress=stop)
    begun = len(stored(database))
    assert 100 < begun < len(part)
    rest = import_history(database, TENANT, model, read)
    assert (rest.scored, rest.repeated) == (len(part) - begun, begun)

    whole = Database(f"sqlite:///{tmp_path / 'whole.db'}")
    whole.upgrade()
    import_history(whole, TENANT, model, read)
    assert stored(database) == stored(whole)
    assert sums(database, labelled_days) == sums(whole, labelled_days)
    again = import_history(database, TENANT, model, read)
    assert (again.scored, again.labels) == (0, 0)
    whole.close()


def test_tables_without_ids_labels_and_of_text(database: Database, tmp_path: Path, model: LoadedModel, rows: pl.DataFrame) -> None:
    part = rows.head(40).drop("transaction_id")
    part = pl.concat([part, part.head(1)])  # the same row twice is two transactions
    part.write_csv(tmp_path / "rows.csv")
    read = history(model, tmp_path / "rows.csv", labels="none")
    assert import_history(database, TENANT, model, read).scored == 41
    assert import_history(database, TENANT, model, history(model, part, labels="none")).repeated == 41
    assert all(label is None for _, label in stored(database).values())
    assert all(name.startswith("import-") for name in stored(database))


def test_bad_rows_are_named_or_dropped(database: Database, tmp_path: Path, model: LoadedModel, rows: pl.DataFrame) -> None:
    part = rows.head(30).with_columns(pl.col("amount").cast(pl.String), merchant_id=pl.col("merchant_id").cast(pl.String))
    spoiled = part.with_row_index().with_columns(
        amount=pl.when(pl.col("index") == 4).then(pl.lit("much")).otherwise("amount"),
        merchant_id=pl.when(pl.col("index") == 7).then(pl.lit("m" * 2000)).otherwise("merchant_id"),
    )
    spoiled = spoiled.drop("index")
    spoiled.write_csv(tmp_path / "rows.csv")
    with pytest.raises(InputError, match=r"amount.*much"):
        history(model, tmp_path / "rows.csv")
    with pytest.raises(InputError, match=r"row 8.*merchant_id"):
        history(model, spoiled.with_columns(amount=part["amount"]))
    read = history(model, tmp_path / "rows.csv", bad_rows="drop")
    assert sum(read.dropped.values()) == 2
    assert [reason for reason in read.dropped if reason.startswith("column 'merchant_id'") and reason.endswith("(row 8)")]
    long = spoiled.with_columns(amount=part["amount"], merchant_id=pl.lit("m" * 2000))
    last = pl.concat([long.head(20), part.tail(10)])
    assert [(reason[-19:], number) for reason, number in history(model, last, bad_rows="drop").dropped.items()] == [
        ("(rows 1, 2, 3, ...)", 20)
    ]
    assert import_history(database, TENANT, model, read).rows == 28
    with pytest.raises(InputError, match="ahead of the clock"):
        read_history(model, rows, now=0.0)


def test_rows_ahead_of_the_clock_have_one_reason(model: LoadedModel, rows: pl.DataFrame) -> None:
    times = rows.head(30)["time"].dt.epoch("s").to_list()
    read = read_history(model, rows.head(30), bad_rows="drop", now=times[-3])
    ahead = sum(time > times[-3] for time in times)
    assert [(number, "is ahead of the clock" in reason) for reason, number in read.dropped.items()] == [(ahead, True)]


def test_the_note_on_the_model_in_service_compares_files(database: Database, model: LoadedModel) -> None:
    """A name says nothing: what is in service under it may have other files."""
    assert note_on_model(database, model) is None

    def put(name: str, digest: str) -> None:
        database.write(lambda connection: model_states.make_champion(connection, name, digest, None))

    put("mine", next(iter(model.others)))  # the same files at another precision
    assert note_on_model(database, replace(model, name="mine")) is None
    put("mine", "0" * 64)
    note = note_on_model(database, replace(model, name="mine"))
    assert note is not None
    assert note.startswith("the files of --run mine differ from those of the model in service with the same name (digests ")
    note = note_on_model(database, replace(model, name="other"))
    assert note is not None
    assert note.startswith("'mine' is in service, not 'other'")
    put("copy", model.digest)
    assert note_on_model(database, model) is None


def test_other_content_under_a_stored_id_and_late_rows(database: Database, model: LoadedModel, rows: pl.DataFrame) -> None:
    part = rows.sort("time").head(60)
    import_history(database, TENANT, model, history(model, part.tail(30)))
    assert import_history(database, TENANT, model, history(model, part)).late > 0
    with pytest.raises(ConflictError):
        import_history(database, TENANT, model, history(model, part.with_columns(amount=pl.lit(3.0))))
    count = select(func.count()).select_from(transactions)
    assert database.read(lambda connection: connection.execute(count).scalar_one()) == 60


def test_labels_end_a_batch_where_a_row_sees_them(model: LoadedModel, rows: pl.DataFrame) -> None:
    read = history(model, rows.sort("time").head(6))
    every = [replace(row, time=time) for row, time in zip(read.rows, (0.0, 1.0, 10.0, 11.0, 12.0, 30.0), strict=True)]
    names, nothing = ["a"] * 6, [None] * 6
    known, late = np.array([row.time + 11 for row in every]), np.zeros(6, np.bool_)

    def batches(labels: list[str | None]) -> list[tuple[int, int]]:
        return list(_batches(replace(read, rows=every, labels=labels, known=known, late=late)))

    assert batches(nothing) == [(0, 6)]
    assert batches(names) == [(0, 3), (3, 5), (5, 6)]  # the row at 11 s sees the first label, that at 30 s the others
    known[0], late[0] = 11.5, True  # reported late: it is stored before the row at 12 s, and not before
    assert batches(names) == [(0, 4), (4, 5), (5, 6)]
    late[:], known[:] = True, 1e9
    assert batches(names) == [(0, 6)]


def test_the_summary_of_an_empty_import_has_no_rate() -> None:
    assert Imported().to_dict()["rows_per_second"] is None
