"""inspect names everything that train refuses, whatever the row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from balancer.data.dataset import load_dataset
from balancer.data.inspection import inspect_table
from balancer.errors import InputError
from tests.data.test_delay import ROWS, table


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("amount", "abc", "is text, not a number"),
        ("amount", "inf", "is infinite"),
        ("amount", None, "is null"),
        ("card_id", None, "has no entity"),
        ("card_id", "NULL", "a word for a missing value as its entity"),
        ("time", "yesterday", "has text that is not a time"),
        ("time", None, "has no time"),
    ],
)
def test_a_cell_that_train_refuses_is_listed(column: str, value: Any, what: str, tmp_path: Path) -> None:
    frame = table(300).with_columns(pl.all().cast(pl.String))
    cells = [*frame[column][: ROWS - 3], value, *frame[column][ROWS - 2 :]]
    path = tmp_path / "table.csv"
    frame.with_columns(pl.Series(column, cells)).write_csv(path)
    found = inspect_table(path)
    assert len(found.to_correct) == 1 and found.doubts == ()
    assert what in found.to_correct[0] and f"column {column!r}" in found.to_correct[0] and f"row {ROWS - 2}" in found.to_correct[0]
    assert found.to_dict()["to_correct"] == list(found.to_correct)
    with pytest.raises(InputError) as error:
        load_dataset(path, found.roles.spec)
    assert str(error.value).endswith(found.to_correct[0])


def test_every_column_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    text = table(300).with_columns(pl.all().cast(pl.String))
    money = pl.Series("amount", ["5 EUR", "6 USD"] * (ROWS // 2))
    text.with_columns(money, pl.Series("card_id", [None, *text["card_id"][1:]])).write_csv(path)
    found = inspect_table(path)
    assert len(found.to_correct) == 2
    assert "has no entity" in found.to_correct[0] and "several currencies (EUR, USD)" in found.to_correct[1]
    text.with_columns(amount=pl.lit("2,664")).write_csv(path)
    assert "--thousands , or --decimal ," in inspect_table(path, overrides={"amount": "amount"}).to_correct[0]


def test_labels_and_parts_that_train_refuses_are_listed() -> None:
    late = table(300).with_columns(is_fraud=(pl.int_range(pl.len()) > 500).cast(pl.Int8))
    assert "has no positive row" in inspect_table(late).to_correct[0]
    one = table(300).with_columns(is_fraud=pl.when(pl.col("is_fraud") == 1).then(pl.lit("X")))
    found = inspect_table(one)
    assert "--negative empty" in found.to_correct[0] and found.unlabelled > 0
    assert inspect_table(one, overrides={"negative": ""}).to_correct == ()
    assert inspect_table(one, overrides={"negative": "empty"}).classes["X"] == found.classes["X"]


def test_probable_faults_are_warnings() -> None:
    frame = table(300).with_columns(pl.col("time").dt.strftime("%Y-%m-%d %H:%M:%S"))
    far = frame.with_columns(time=pl.when(pl.int_range(pl.len()) == 7).then(pl.lit("9999-12-31 00:00:00")).otherwise("time"))
    cautions = load_dataset(far, inspect_table(far).roles.spec).cautions
    assert cautions == list(inspect_table(far).cautions)
    assert "row 8: '9999-12-31 00:00:00' is far from the other times" in cautions[0] and len(cautions) == 1
    early = table(300).with_columns(
        reported=pl.when(pl.col("is_fraud") == 1).then(
            pl.when(pl.int_range(pl.len()) == 9).then(pl.lit("2023-01-01")).otherwise(pl.lit("2025-01-01"))
        )
    )
    spec = inspect_table(early, overrides={"label_date": "reported"})
    assert "row 10: 1 report is dated before the row" in spec.cautions[0] and len(spec.cautions) == 1
    assert load_dataset(early, spec.roles.spec).cautions[0] == spec.cautions[0]
    with pytest.raises(InputError, match=r"column 'is_fraud' \(--label-date\) holds no dates"):
        load_dataset(table(300), inspect_table(table(300), overrides={"label_date": "is_fraud"}).roles.spec)


def test_that_there_is_no_time_is_said_once() -> None:
    frame = table(300).drop("time", "card_id").with_columns(x=pl.int_range(pl.len()) * 7 % 501)
    found = inspect_table(frame)
    assert sum("rows are taken in their order" in note for note in found.notes) == 1
    notes = load_dataset(frame, found.roles.spec, left_out=found.roles.notes).notes
    assert sum("no column looks like a time" in note for note in notes) <= 1
    assert sum("taken in their order" in note for note in notes) == 1
    assert sum("taken in their order" in note for note in inspect_table(frame, overrides={"time": "none"}).notes) == 1
