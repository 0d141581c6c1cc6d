"""Tables beside the training table: times in another format, flags in messages, clocks in digits."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from balancer.data.dataset import load_dataset
from balancer.data.roles import inferred, resolve_spec
from balancer.data.spec import DAY, Spec, SplitSpec
from balancer.errors import InputError

SPEC = Spec(time="time", entity="card", label="is_fraud", amount="amount", id="tx_id", split=SplitSpec(gap=DAY))
ROWS = 2000
MOMENTS = [datetime(2024, 1, 3) + timedelta(minutes=37 * row) for row in range(ROWS)]


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "tx_id": range(ROWS),
            "card": [f"k{number}" for number in rng.integers(0, 90, ROWS)],
            "time": MOMENTS,
            "amount": rng.lognormal(3, 1, ROWS).round(2),
            "is_fraud": (rng.random(ROWS) < 0.1).astype(int),
        }
    )


def texts(table: pl.DataFrame, form: str) -> pl.DataFrame:
    return table.with_columns(pl.col("time").dt.strftime(form))


@pytest.mark.parametrize(
    ("date", "clock", "names"),
    [
        ("%Y-%m-%d", "%H", ("date", "hour")),
        ("%m/%d/%Y", "%H", ("trans_date", "trans_hour")),
        ("%d.%m.%y", "%H%M", ("date", "hhmm")),
        ("%Y%m%d", "%H%M%S", ("BUDAT", "CPUTM")),
    ],
)
@pytest.mark.parametrize("digits", [pl.String, pl.Int64])
def test_a_date_and_digits_of_a_clock_are_joined(table: pl.DataFrame, date: str, clock: str, names: tuple[str, str], digits: type) -> None:
    parts = [pl.col("time").dt.strftime(date).alias(names[0]), pl.col("time").dt.strftime(clock).cast(digits).alias(names[1])]
    frame = table.with_columns(parts).drop("time")
    roles = inferred(frame)
    assert roles.spec.time == "+".join(names)
    reasons = {each.name: each.choice.reason for each in roles.columns}
    assert reasons[names[1]] == f"times of day by name and values, part of {roles.spec.time}"
    dataset = load_dataset(frame, roles.spec)
    wanted = [datetime.strptime(f"{each:{date} {clock}}", f"{date} {clock}") for each in MOMENTS]
    assert sorted(dataset.store.time.tolist()) == [(each - datetime(1970, 1, 1)).total_seconds() for each in wanted]


@pytest.mark.parametrize(("name", "values"), [("hour_rate", range(24)), ("hour", [-1, 5]), ("hour", [5, 77]), ("zip", [5, 10])])
def test_other_digits_beside_a_date_are_no_clock(table: pl.DataFrame, name: str, values: list[int]) -> None:
    held = [list(values)[row % len(values)] for row in range(ROWS)]
    frame = table.with_columns(pl.col("time").dt.date().alias("date"), pl.Series(name, held)).drop("time")
    assert resolve_spec(frame).time == "date"


def test_times_in_another_format_than_in_training_are_noted(table: pl.DataFrame) -> None:
    schema = load_dataset(texts(table, "%Y-%m-%d %H:%M:%S"), SPEC).schema
    past, now = table[:1500], table[1500:]

    def notes(now: pl.DataFrame, past: pl.DataFrame) -> list[str]:
        return [note for note in load_dataset(now, schema.spec, schema=schema, past=past).notes if "in the table of training" in note]

    assert notes(texts(now, "%Y-%m-%dT%H:%M:%S"), past) == []
    assert notes(now, texts(past, "%d/%m/%Y %H:%M")) == [
        "--past: times in time are read as %d/%m/%Y %H:%M; in the table of training they were %Y-%m-%d %H:%M:%S"
    ]
    assert "are read as milliseconds;" in notes(now.with_columns(pl.col("time").dt.epoch("ms")), past)[0]


def test_a_command_that_scores_names_no_flag_of_training(table: pl.DataFrame) -> None:
    schema = load_dataset(texts(table, "%d/%m/%Y %H:%M"), SPEC).schema
    repeated = table[[0, 1, 1]]
    with pytest.raises(InputError, match="make the ids distinct, or give --id none"):
        load_dataset(repeated, SPEC)
    for frame in (
        repeated,
        table.with_columns(tx_id=None),
        table.with_columns(time=pl.lit("soon")),
        table.with_columns(time=pl.lit(1.4e11)),
    ):
        with pytest.raises(InputError) as raised:
            load_dataset(frame, schema.spec, schema=schema)
        assert {word for word in str(raised.value).split() if word.startswith("--")} <= {"--bad-rows"}


def test_errors_about_a_file_name_it(table: pl.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    for change, message in (
        (pl.lit("soon").alias("time"), "can't be read as a time"),
        (pl.lit("yes").alias("is_fraud"), "has only the class"),
        (pl.lit(datetime(2024, 1, 1)).alias("time"), "all rows have the same time, so there are no earlier and later ones"),
    ):
        table.with_columns(change).write_csv(file)
        with pytest.raises(InputError, match=message) as raised:
            load_dataset(file, SPEC)
        assert str(raised.value).startswith(f"{file}: ")
        assert str(raised.value).count(str(file)) == 1
    table.rename({"time": "posted_at"}).with_columns(booked_at="posted_at").write_csv(file)
    with pytest.raises(InputError, match=f"^{file}: several columns may be the time"):
        resolve_spec(file)


def test_infinite_features_are_missing_and_counted(table: pl.DataFrame) -> None:
    spec = Spec(**{**vars(SPEC), "numeric": ("rate",)})
    rate = pl.when(pl.col("tx_id") % 50 == 7).then(float("inf")).otherwise(pl.col("amount")).alias("rate")
    dataset = load_dataset(table.with_columns(rate), spec)
    assert "40 infinite values of column rate are read as missing" in dataset.notes
    assert dataset.schema.missing == ("rate",)


def test_a_past_that_looks_wrong_is_a_warning(table: pl.DataFrame) -> None:
    spec = Spec(**{**vars(SPEC), "context": ("shop",)})
    table = table.with_columns(
        shop=pl.lit("m") + (pl.col("tx_id") % 30).cast(pl.String), card=(pl.col("tx_id") % 90).cast(pl.String).str.zfill(4)
    )
    schema = load_dataset(table, spec).schema
    early, late = table[:1500], table[1500:]

    def cautions(now: pl.DataFrame, past: pl.DataFrame) -> list[str]:
        return load_dataset(now, schema.spec, schema=schema, past=past).cautions

    assert cautions(late, early) == []
    assert cautions(late, early.with_columns(is_fraud=None)) == [
        "--past has no labels, so the fields of known labels (shop) are empty: add the column 'is_fraud'"
    ]
    assert cautions(late, early.drop("is_fraud"))[0].startswith("--past has no labels")
    assert cautions(early, late) == ["all rows of --past are later than the input, so no row has a past: are the two tables exchanged?"]
    assert (
        "card differ between --past and the input only by leading zeros (1 and 0001)"
        in cautions(late, early.with_columns(pl.col("card").cast(pl.Int64)))[0]
    )


def test_a_date_of_a_report_that_is_not_read_names_no_flag_when_scoring(table: pl.DataFrame) -> None:
    spec = Spec(**{**vars(SPEC), "label": None, "label_date": "reported"})
    reported = pl.when(pl.col("is_fraud") == 1).then(pl.col("time").dt.strftime("%d/%m/%Y")).alias("reported")
    schema = load_dataset(table.with_columns(reported), spec).schema
    with pytest.raises(InputError, match="can't be read as a time: write times as the table of training does"):
        load_dataset(table.with_columns(reported=pl.lit("3 janv. 2024")), schema.spec, schema=schema)
