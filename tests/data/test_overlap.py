"""A row is never its own past, and a past in any format gives the same store as in any other."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.simulation.stream import simulate
from balancer.data.spec import Spec

FORMATS = ("parquet", "csv", "csv.gz", "jsonl")


def simulated() -> tuple[pl.DataFrame, Spec]:
    table = simulate(4000, seed=5, fraud_rate=0.03)
    return table, resolve_spec(table, overrides={"gap": "1d"})


TABLE, SPEC = simulated()
SCHEMA = load_dataset(TABLE, SPEC).schema
PAST, NOW = TABLE[:3000], TABLE[3000:]


def write(frame: pl.DataFrame, folder: Path, name: str, ending: str) -> Path:
    """Write a table as people export it."""
    path = folder / f"{name}.{ending}"
    times = frame.with_columns(pl.col("time").dt.strftime("%Y-%m-%d %H:%M:%S"))
    if ending == "parquet":
        frame.write_parquet(path)
    elif ending == "csv":
        times.write_csv(path)
    elif ending == "csv.gz":
        path.write_bytes(gzip.compress(times.write_csv().encode()))
    else:
        times.write_ndjson(path)
    return path


def scored(now: pl.DataFrame | Path, past: pl.DataFrame | Path | None, spec: Spec = SPEC) -> Dataset:
    schema = SCHEMA if spec is SPEC else load_dataset(TABLE, spec).schema
    return load_dataset(now, spec, schema=schema, past=past)


def same(one: Dataset, other: Dataset, *, all_rows: bool = True) -> bool:
    """Whether two data sets have the same store, bit for bit; or only the rows of the input."""
    first, second = (slice(None) if all_rows else data.scored_rows() for data in (one, other))
    arrays = ("values", "time", "label", "amount", "row")
    return all(np.array_equal(getattr(one.store, name)[first], getattr(other.store, name)[second], equal_nan=True) for name in arrays)


@pytest.mark.parametrize(("of_past", "of_input"), [*itertools.product(FORMATS, FORMATS)])
def test_every_pair_of_formats_gives_the_same_store(of_past: str, of_input: str, tmp_path: Path) -> None:
    found = scored(write(NOW, tmp_path, "now", of_input), write(PAST, tmp_path, "past", of_past))
    wanted = scored(NOW, PAST)
    assert same(found, wanted)
    assert found.entities == wanted.entities
    assert found.ids.cast(pl.String).to_list() == wanted.ids.cast(pl.String).to_list()


@given(st.data())
def test_types_of_the_past_do_not_matter(data: st.DataObject) -> None:
    choices = {
        "card_id": [pl.String, pl.Categorical],
        "transaction_id": [pl.Int64, pl.Int32, pl.Float64, pl.String],
        "amount": [pl.Float64, pl.String],
        "is_fraud": [pl.Int8, pl.Int64, pl.Float64, pl.Boolean, pl.String],
        "time": [pl.Datetime("us"), pl.Datetime("ms"), pl.Datetime("ns")],
    }
    drawn = [pl.col(name).cast(data.draw(st.sampled_from(kinds))) for name, kinds in choices.items() if name in PAST.columns]
    assert same(scored(NOW, PAST.with_columns(drawn)), scored(NOW, PAST))


@pytest.mark.parametrize("kind", [pl.Int64, pl.Float64, pl.String])
def test_rows_of_the_input_are_left_out_by_id(kind: type[pl.DataType], tmp_path: Path) -> None:
    whole = TABLE.with_columns(pl.col("transaction_id").cast(kind))
    wanted = scored(NOW, PAST)
    for past in (whole, write(whole, tmp_path, "whole", "csv")):
        found = scored(NOW, past)
        assert same(found, wanted)
        assert "1,000 rows of --past are rows of the input too (same transaction_id) and are left out of it" in found.notes
        assert not found.cautions
    assert not [note for note in wanted.notes if "input too" in note]


def test_an_id_of_another_row_is_said() -> None:
    found = scored(NOW, PAST.with_columns(transaction_id=pl.col("transaction_id") + 3000))
    assert "1,000 rows of --past are rows" in found.notes[-1] or any("1,000 rows of --past" in note for note in found.notes)
    assert any("unique over both tables" in caution for caution in found.cautions)


def test_without_an_id_equal_rows_are_left_out() -> None:
    spec = resolve_spec(TABLE.drop("transaction_id"), overrides={"gap": "1d"})
    assert spec.id is None
    wanted = scored(NOW, PAST, spec)
    relabelled = TABLE.with_columns(is_fraud=pl.lit(0, pl.Int8))
    for past in (TABLE, relabelled):
        assert same(scored(NOW, past, spec), wanted, all_rows=False) or past is relabelled
        found = scored(NOW, past, spec)
        assert any("(equal in every used column but the label)" in note for note in found.notes)
        assert len(found.store) == len(wanted.store)
        assert not found.cautions


def test_equal_rows_that_may_be_different_ones_are_said() -> None:
    spec = resolve_spec(TABLE.drop("transaction_id"), overrides={"gap": "1d"})
    twice = pl.concat([TABLE, NOW[:1]]).sort("time", maintain_order=True)
    found = scored(NOW, twice, spec)
    assert any("may be different transactions" in caution for caution in found.cautions)
    assert len(found.store) == 4000


def test_a_past_that_is_the_input_leaves_no_past() -> None:
    alone, found = scored(NOW, None), scored(NOW, NOW)
    assert same(alone, found)
    one = scored(NOW, pl.concat([PAST, NOW[:1]]))
    assert any(note.startswith("1 row of --past is a row of the input too") for note in one.notes)


@given(st.integers(0, 2999), st.integers(3000, 3999), st.booleans())
def test_any_slice_of_the_table_as_past(first: int, last: int, with_id: bool) -> None:
    columns = [] if with_id else ["transaction_id"]
    spec = SPEC if with_id else resolve_spec(TABLE.drop("transaction_id"), overrides={"gap": "1d"})
    rows = TABLE.drop(columns)
    found, wanted = (scored(rows[3000:], rows[first:end], spec) for end in (last, 3000))
    assert same(found, wanted, all_rows=False)
    assert len(found.store) == len(wanted.store)
