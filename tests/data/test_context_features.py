"""Fields of a context value: agreement with their definitions, causality to the last bit, old schemas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.data import context_past
from balancer.data.context_features import (
    ACTIVITY_AMOUNT_FIELDS,
    ACTIVITY_FIELDS,
    LABEL_FIELDS,
    context_fields,
    has_activity_fields,
    has_label_fields,
)
from balancer.data.context_past import TableContextPast
from balancer.data.dataset import Dataset, load_dataset
from balancer.data.past import Events
from balancer.data.schema import Schema
from balancer.data.spec import DAY, Spec, SplitSpec
from tests.data.context_reference import Row, reference

NAMES = (*LABEL_FIELDS, *ACTIVITY_FIELDS, *ACTIVITY_AMOUNT_FIELDS)
SPEC = Spec(time="time", entity="card", label="fraud", negative="0", amount="amount", context=("shop", "till"), split=SplitSpec(gap=0.0))


def make_table(rows: int, seed: int, *, hours: int = 24 * 40) -> pl.DataFrame:
    """Whole hours make equal moments frequent; shops are fraudulent for a while, so that runs are long."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, hours, rows)) * 3600.0
    shop = rng.choice(["a", "b", "c", None], rows, p=[0.5, 0.3, 0.1, 0.1])
    bad = (shop == "a") & (np.floor(time / (5 * DAY)) % 3 == 1)
    fraud = np.where(rng.random(rows) < np.where(bad, 0.8, 0.1), rng.integers(1, 3, rows), 0)
    fraud[np.arange(rows) % 5 == 0], fraud[np.arange(rows) % 5 == 1], fraud[np.arange(rows) % 5 == 2] = 0, 1, 2
    return pl.DataFrame(
        {
            "time": time,
            "card": rng.integers(0, 6, rows),
            "amount": np.round(rng.lognormal(3, 1.5, rows) * rng.choice([1, 1, 1, -1], rows), 2),
            "shop": pl.Series(shop.tolist(), dtype=pl.String),
            "till": rng.integers(0, 3, rows),
            "fraud": pl.Series(np.where(rng.random(rows) < 0.15, None, fraud).tolist(), dtype=pl.Int8),
        }
    )


def by_row(data: Dataset) -> dict[str, np.ndarray]:
    """Fields of the context columns in input order."""
    order = np.argsort(data.store.row)
    names = [f"{column}_{name}" for column in data.schema.spec.context for name in NAMES]
    return {name: data.store.values[order, data.schema.numeric_fields.index(name)] for name in names}


@pytest.mark.parametrize("delay", [0.0, 3600.0, 2.5 * DAY])
def test_fields_agree_with_a_row_by_row_reference(delay: float) -> None:
    table = make_table(400, 3)
    found = by_row(load_dataset(table, replace(SPEC, label_delay=delay)))
    for column in SPEC.context:
        rows = [
            Row(*row[:3], None if row[3] is None else row[3] > 0) for row in table.select("time", column, "amount", "fraud").iter_rows()
        ]
        labelled = [row for row in rows if row.fraud is not None]
        expected = [reference(rows[:place], row, labelled, delay) for place, row in enumerate(rows)]
        for name in NAMES:
            np.testing.assert_allclose(
                found[f"{column}_{name}"], [each[name] for each in expected], rtol=1e-5, atol=1e-5, err_msg=f"{column}_{name}"
            )
            assert len(np.unique(found[f"{column}_{name}"])) > 1


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), place=st.floats(0, 0.999), delay=st.sampled_from([0.0, 2 * DAY]))
def test_no_later_row_and_no_young_label_changes_an_earlier_field(seed: int, place: float, delay: float) -> None:
    table, spec = make_table(120, seed, hours=24 * 12), replace(SPEC, label_delay=delay)
    before = by_row(load_dataset(table, spec))
    changed = int(place * table.height)
    is_changed = pl.int_range(pl.len()) == changed
    label = table["fraud"][changed]

    def edited(**values: object) -> dict[str, np.ndarray]:
        new = (
            pl.when(is_changed).then(pl.lit(value, table.schema[name])).otherwise(pl.col(name)).alias(name)
            for name, value in values.items()
        )
        return by_row(load_dataset(table.with_columns(new), spec))

    other = edited(card=5, amount=1e12, shop="b" if table["shop"][changed] != "b" else None, till=7, fraud=0 if label else 1)
    for name, values in edited(fraud=0 if label else 1).items():
        # At the moment of the label plus the delay it is known, without a delay a moment later.
        time = table["time"].to_numpy()
        young = time < time[changed] + delay if delay else time <= time[changed]
        np.testing.assert_array_equal(before[name][young], values[young], err_msg=name)
        np.testing.assert_array_equal(before[name][:changed], other[name][:changed], err_msg=name)
    assert changed > 100 or any((before[f"till_{name}"][changed + 1 :] != other[f"till_{name}"][changed + 1 :]).any() for name in NAMES)


