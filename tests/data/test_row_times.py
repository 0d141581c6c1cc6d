"""Tables without a time, times in two columns and in other units, and labels by the date of a report."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.schema import Schema
from balancer.data.simulation.stream import simulate
from balancer.data.spec import DAY, Spec, SplitSpec
from balancer.data.split import Split
from balancer.errors import InputError, MissingClassError
from balancer.tables.times import TimeForm

SPEC = Spec(
    time="time",
    entity="card_id",
    label="is_fraud",
    amount="amount",
    categorical=("category",),
    context=("merchant_id",),
    split=SplitSpec(gap=DAY),
)
START = datetime(2025, 1, 1)


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    return make()


def make(rows: int = 3000, seed: int = 0, days: float = 100.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    moments = np.sort(rng.uniform(0, days * DAY, rows))
    return pl.DataFrame(
        {
            "card_id": [f"k{number}" for number in rng.integers(0, 100, rows)],
            "time": [START + timedelta(seconds=int(each)) for each in moments],
            "amount": rng.lognormal(3, 1, rows).round(2),
            "category": [f"c{number}" for number in rng.integers(0, 5, rows)],
            "merchant_id": [f"m{number}" for number in rng.integers(0, 20, rows)],
            "is_fraud": (rng.random(rows) < 0.08).astype(int),
        }
    )


def equal_fields(one: Dataset, other: Dataset) -> None:
    assert one.schema.numeric_fields == other.schema.numeric_fields
    np.testing.assert_array_equal(one.store.values, other.store.values)
    np.testing.assert_array_equal(one.split, other.split)


def test_the_same_times_in_other_forms_give_the_same_fields(frame: pl.DataFrame) -> None:
    plain = load_dataset(frame, SPEC)
    epoch = frame["time"].dt.epoch("s")
    two = frame.with_columns(day=pl.col("time").dt.strftime("%d.%m.%Y"), at=pl.col("time").dt.strftime("%I:%M:%S %p"))
    same = [
        (frame.with_columns(time=pl.col("time").dt.strftime("%d/%m/%y %H:%M:%S")), SPEC),
        (frame.with_columns(time=epoch * 1000), SPEC),
        (frame.with_columns(time=epoch.cast(pl.String)), SPEC),
        (frame.with_columns(time=pl.col("time").dt.strftime("%Y%m%d%H%M%S").cast(pl.Int64)), SPEC),
        (two.drop("time"), replace(SPEC, time="day+at")),
    ]
    for table, spec in same:
        equal_fields(load_dataset(table, spec), plain)


def test_a_small_table_is_scored_as_the_training_table_was_read(frame: pl.DataFrame) -> None:
    text = frame.with_columns(time=pl.col("time").dt.strftime("%d/%m/%Y %H:%M:%S"))
    schema = Schema.from_dict(load_dataset(text, SPEC).schema.to_dict())
    assert schema.time == TimeForm("%d/%m/%Y %H:%M:%S")
    few = frame.filter(pl.col("time").dt.day() <= 12)[:5]
    for form in ("%d/%m/%Y %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"):
        scored = load_dataset(few.with_columns(time=pl.col("time").dt.strftime(form)), schema.spec, schema=schema)
        assert sorted(scored.store.time.tolist()) == few["time"].dt.epoch("s").to_list()


def test_a_span_that_is_no_stream_names_the_unit() -> None:
    table = make().with_columns(time=pl.int_range(pl.len()) // 4)
    with pytest.raises(InputError, match=r"the numbers in 'time' are taken as seconds, so the table spans .*--time-unit.*--label-delay"):
        load_dataset(table, SPEC)
    assert load_dataset(table, replace(SPEC, time_unit="h")).split.max() == Split.TEST


def test_without_a_time_rows_have_their_order(frame: pl.DataFrame) -> None:
    spec = replace(SPEC, time=None)
    table = load_dataset(frame.drop("time"), spec)
    assert np.bincount(table.split).tolist() == [1800, 0, 300, 300, 600]
    by_row = np.argsort(table.store.row)
    np.testing.assert_array_equal(table.store.time[by_row], np.arange(3000))
    names = set(table.schema.numeric_fields)
    assert {"amount_log", "is_first", "history_count", "amount_ratio", "category_used", "merchant_id_share"} <= names
    timed = ("hour", "weekday", "gap", "day", "_1d", "_7d", "label", "fraud", "_1h")
    assert not [name for name in names if any(part in name for part in timed)]
    assert any("--time none" in note for note in table.notes)
    # The fields that stay are those of the same rows with times.
    whole = load_dataset(frame, SPEC)
    for name in table.schema.numeric_fields:
        one = table.store.values[by_row, table.schema.numeric_fields.index(name)]
        other = whole.store.values[np.argsort(whole.store.row), whole.schema.numeric_fields.index(name)]
        np.testing.assert_array_equal(one, other)


def test_without_a_time_past_rows_come_first(frame: pl.DataFrame) -> None:
    spec = replace(SPEC, time=None)
    schema = load_dataset(frame.drop("time"), spec).schema
    whole = load_dataset(frame.drop("time"), spec, schema=schema)
    scored = load_dataset(frame[2000:].drop("time"), spec, schema=schema, past=frame[:2000].drop("time"))
    rows = scored.scored_rows()
    np.testing.assert_array_equal(scored.store.values[rows], whole.store.values[whole.scored_rows()[2000:]])
    assert scored.store.time[rows].min() > 3000  # after all rows of the training


@given(seed=st.integers(0, 20), shuffle=st.integers(0, 5), draw=st.integers(0, 3))
@settings(max_examples=15)
def test_a_random_split_draws_whole_entities_by_name(seed: int, shuffle: int, draw: int) -> None:
    table = make(800, seed)
    spec = replace(SPEC, split=SplitSpec(by="random", seed=draw))
    one = load_dataset(table, spec)
    parts = {}
    for code, split in zip(one.store.entity.tolist(), one.split.tolist(), strict=True):
        assert parts.setdefault(one.entities[code], split) == split
    assert set(parts.values()) == {0, 2, 3, 4}
    other = load_dataset(table.sample(fraction=1, shuffle=True, seed=shuffle), spec)
    assert parts == {other.entities[code]: split for code, split in zip(other.store.entity.tolist(), other.split.tolist(), strict=True)}
    again = load_dataset(table, replace(spec, split=replace(spec.split, seed=draw + 1)))
    assert not np.array_equal(again.split, one.split)


def test_a_random_split_of_rows_keeps_the_shares_of_classes() -> None:
    table = make(4000).sort("is_fraud").drop("time", "card_id")
    spec = Spec(time=None, label="is_fraud", amount="amount", categorical=("category",))
    with pytest.raises(MissingClassError, match="--split random"):
        load_dataset(table, spec)
    split = load_dataset(table, replace(spec, split=SplitSpec(by="random")))
    share = split.store.label.mean()
    for part, size in ((Split.TRAIN, 0.6), (Split.REWARD, 0.1), (Split.THRESHOLD, 0.1), (Split.TEST, 0.2)):
        inside = split.split == part
        assert abs(inside.mean() - size) < 0.001
        assert abs(split.store.label[inside].mean() - share) < 0.003
    assert any("at random" in note for note in split.notes)
    with pytest.raises(InputError, match="dates and by = random"):
        load_dataset(table, replace(spec, split=SplitSpec(train="2025-01-01", validation="2025-02-01", test="", by="random")))


def dated(table: pl.DataFrame, seed: int = 0, days: float = 12.0) -> pl.DataFrame:
    """The table with the date of a report for each fraud, and without labels."""
    rng = np.random.default_rng(seed)
    after = [timedelta(seconds=int(each)) for each in rng.exponential(days * DAY, table.height)]
    when = [time + wait if fraud else None for time, wait, fraud in zip(table["time"], after, table["is_fraud"], strict=True)]
    return table.with_columns(reported=pl.Series(when)).drop("is_fraud")


DATED = replace(SPEC, label=None, label_date="reported")


def test_labels_from_dates(frame: pl.DataFrame) -> None:
    table = dated(frame)
    data = load_dataset(table, DATED)
    assert data.schema.classes == ("legitimate", "fraud")
    order = np.argsort(data.store.row)
    label, split = data.store.label[order], data.split[order]
    present = table["reported"].is_not_null().to_numpy()
    time = table["time"].dt.epoch("s").to_numpy()
    young = ~present & (time > time.max() - DATED.label_delay)
    assert (label[young] == -1).all()
    assert (label[~present & ~young] == 0).all()
    end = time[split == Split.TRAIN].max()
    late = present & (split == Split.TRAIN) & (table["reported"].dt.epoch("s").fill_null(0).to_numpy() > end)
    assert late.any()
    assert (label[late] == -1).all()
    assert (label[present & ~late] == 1).all()
    assert any(note.startswith(f"{late.sum()} frauds of the training period") for note in data.notes)
    text = table.with_columns(pl.col("time", "reported").dt.strftime("%d/%m/%Y %H:%M:%S"))
    equal_fields(load_dataset(text, DATED), data)


def test_dates_beside_labels(frame: pl.DataFrame) -> None:
    table = dated(frame).with_columns(is_fraud=frame["is_fraud"])
    spec = replace(SPEC, label_date="reported")
    one, other = load_dataset(table, spec), load_dataset(frame, SPEC)
    both = one.store.label != other.store.label
    assert both.any()
    assert (one.split[both] == Split.TRAIN).all()
    assert set(one.store.label[both].tolist()) == {-1}
    assert set(other.store.label[both].tolist()) == {1}


@given(seed=st.integers(0, 50), day=st.integers(20, 95))
@settings(max_examples=10)
def test_fields_know_no_report_before_its_date(seed: int, day: int) -> None:
    """Fields of rows up to a moment are the same in a table without the reports after it."""
    table = dated(make(1500, seed), seed)
    moment = START + timedelta(days=day)
    known = table.with_columns(reported=pl.when(pl.col("reported") <= moment).then(pl.col("reported")))
    one = load_dataset(table, DATED, need_label=False)
    other = load_dataset(known, DATED, schema=one.schema)
    early = one.store.time <= (moment - datetime(1970, 1, 1)).total_seconds()
    np.testing.assert_array_equal(one.store.values[early], other.store.values[early])


def test_dates_need_no_label_when_scoring(frame: pl.DataFrame) -> None:
    schema = load_dataset(dated(frame), DATED).schema
    assert load_dataset(frame[:10].drop("is_fraud"), schema.spec, schema=schema).store.label.tolist() == [-1] * 10
    with pytest.raises(InputError, match=r"'reported': row 1 .*'never'"):
        load_dataset(dated(frame).with_columns(reported=pl.Series(["never", *["2025-01-01"] * 2999])), DATED)


def test_warnings_about_labels(frame: pl.DataFrame) -> None:
    assert load_dataset(frame, SPEC).cautions == []
    (caution,) = load_dataset(frame.with_columns(is_fraud=1 - pl.col("is_fraud")), SPEC).cautions
    assert "is --negative right?" in caution
    few = frame.with_columns(is_fraud=pl.when(pl.int_range(pl.len()) < 3).then(2).otherwise(pl.col("is_fraud")))
    (caution,) = load_dataset(few, SPEC).cautions
    assert "fewer than 10 training rows: '2' (3)" in caution


def test_the_simulated_table_is_as_before() -> None:
    table = simulate(2_000, seed=1, fraud_rate=0.05)
    data = load_dataset(table, replace(SPEC, time="time", context=(), categorical=()))
    assert data.cautions == []
    assert data.schema.time == TimeForm()
