"""Whole tables: loading, scoring with a schema, bad input, the public streams."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from balancer.data.context_features import LABEL_FIELDS
from balancer.data.dataset import Dataset, load_dataset
from balancer.data.schema import Schema
from balancer.data.spec import DAY, Spec, SplitSpec, read_spec_file
from balancer.data.split import Split
from balancer.errors import InputError

SPEC = Spec(
    time="time",
    entity="card",
    label="fraud",
    amount="amount",
    id="id",
    numeric=("distance",),
    categorical=("kind",),
    context=("shop",),
    label_delay=2 * DAY,
)
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def make_table(rows: int = 1000, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    time = np.sort(rng.random(rows)) * 60 * DAY
    table = pl.DataFrame(
        {
            "id": np.arange(rows) + 5000,
            "time": time,
            "card": rng.integers(0, 40, rows),
            "amount": np.round(rng.lognormal(3, 1, rows), 2),
            "distance": rng.random(rows),
            "kind": rng.choice(["web", "pos", "atm"], rows, p=[0.6, 0.3, 0.1]),
            "shop": rng.choice(["s1", "s2", "s3"], rows),
            "fraud": (rng.random(rows) < 0.1).astype(np.int8),
            "note": "x",
        }
    )
    return table.with_columns(pl.when(pl.int_range(pl.len()) % 17 == 3).then(None).otherwise(pl.col("distance")).alias("distance"))


def change(table: pl.DataFrame, row: int, **cells: object) -> pl.DataFrame:
    return table.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(pl.col(name)).alias(name) for name, value in cells.items()
    )


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(make_table(), SPEC)


def test_store_is_sorted_and_points_back(data: Dataset) -> None:
    store, table = data.store, make_table()
    assert (np.lexsort((store.row, store.time, store.entity)) == np.arange(len(store))).all()
    assert sorted(store.row) == list(range(1000))
    np.testing.assert_array_equal(store.amount, table["amount"].to_numpy()[store.row])
    assert data.ids.equals(table["id"][store.row].alias(data.ids.name))
    assert [data.entities[code] for code in store.entity[:5]] == table["card"].cast(pl.String)[store.row[:5]].to_list()
    np.testing.assert_array_equal(store.start, np.searchsorted(store.entity, store.entity))
    place = data.schema.numeric_fields.index("distance")
    assert np.isfinite(np.delete(store.values, place, axis=1)).all()
    assert np.array_equal(np.isnan(store.values[:, place]), table["distance"].is_null().to_numpy()[store.row])
    assert store.values.shape[1] == store.num_numeric + 1 == len(data.schema.numeric_fields) + 1


def test_splits_and_rows(data: Dataset) -> None:
    assert np.bincount(data.split)[[Split.TRAIN, Split.TEST]].tolist() == [600, 200]
    spans = [data.store.time[data.rows(split)] for split in (Split.TRAIN, Split.REWARD, Split.THRESHOLD, Split.TEST)]
    assert all((np.diff(span) >= 0).all() for span in spans)
    assert spans[1][0] - spans[0][-1] >= 2 * DAY
    assert set(data.split[data.store.label < 0]) <= {Split.TRAIN, Split.GAP, Split.REWARD, Split.THRESHOLD, Split.TEST}


def test_learned_tables_come_from_train_only(data: Dataset) -> None:
    table = make_table()
    train = table[:600]
    assert data.schema.vocabularies == {"kind": ["web", "pos", "atm"]}
    assert data.schema.cardinalities == (4,)
    assert data.schema.fill["distance"] == pytest.approx(train["distance"].median(), abs=1e-6)
    later = table.with_columns(pl.when(pl.int_range(pl.len()) >= 600).then(pl.lit("new")).otherwise(pl.col("kind")).alias("kind"))
    again = load_dataset(later, SPEC)
    assert again.schema.vocabularies == data.schema.vocabularies
    assert set(again.store.values[again.split == Split.TEST, -1]) == {0.0}


def test_notes_and_fingerprint(data: Dataset) -> None:
    assert "columns without a role are left out: note" in data.notes
    assert "missing values in 1 column (distance) are kept as values" in data.notes
    table = make_table()
    assert load_dataset(table.with_columns(note=pl.lit("y")), SPEC).fingerprint == data.fingerprint
    assert load_dataset(change(table, 999, amount=1.0), SPEC).fingerprint != data.fingerprint
    assert load_dataset(table, replace(SPEC, label_delay=DAY)).fingerprint != data.fingerprint


def test_files_of_every_kind_agree(tmp_path: Path, data: Dataset) -> None:
    table = make_table()
    table.write_parquet(tmp_path / "t.parquet")
    table.write_csv(tmp_path / "t.csv")
    for name in ("t.parquet", "t.csv"):
        other = load_dataset(tmp_path / name, SPEC)
        assert other.schema == data.schema
        np.testing.assert_array_equal(other.store.label[np.argsort(other.store.row)], data.store.label[np.argsort(data.store.row)])
        np.testing.assert_array_equal(other.store.values[np.argsort(other.store.row)], data.store.values[np.argsort(data.store.row)])


def test_scoring_with_past_rows_builds_the_same_fields(data: Dataset) -> None:
    table = make_table()
    schema = Schema.from_dict(json.loads(json.dumps(data.schema.to_dict())))
    assert schema == data.schema
    scored = load_dataset(table[800:].drop("fraud", "note", "id"), schema.spec, schema=schema, past=table[:800])
    rows = scored.scored_rows()
    assert scored.store.row[rows].tolist() == list(range(200))
    assert (scored.split[rows] == Split.TEST).all()
    assert (scored.split == Split.GAP).sum() == 800
    assert scored.input_frame().equals(table[800:].drop("fraud", "note", "id"))
    expected = data.store.values[np.argsort(data.store.row)][800:]
    # Labels within the scored table can't be known, so only rows up to a delay after its start see the same
    # context.
    near = (table["time"][800:] <= table["time"][799] + SPEC.label_delay).to_numpy()
    np.testing.assert_array_equal(scored.store.values[rows][near], expected[near])
    from_labels = {f"shop_{name}" for name in LABEL_FIELDS}
    no_labels = [
        i
        for i, name in enumerate(schema.numeric_fields)
        if "_fraud_rate_" not in name and not name.startswith("shop_count_") and name not in from_labels
    ]
    np.testing.assert_array_equal(scored.store.values[rows][:, no_labels], expected[:, no_labels])


def test_scoring_the_unseen(data: Dataset) -> None:
    table = make_table()[:3].with_columns(
        card=pl.Series([1, 777, 778]), kind=pl.Series(["web", "moon", None]), shop=pl.Series(["s1", "s99", None])
    )
    scored = load_dataset(table, SPEC, schema=data.schema)
    rows = scored.scored_rows()
    assert scored.store.values[rows, -1].tolist() == [1, 0, 0]
    assert np.isfinite(scored.store.values).all()


def test_scoring_refuses_an_unknown_class(data: Dataset) -> None:
    with pytest.raises(InputError, match=r"column 'fraud': row 2 is none of the known classes \['0', '1'\] \('7'\)"):
        load_dataset(change(make_table(), 1, fraud=7), SPEC, schema=data.schema)


def test_table_without_entity_or_amount() -> None:
    table = make_table().drop("card", "amount")
    data = load_dataset(table, replace(SPEC, entity=None, amount=None))
    assert (data.store.start == np.arange(1000)).all()
    assert not {"gap_log", "amount_log", "kind_used"} & set(data.schema.numeric_fields)
    assert "shop_fraud_rate_7d" in data.schema.numeric_fields
    values, lengths = data.store.windows(np.array([5, 900]), 8)
    assert lengths.tolist() == [1, 1]
    assert not values[:, 1:].any()


def test_unlabelled_rows_are_masked_everywhere() -> None:
    table = make_table().with_columns(pl.when(pl.int_range(pl.len()) % 3 == 0).then(-1).otherwise(pl.col("fraud")).alias("fraud"))
    data = load_dataset(table, replace(SPEC, unlabelled="-1"))
    assert data.schema.classes == ("0", "1")
    assert (data.store.label == -1).sum() == 334
    assert (data.store.label[data.rows(Split.TRAIN)] >= 0).all()


def test_several_classes_by_name() -> None:
    names = pl.Series("fraud", np.array(["theft", "legit", "legit", "card testing"])[np.arange(1000) % 4])
    data = load_dataset(make_table().with_columns(names), SPEC)
    assert data.schema.classes == ("legit", "card testing", "theft")
    assert np.bincount(data.store.label).tolist() == [500, 250, 250]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (make_table().drop("amount"), r"no column 'amount' \(role amount\)"),
        (make_table().rename({"shop": "shopp"}), r"no column 'shop' \(role context\): did you mean 'shopp'"),
        (change(make_table(), 4, amount=float("nan")), "column 'amount': row 5 is NaN"),
        (change(make_table(), 4, amount=float("inf")), "column 'amount': row 5 is infinite"),
        (change(make_table(), 4, time=None), "column 'time': row 5 has no time"),
        (change(make_table(), 4, card=None), "column 'card': row 5 has no entity"),
        (change(make_table(), 4, id=5000), "column 'id': row 5 repeats the id"),
        (change(make_table(), 4, distance=1e300), "column 'distance': row 5 is beyond the range"),
        (make_table().with_columns(fraud=pl.lit(0)), "only the class '0'"),
        (make_table().with_columns(fraud=(pl.int_range(pl.len()) < 300).cast(pl.Int8)), "no positive row"),
        (change(make_table(), 999, fraud=2), "the class '2' has no row in train"),
        (make_table().clear(), "is empty"),
    ],
)
def test_bad_tables(table: pl.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(table, SPEC)


def test_short_span_names_the_gap_flag() -> None:
    with pytest.raises(InputError, match="--gap"):
        load_dataset(make_table(), replace(SPEC, split=SplitSpec(gap=8 * DAY)))


def test_bad_rows_dropped_and_counted() -> None:
    table = change(change(change(make_table(), 4, amount=float("nan")), 5, amount=float("nan")), 900, time=None)
    data = load_dataset(table, SPEC, bad_rows="drop")
    assert data.dropped == {"amount: is NaN": 2, "time: has no time (null)": 1}
    assert set(range(1000)) - set(data.store.row.tolist()) == {4, 5, 900}
    assert data.input_frame()["id"].equals(table["id"].gather(sorted(data.store.row)))
    with pytest.raises(InputError, match="every row is bad"):
        load_dataset(table.with_columns(amount=pl.lit(float("nan"))), SPEC, bad_rows="drop")


def test_refunds_and_huge_amounts_are_fine() -> None:
    data = load_dataset(change(change(make_table(), 4, amount=-50.0), 5, amount=1e12), replace(SPEC, numeric=()))
    assert np.isfinite(data.store.values).all()
    assert data.store.amount[data.store.row == 4] == -50.0


def test_one_missing_label_column_is_named() -> None:
    with pytest.raises(InputError, match="--label"):
        load_dataset(make_table(), replace(SPEC, label=None))


@pytest.mark.parametrize(("name", "classes"), [("handbook", 4), ("sparkov", 2)])
def test_public_streams(name: str, classes: int) -> None:
    path = SHARED / name / "transactions.parquet"
    if not path.exists():
        pytest.skip(f"needs {path.parent.name} in a folder `shared/data` beside the checkout")
    spec = Spec.from_dict(read_spec_file(Path(__file__).parents[2] / "benchmarks" / "lib" / "datasets" / f"{name}.toml"))
    # The first entities only: whole streams are for benchmarks/claims/ingest.py.
    table = pl.scan_parquet(path).filter(pl.col(str(spec.entity)).cast(pl.Int64) % (20 if name == "handbook" else 5) == 0).collect()
    data = load_dataset(table, spec)
    assert len(data.schema.classes) == classes
    assert len(data.store) == table.height
    assert np.isfinite(data.store.values).all()