def test_rows_of_one_moment_follow_the_input_and_their_labels_do_not() -> None:
    table = make_table(300, 5, hours=30)  # about ten rows in an hour
    shuffled = table[np.random.default_rng(0).permutation(300)].sort("time", maintain_order=True)
    straight, mixed = (by_row(load_dataset(each.with_row_index("id"), replace(SPEC, label_delay=0.0))) for each in (table, shuffled))
    keys = ["time", "card", "amount", "shop", "till", "fraud"]
    position = table.with_row_index("a").join(shuffled.with_row_index("b"), on=keys, nulls_equal=True).sort("a")
    assert position.height == 300
    for name in LABEL_FIELDS:
        np.testing.assert_array_equal(straight[f"till_{name}"][position["a"]], mixed[f"till_{name}"][position["b"]], err_msg=name)
    # In the moment after those of its value before it, the entity is no matter.
    same = (table["time"].diff().fill_null(1) == 0) & (table["till"] == table["till"].shift(1))
    assert same.sum() > 50
    assert not straight["till_gap_log"][same.to_numpy()].any()


def test_null_is_a_value_without_earlier_rows() -> None:
    table = make_table(300, 7)
    found = by_row(load_dataset(table, SPEC))
    null, first = table["shop"].is_null().to_numpy(), int(table["shop"].is_not_null().arg_max() or 0)
    assert null.sum() > 10
    for name in NAMES:
        assert (found[f"shop_{name}"][null] == found[f"shop_{name}"][first]).all(), name


def test_an_earlier_schema_is_scored_without_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(300, 9)
    data = load_dataset(table, SPEC)
    added = {f"{column}_{name}" for column in SPEC.context for name in NAMES}
    fields = tuple(name for name in data.schema.numeric_fields if name not in added)
    old = Schema.from_dict(data.schema.to_dict() | {"numeric_fields": list(fields)})
    assert len(fields) == len(data.schema.numeric_fields) - 2 * len(NAMES)
    assert not any(has_label_fields(column, fields) or has_activity_fields(column, fields) for column in SPEC.context)

    def refuse(*_: object) -> None:
        raise AssertionError("computed for nothing")

    monkeypatch.setattr(context_past.TableContextPast, "labels", refuse)
    monkeypatch.setattr(context_past.TableContextPast, "activity", refuse)
    scored = load_dataset(table, SPEC, schema=old)
    kept = [data.schema.numeric_fields.index(name) for name in fields]
    np.testing.assert_array_equal(scored.store.values, data.store.values[:, kept])


def test_one_group_of_fields_alone() -> None:
    data = load_dataset(make_table(300, 9), SPEC)
    dropped = {f"{column}_{name}" for column in SPEC.context for name in LABEL_FIELDS}
    fields = [name for name in data.schema.numeric_fields if name not in dropped]
    schema = Schema.from_dict(data.schema.to_dict() | {"numeric_fields": fields})
    scored = load_dataset(make_table(300, 9), SPEC, schema=schema)
    kept = [data.schema.numeric_fields.index(name) for name in fields]
    np.testing.assert_array_equal(scored.store.values, data.store.values[:, kept])


def test_without_amounts_labels_or_rows() -> None:
    table = make_table(200, 2)
    data = load_dataset(table.drop("amount"), replace(SPEC, amount=None))
    names = data.schema.numeric_fields
    assert "till_gap_log" in names
    assert not {"till_amount_z_all", "till_level_shift_7d"} & set(names)
    unlabelled = load_dataset(table.drop("fraud"), replace(SPEC, label=None), need_label=False)
    values = unlabelled.store.values[:, [unlabelled.schema.numeric_fields.index(f"till_{name}") for name in LABEL_FIELDS]]
    assert (values == values[0]).all()
    nothing = np.zeros(0, np.int64)
    empty = TableContextPast(Events(np.zeros(0), nothing, np.zeros(0), {"x": nothing}), np.zeros(0, np.int16), 0.0)
    assert [name for name, _ in context_fields(empty, "x")] == [f"x_{name}" for name in NAMES]


def test_huge_amounts_stay_finite() -> None:
    amount = np.array([1e12, -1e12, 1e300, 0.0, 1e-300, 1e12])
    events = Events(np.arange(6, dtype=np.float64) * 60.0, np.zeros(6, np.int64), amount, {"shop": np.array([0, 1, -1, 0, 0, 1])})
    for name, column in context_fields(TableContextPast(events, np.array([1, 0, 1, -1, 0, 2], np.int16), 0.0), "shop"):
        assert column.dtype == np.float32
        assert np.isfinite(column).all(), name
