"""Causality bit for bit, agreement with slow references, and bounded values."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.features import entity_fields, row_fields
from balancer.data.past import Events, TablePast, earlier_sum
from balancer.data.spec import DAY, Spec, SplitSpec

DELAY = 2 * DAY
SPEC = Spec(
    time="time",
    entity="card",
    label="fraud",
    amount="amount",
    categorical=("kind",),
    context=("shop",),
    label_delay=DELAY,
    split=SplitSpec(gap=0.0),
)


def make_table(rows: int, seed: int, days: float = 12.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    # Whole hours make equal moments frequent; both classes stand in every part of the split.
    time = np.sort(np.floor(rng.random(rows) * days * 24)) * 3600.0
    fraud = (np.arange(rows) % 3 == 0).astype(np.int8)
    return pl.DataFrame(
        {
            "time": time,
            "card": rng.integers(0, 4, rows),
            "amount": np.round(rng.lognormal(3, 1.5, rows) * rng.choice([1, 1, 1, -1], rows), 2),
            "kind": rng.choice(["a", "b", "c"], rows),
            "shop": rng.integers(0, 3, rows),
            "fraud": fraud,
        }
    )


def fields_by_row(data: Dataset) -> np.ndarray:
    """Numeric fields in input order."""
    return data.store.values[np.argsort(data.store.row), : data.store.num_numeric]


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), rows=st.integers(40, 90), place=st.floats(0, 0.999))
def test_no_later_row_and_no_young_label_changes_an_earlier_field(seed: int, rows: int, place: float) -> None:
    table = make_table(rows, seed)
    before = fields_by_row(load_dataset(table, SPEC))
    rng = np.random.default_rng(seed + 1)
    changed = int(place * rows)
    time = table["time"].to_numpy()
    other = {
        "card": int(rng.integers(0, 4)),
        "amount": float(rng.choice([1e12, -3.5, 0.0, 17.25])),
        "kind": "z",
        "shop": int(rng.integers(0, 3)),
        "fraud": 1 - int(table["fraud"][changed]),
    }
    edited = table.with_columns(
        pl.when(pl.int_range(pl.len()) == changed).then(pl.lit(value, table.schema[name])).otherwise(pl.col(name)).alias(name)
        for name, value in other.items()
    )
    after = fields_by_row(load_dataset(edited, SPEC))
    # Rows before the changed one in (time, input order) see nothing of it; the table is sorted by time.
    np.testing.assert_array_equal(before[:changed], after[:changed])

    relabelled = table.with_columns(pl.when(pl.int_range(pl.len()) == changed).then(None).otherwise(pl.col("fraud")).alias("fraud"))
    after = fields_by_row(load_dataset(relabelled, SPEC))
    young = time < time[changed] + DELAY
    np.testing.assert_array_equal(before[young], after[young])
    same_shop_later = ~young & (table["shop"].to_numpy() == table["shop"][changed]) & (time < time[changed] + DELAY + 30 * DAY)
    assert (before[same_shop_later] != after[same_shop_later]).any(axis=1).all()


def test_label_in_its_own_moment_is_unseen_without_delay() -> None:
    table = make_table(60, 3)
    spec = Spec(**{**SPEC.__dict__, "label_delay": 0.0})
    before = fields_by_row(load_dataset(table, spec))
    last_time = table["time"] == table["time"][40]
    after = fields_by_row(load_dataset(table.with_columns(pl.when(last_time).then(1 - pl.col("fraud")).otherwise(pl.col("fraud"))), spec))
    earlier = (table["time"] <= table["time"][40]).to_numpy()
    np.testing.assert_array_equal(before[earlier], after[earlier])


def reference_fields(table: pl.DataFrame) -> list[dict[str, float]]:
    """Row by row, from the definitions."""
    rows = table.to_dicts()
    out = []
    for i, row in enumerate(rows):
        past = [r for j, r in enumerate(rows) if r["card"] == row["card"] and (r["time"], j) < (row["time"], i)]
        level = [math.copysign(math.log1p(abs(r["amount"])), r["amount"]) for r in past]
        now = math.copysign(math.log1p(abs(row["amount"])), row["amount"])
        day = [r for r in past if r["time"] > row["time"] - DAY]
        total = sum(r["amount"] for r in day)
        same = [r for r in past if r["kind"] == row["kind"]]
        known = [r for r in rows if r["shop"] == row["shop"] and row["time"] - DELAY - 7 * DAY < r["time"] <= row["time"] - DELAY]
        out.append(
            {
                "amount_log": now,
                "gap_log": math.log1p(row["time"] - past[-1]["time"]) if past else math.log1p(3650 * DAY),
                "history_count": math.log1p(len(past)),
                "count_1d": math.log1p(len(day)),
                "sum_1d": math.copysign(math.log1p(abs(total)), total) if day else 0.0,
                "amount_ratio": now - float(np.mean(level)) if past else 0.0,
                "amount_to_max": now - max(level) if past else 0.0,
                "kind_used": math.log1p(len(same)),
                "kind_days_since": math.log1p((row["time"] - same[-1]["time"]) / DAY if same else 3650.0),
                "hour_habit_all": float(np.mean([math.cos((r["time"] - row["time"]) * 2 * math.pi / DAY) for r in past])) if past else 0.0,
                "shop_count_7d": math.log1p(len(known)),
                "shop_fraud_rate_7d": sum(r["fraud"] for r in known) / (len(known) + 1),
            }
        )
    return out


def test_fields_agree_with_a_row_by_row_reference() -> None:
    table = make_table(120, 11)
    data = load_dataset(table, SPEC)
    values = fields_by_row(data)
    reference = reference_fields(table)
    for name in reference[0]:
        column = values[:, data.schema.numeric_fields.index(name)]
        np.testing.assert_allclose(column, [row[name] for row in reference], rtol=1e-5, atol=1e-5, err_msg=name)


def test_hour_and_weekday() -> None:
    # 2024-05-31 13:30 was a Friday.
    time = np.array([datetime(2024, 5, 31, 13, 30, tzinfo=UTC).timestamp()])
    fields = dict(row_fields(time, None))
    assert fields["hour"][0] == 13.5
    assert fields["weekday"][0] == 4
    assert fields["hour_sin"][0] == pytest.approx(math.sin(13.5 / 24 * 2 * math.pi), abs=1e-6)


def test_huge_amounts_stay_finite() -> None:
    amount = np.array([1e12, -1e12, 1e300, 0.0, 1e-300, 1e12])
    events = Events(np.arange(6, dtype=np.float64) * 60.0, np.zeros(6, np.int64), amount, {"kind": np.array([0, 1, -1, 0, 0, 1])})
    for name, column in [*row_fields(events.time, events.amount), *entity_fields(TablePast(events))]:
        assert column.dtype == np.float32
        assert np.isfinite(column).all(), name


def test_sum_after_a_huge_entity_is_exact() -> None:
    values = np.array([27.6, 27.6, 0.1, 0.2, 0.4])
    first = np.array([0, 0, 2, 2, 2])
    assert earlier_sum(values, np.arange(5), first)[4] == pytest.approx(0.3, abs=1e-7)


def test_entity_of_one_row_has_no_history() -> None:
    events = Events(np.array([5.0]), np.zeros(1, np.int64), np.array([10.0]), {})
    fields = dict(entity_fields(TablePast(events)))
    assert fields["is_first"][0] == 1
    assert fields["amount_ratio"][0] == fields["count_30d"][0] == fields["sum_30d"][0] == 0
