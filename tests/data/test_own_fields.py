"""Columns and derived fields with the same name are kept apart, missing numbers are values, every value of
the store is written, and categories and keys are compared by their normal form."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.field_words import FieldWords
from balancer.data.schema import MOST_CODES, RARE, Schema, learn_vocabulary
from balancer.data.spec import Spec
from balancer.data.split import Split
from balancer.errors import InputError
from tests.data.test_dataset import SPEC, change, make_table

TABLE = make_table()
FIELDS = load_dataset(TABLE, SPEC).schema.numeric_fields
DERIVED = [name for name in FIELDS if name != "distance"]


def column_of(data: Dataset, field: str) -> np.ndarray:
    schema = data.schema
    return data.store.values[:, (*schema.numeric_fields, *schema.categorical_fields).index(field)]


@pytest.mark.parametrize("name", [*DERIVED, "stage1_logit", "stage1_previous_1", "stage1_sum_7d"])
def test_a_numeric_column_with_the_name_of_a_derived_field_is_kept_apart(name: str) -> None:
    own = np.random.default_rng(0).normal(size=TABLE.height).astype(np.float32)
    spec = replace(SPEC, numeric=("distance", name))
    for score_fields in (False, True):
        data = load_dataset(TABLE.with_columns(pl.Series(name, own)), spec, score_fields=score_fields)
        field = f"column:{name}"
        assert np.array_equal(column_of(data, field), own[data.store.row])
        plain = load_dataset(TABLE, SPEC, score_fields=score_fields)
        for other in plain.schema.numeric_fields:
            assert np.array_equal(column_of(data, other), column_of(plain, other), equal_nan=True)
        assert any(f"{name} is {field}" in note for note in data.notes)
        assert FieldWords(data.schema).words(field) == name
        assert Schema.from_dict(json.loads(json.dumps(data.schema.to_dict()))) == data.schema
        again = load_dataset(TABLE.with_columns(pl.Series(name, own)), spec, schema=data.schema)
        assert np.array_equal(column_of(again, field), own[again.store.row])


@pytest.mark.parametrize("name", ["hour", "kind_used", "distance", "shop_count_7d"])
def test_a_categorical_column_with_a_taken_name_is_kept_apart(name: str) -> None:
    values = TABLE["kind"] if name != "distance" else TABLE["distance"]
    spec = replace(SPEC, categorical=("kind", name))
    data = load_dataset(TABLE.with_columns(values.alias(name)), spec)
    field = f"column:{name}"
    assert data.schema.categorical_fields == ("kind", field)
    assert data.schema.cardinalities == tuple(len(data.schema.vocabularies[each]) + 1 for each in ("kind", field))
    if name != "distance":
        assert np.array_equal(column_of(data, field), column_of(data, "kind"))
        assert FieldWords(data.schema).value(field, 1.0) == "web"
        assert FieldWords(data.schema).words(field) == name


def test_columns_that_have_our_prefix_themselves() -> None:
    own = {name: np.random.default_rng(seed).normal(size=1000) for seed, name in enumerate(("hour", "column:hour"))}
    data = load_dataset(TABLE.with_columns(**own), replace(SPEC, numeric=("hour", "column:hour")))
    assert data.schema.numeric_fields[-2:] == ("column:hour", "column:column:hour")
    assert np.array_equal(column_of(data, "column:column:hour"), own["column:hour"][data.store.row].astype(np.float32))
    assert data.schema.own_fields == {"hour": "column:hour", "column:hour": "column:column:hour"}


def test_two_columns_that_give_one_derived_field_are_named() -> None:
    table = TABLE.with_columns(previous_kind=pl.col("kind"))
    with pytest.raises(InputError, match="two fields of the table have the name 'previous_kind_amount_"):
        load_dataset(table, replace(SPEC, categorical=("kind", "previous_kind")))


@given(st.lists(st.sampled_from([*DERIVED, "kind_used", "column:hour", "is_first", "x"]), unique=True, max_size=6), st.integers(0, 99))
@settings(max_examples=15)
def test_every_value_is_defined(names: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = TABLE.with_columns(**{name: rng.normal(size=1000) for name in names})
    spec = replace(SPEC, numeric=tuple(names[::2]), categorical=("kind", *names[1::2]))
    loads = []
    for fill in (1e30, -3e20):
        junk = [np.full((1000, 100), fill, np.float32) for _ in range(4)]
        del junk  # freed memory is what an unwritten array shows
        loads.append(load_dataset(table, spec).store.values)
    assert np.array_equal(*loads)
    assert np.isfinite(loads[0]).all()


def test_missing_numbers_stay_missing_and_new_ones_are_filled() -> None:
    table = TABLE.with_columns(full=pl.int_range(1000).cast(pl.Float64))
    spec = replace(SPEC, numeric=("distance", "full"))
    data = load_dataset(table, spec)
    assert data.schema.missing == ("distance",)
    assert "missing values in 1 column (distance) are kept as values" in data.notes
    later = change(change(table, 4, full=None), 4, distance=None)
    scored = load_dataset(later, spec, schema=data.schema)
    place = int(np.flatnonzero(scored.store.row == 4)[0])
    assert np.isnan(column_of(scored, "distance")[place])
    assert column_of(scored, "full")[place] == np.float32(data.schema.fill["full"])
    assert "missing values in 1 column (full) are filled with the training median" in scored.notes
    as_before = load_dataset(table, spec, earlier=True)
    assert as_before.schema.missing == () and np.isfinite(as_before.store.values).all()
    assert {"values", "missing", "columns", "joined"}.isdisjoint(as_before.schema.to_dict())


def test_one_note_for_many_columns() -> None:
    names = [f"D{number}" for number in range(1, 41)]
    holes = pl.when(pl.int_range(1000) % 7 == 0).then(None).otherwise(1.5)
    data = load_dataset(TABLE.with_columns(holes.alias(name) for name in names), replace(SPEC, numeric=tuple(names)))
    (note,) = [note for note in data.notes if "missing" in note]
    assert note == "missing values in 40 columns (D1, D2, D3, D4, D5, ...) are kept as values"


TYPES: dict[str, pl.Series] = {
    "Int64": pl.Series([1, 2, 3]),
    "UInt8": pl.Series([1, 2, 3], dtype=pl.UInt8),
    "Float64": pl.Series([1.0, 2.0, 3.0]),
    "Float32": pl.Series([1.0, 2.0, 3.0], dtype=pl.Float32),
    "String": pl.Series(["1", "2", "3"]),
    "String of floats": pl.Series(["1.0", " 2.0", "3.0 "]),
    "Categorical": pl.Series(["1", "2", "3"], dtype=pl.Categorical),
    "Enum": pl.Series(["1", "2", "3"], dtype=pl.Enum(["3", "2", "1"])),
    "Decimal": pl.Series([Decimal("1.00"), Decimal("2.00"), Decimal("3.00")]),
}
TRUTH: dict[str, pl.Series] = {
    "Boolean": pl.Series([True, False, True]),
    "String": pl.Series(["true", "false", "true"]),
    "pandas": pl.Series(["True", "False", "True"]),
    "Excel": pl.Series(["TRUE", "FALSE", "TRUE"]),
}
DAYS: dict[str, pl.Series] = {
    "Date": pl.Series([dt.date(2024, 1, day) for day in (1, 2, 3)]),
    "Datetime": pl.Series([dt.datetime(2024, 1, day) for day in (1, 2, 3)]),
    "String": pl.Series([f"2024-01-0{day}" for day in (1, 2, 3)]),
}
NAMES: dict[str, pl.Series] = {
    "composed": pl.Series(["Caf\u00e9", "\u00c5", "x"]),
    "decomposed": pl.Series(["Cafe\u0301", "A\u030a", "x\u00a0"]),
}


@pytest.mark.parametrize("kinds", [TYPES, TRUTH, DAYS, NAMES], ids=["numbers", "truth", "days", "names"])
@pytest.mark.parametrize("role", ["categorical", "context", "entity"])
def test_values_are_equal_in_every_type(kinds: dict[str, pl.Series], role: str) -> None:
    index = np.random.default_rng(0).integers(0, 3, TABLE.height)
    spec = replace(SPEC, **{"categorical": {"categorical": ("v",)}, "context": {"context": ("v",)}, "entity": {"entity": "v"}}[role])  # type: ignore[arg-type]
    (_, first), *others = ((kind, TABLE.with_columns(values.gather(index).alias("v"))) for kind, values in kinds.items())
    data = load_dataset(first, spec)
    for kind, table in others:
        trained = load_dataset(table, spec)
        assert trained.schema.vocabularies == data.schema.vocabularies, kind
        assert trained.entities == data.entities, kind
        for later in (load_dataset(table, spec, schema=data.schema), load_dataset(table[500:], spec, schema=data.schema, past=first[:500])):
            order, expected = later.scored_rows(), load_dataset(first, spec, schema=data.schema)
            part = expected.scored_rows()[-len(order) :]
            same = np.array_equal(later.store.values[order, -1], expected.store.values[part, -1], equal_nan=True)
            assert same, kind


def test_past_rows_of_another_type_are_the_same_history(tmp_path: Path) -> None:
    data = load_dataset(TABLE, SPEC)
    expected = load_dataset(TABLE[800:], SPEC, schema=data.schema, past=TABLE[:800])
    TABLE[:800].write_csv(tmp_path / "past.csv")
    others = [tmp_path / "past.csv", TABLE[:800].with_columns(pl.col("card", "id").cast(pl.Float64), pl.col("kind").cast(pl.Categorical))]
    for past in others:
        found = load_dataset(TABLE[800:], SPEC, schema=data.schema, past=past)
        assert np.array_equal(found.store.values, expected.store.values, equal_nan=True)
        assert found.entities == expected.entities


@pytest.mark.parametrize(
    ("lost", "what"),
    [
        (None, "no entity"),
        ("", "no entity"),
        ("  ", "no entity"),
        ("nan", "a word"),
        ("NULL", "a word"),
        ("None", "a word"),
        ("\u00a0", "no entity"),
    ],
)
def test_rows_of_nobody_are_refused_or_dropped(lost: str | None, what: str) -> None:
    table = change(TABLE.with_columns(pl.col("card").cast(pl.String)), 6, card=lost)
    with pytest.raises(InputError, match=rf"column 'card': row 7 has {what}.*--bad-rows drop"):
        load_dataset(table, SPEC)
    data = load_dataset(table, SPEC, bad_rows="drop")
    assert sum(data.dropped.values()) == 1 and len(data.store) == 999


def test_a_number_that_is_nan_is_nobody() -> None:
    table = change(TABLE.with_columns(pl.col("card").cast(pl.Float64)), 6, card=float("nan"))
    with pytest.raises(InputError, match="column 'card': row 7 has no entity"):
        load_dataset(table, SPEC)


JOINED = Spec.from_dict(SPEC.to_dict() | {"entity": ["card", "region"], "context": ["shop", ["shop", "kind"]]})


def joined_table() -> pl.DataFrame:
    rng = np.random.default_rng(3)
    region = [None if value == 0 else float(value) for value in rng.integers(0, 3, TABLE.height)]
    return TABLE.with_columns(region=pl.Series(region))


def test_joined_keys_are_those_of_a_column_made_by_hand() -> None:
    table = joined_table()
    by_hand = table.with_columns(
        who=pl.concat_str(pl.col("card").cast(pl.String), pl.col("region").cast(pl.Int64).cast(pl.String).fill_null("none"), separator="/"),
        where=pl.concat_str("shop", "kind", separator="/"),
    )
    data = load_dataset(table, JOINED)
    wanted = load_dataset(by_hand, replace(SPEC, entity="who", context=("shop", "where")))
    assert data.schema.joined == {"card+region": ("card", "region"), "shop+kind": ("shop", "kind")}
    assert len(data.entities) == len(wanted.entities) and "7+\\N" in data.entities
    for name, other in zip(data.schema.numeric_fields, wanted.schema.numeric_fields, strict=True):
        assert name == other.replace("where_", "shop+kind_", 1)
        one, two = column_of(data, name)[np.argsort(data.store.row)], column_of(wanted, other)[np.argsort(wanted.store.row)]
        assert np.array_equal(one, two, equal_nan=True), name
    assert not any("without a role" in note and ("region" in note or "card" in note) for note in data.notes)
    scored = load_dataset(table[900:], JOINED, schema=Schema.from_dict(data.schema.to_dict()), past=table[:900])
    assert set(scored.entities) <= set(data.entities)
    assert FieldWords(data.schema).words("shop+kind_gap_log") == "time since the previous transaction of this shop and kind"


def test_a_joined_entity_without_any_part_is_refused() -> None:
    table = change(change(joined_table(), 5, card=None), 5, region=None)
    with pytest.raises(InputError, match=r"column 'card\+region': row 6 has no entity"):
        load_dataset(table, JOINED)
    with pytest.raises(InputError, match=r"no column 'region' \(role entity, a part of 'card\+region'\)"):
        load_dataset(TABLE, JOINED)


def test_a_column_with_a_plus_in_its_name_wins() -> None:
    table = joined_table().with_columns(pl.lit("one").alias("card+region"))
    data = load_dataset(table, replace(SPEC, entity="card+region"))
    assert data.entities == ["one"] and data.schema.joined == {}


def test_codes_with_many_values_are_limited() -> None:
    rng = np.random.default_rng(0)
    codes = pl.Series("code", (3000 * rng.random(40_000) ** 2).astype(int)).cast(pl.String)
    train = np.ones(len(codes), dtype=np.bool_)
    every, some = learn_vocabulary(codes, train), learn_vocabulary(codes, train, many=100)
    counts = dict(codes.value_counts().iter_rows())
    assert len(every) > MOST_CODES and some == [code for code in every if counts[code] >= RARE][:MOST_CODES]
    few = codes.head(2000).cast(pl.Int64) % 100
    assert learn_vocabulary(few, train[:2000], many=100) == learn_vocabulary(few, train[:2000])


def test_the_store_of_a_loaded_run_is_that_of_its_training() -> None:
    table = joined_table().with_columns(hour=pl.lit(3.5), code=pl.int_range(1000) % 300)
    spec = replace(JOINED, numeric=("distance", "hour"), categorical=("kind", "code"))
    data = load_dataset(table, spec, score_fields=True, hash_buckets=4)
    schema = Schema.from_dict(json.loads(json.dumps(data.schema.to_dict())))
    again = load_dataset(table, spec, like=schema)
    assert again.schema == data.schema
    assert np.array_equal(again.store.values, data.store.values, equal_nan=True)
    assert np.array_equal(again.split, data.split) and (again.split == Split.TRAIN).any()


def test_codes_of_another_schema_bring_their_form() -> None:
    old = load_dataset(TABLE.with_columns(pl.col("kind") + " "), SPEC, earlier=True).schema
    assert old.vocabularies == {"kind": ["web ", "pos ", "atm "]}
    new = load_dataset(TABLE.with_columns(pl.col("kind") + " "), SPEC, codes=old)
    assert new.schema.encodes_like(old) and not new.schema.missing
    assert not load_dataset(TABLE, SPEC).schema.encodes_like(old)


def test_labels_in_every_spelling() -> None:
    texts: dict[str, Any] = {
        "Boolean": TABLE["fraud"].cast(pl.Boolean),
        "pandas": TABLE["fraud"].cast(pl.Boolean).cast(pl.String).str.to_titlecase(),
        "upper": TABLE["fraud"].cast(pl.Boolean).cast(pl.String).str.to_uppercase(),
    }
    loads = {kind: load_dataset(TABLE.with_columns(fraud=values), replace(SPEC, negative="False")) for kind, values in texts.items()}
    for data in loads.values():
        assert data.schema.classes == ("false", "true")
        assert np.array_equal(data.store.label, loads["Boolean"].store.label)
    old = replace(loads["pandas"].schema, classes=("False", "True"))  # as an earlier version named them
    assert np.array_equal(
        load_dataset(TABLE.with_columns(fraud=texts["pandas"]), SPEC, schema=old).store.label, loads["Boolean"].store.label
    )
