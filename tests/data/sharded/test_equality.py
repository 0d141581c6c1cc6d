"""A store has the bits of the table in memory, whatever the table is and however it is cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from balancer.data.dataset import load_dataset
from balancer.data.preparing.learned import NO_LABEL
from balancer.data.roles import resolve_spec
from balancer.errors import InputError
from tests.data.sharded.tables import START, check, prepared, roles_of, table

Change = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """The table that the cases change."""
    return table()


def bad(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows without a time, entity or amount, infinite numbers, repeated ids; row 4 is bad in two ways."""
    at = pl.int_range(pl.len())
    return frame.with_columns(
        time=pl.when(~at.is_in([4, 150])).then("time"),
        card=pl.when(at == 200).then(pl.lit("none")).when(~at.is_in([4, 5])).then("card"),
        amount=pl.when(at == 7).then(float("nan")).when(at != 8).then("amount"),
        distance=pl.when(at == 9).then(float("inf")).when(at == 10).then(1e300).otherwise("distance"),
        id=pl.when(at.is_in([11, 350])).then(pl.col("id").first()).when(at != 12).then("id"),
    )


def texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Everything as text: dates with the day first, decimal commas, words for labels, missing values."""
    return frame.with_columns(
        time=pl.col("time").dt.to_string("%d.%m.%Y %H:%M"),
        amount=pl.col("amount").cast(pl.String).str.replace(".", ",", literal=True) + " €",
        distance=pl.col("distance").fill_nan(None).cast(pl.String).fill_null("n/a"),
        fraud=pl.when(pl.int_range(pl.len()) % 50 == 3)
        .then(pl.lit("unknown"))
        .when(pl.col("fraud") == 1)
        .then(pl.lit("Y"))
        .otherwise(pl.lit("N")),
    )


def reported(frame: pl.DataFrame) -> pl.DataFrame:
    """A date of the report for each fraud, some of them late."""
    late = pl.duration(days=pl.int_range(pl.len()) % 30)
    return frame.with_columns(seen=pl.when(pl.col("fraud") == 1).then(pl.col("time") + late))


CASES: dict[str, tuple[Change, dict[str, Any], dict[str, Any]]] = {
    "one shard": (lambda frame: frame, {}, {"shards": 1}),
    "one part of the input": (lambda frame: frame, {}, {"chunk": 1000}),
    "more shards than cards": (lambda frame: frame, {}, {"shards": 33}),
    "bad rows": (bad, {}, {"bad_rows": "drop"}),
    "hash buckets": (lambda frame: frame.with_columns(kind=pl.col("shop")), {}, {"hash_buckets": 7}),
    "equal times": (lambda frame: frame.with_columns(pl.col("time").dt.truncate("1d")), {}, {}),
    "times are numbers": (
        lambda frame: frame.with_columns(step=pl.col("time").dt.epoch("s") // 3600 - START // 3600),
        {"time": "step"},
        {},
    ),
    "a date and a time of day": (
        lambda frame: frame.with_columns(day=pl.col("time").dt.date(), clock=pl.col("time").dt.to_string("%H:%M:%S")),
        {"time": "day+clock"},
        {},
    ),
    "label dates beside labels": (reported, {"label_date": "seen"}, {}),
    "label dates alone": (reported, {"label": "none", "label_date": "seen"}, {}),
    "dates of reports as text": (
        lambda frame: reported(frame).with_columns(pl.col("seen").dt.to_string("%d/%m/%Y")),
        {"label": "none", "label_date": "seen"},
        {},
    ),
    "no entity": (lambda frame: frame, {"entity": "none"}, {}),
    "no time": (lambda frame: frame, {"time": "none", "context": ()}, {}),
    "no amount and no id": (lambda frame: frame, {"amount": "none", "id": "none"}, {}),
    "a joined entity and a joined context": (lambda frame: frame, {"entity": "card+note", "context": ("shop+kind",)}, {}),
    "drawn at random": (lambda frame: frame, {"by": "random", "seed": 3}, {}),
    "drawn at random without an entity": (lambda frame: frame, {"by": "random", "entity": "none"}, {}),
    "several classes": (
        lambda frame: frame.with_columns(
            fraud=pl.when(pl.col("fraud") == 0).then(pl.lit("ok")).otherwise(pl.concat_str(pl.lit("f"), pl.col("shop") // 6))
        ),
        {},
        {},
    ),
    "a context without values": (lambda frame: frame.with_columns(shop=pl.lit(None, dtype=pl.Int64)), {"context": ("shop",)}, {}),
    "categories of the file": (lambda frame: frame.with_columns(pl.col("kind", "card").cast(pl.Categorical)), {}, {}),
    "missing numbers only after training": (
        lambda frame: frame.with_columns(pl.when(pl.col("time").dt.epoch("s") < START + 50 * 86_400).then("score")),
        {},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_store_has_the_bits_of_the_table(case: str, frame: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, roles, options = CASES[case]
    path = tmp_path / "table.parquet"
    change(frame).write_parquet(path)
    check(path, tmp_path / "store", roles_of(path, **roles), monkeypatch, **options)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "tsv"])
def test_text_files(ending: str, frame: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"table.{ending}"
    if ending == "jsonl":
        frame.with_columns(pl.col("time").dt.to_string("%Y-%m-%d %H:%M:%S")).write_ndjson(path)
    elif ending == "tsv":
        texts(frame).write_csv(path, separator="\t")
    else:
        frame.write_csv(path, datetime_format="%Y-%m-%d %H:%M:%S", null_value="")
    check(path, tmp_path / "store", roles_of(path), monkeypatch)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_folder_of_files(ending: str, frame: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    for number, part in enumerate((frame[:150], frame[150:151], frame[151:])):
        file = folder / f"part-{number}.{ending}"
        part.write_parquet(file) if ending == "parquet" else part.write_csv(file)
    check(folder, tmp_path / "store", roles_of(folder), monkeypatch)


def test_files_of_different_types(frame: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    frame[:200].write_parquet(folder / "a.parquet")
    frame[200:].with_columns(pl.col("shop").cast(pl.Float64), pl.col("distance").cast(pl.Float32)).write_parquet(folder / "b.parquet")
    check(folder, tmp_path / "store", roles_of(folder), monkeypatch)


def test_a_table_without_labels_can_be_prepared_to_score(frame: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, labelled = tmp_path / "table.parquet", tmp_path / "labelled.parquet"
    frame.write_parquet(labelled)
    frame.drop("fraud").write_parquet(path)
    schema = load_dataset(labelled, roles_of(labelled).spec).schema
    store = prepared(path, tmp_path / "store", roles_of(path, label="none"), monkeypatch)
    assert NO_LABEL in store.info.notes
    table = load_dataset(path, schema.spec, schema=schema)
    np.testing.assert_array_equal(table.store.values, load_dataset(store.path, schema.spec, schema=schema).store.values)
    with pytest.raises(InputError, match="no label column was recognised"):
        resolve_spec(store.path)
