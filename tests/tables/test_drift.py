"""Columns whose type differs between the files of a table."""

from __future__ import annotations

import datetime as dt
import itertools

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.tables.drift import Part, unite
from balancer.tables.values import normal_form


def united(*columns: pl.Series) -> pl.Series:
    parts = [Part(f"{number}.parquet", pl.LazyFrame({"x": values}), {"x": values.dtype}) for number, values in enumerate(columns)]
    return unite(parts).frame.collect()["x"]


DAY, MOMENT = dt.date(2024, 1, 1), dt.datetime(2024, 1, 2, 3)


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        (pl.Series([1], dtype=pl.Int8), pl.Series([2], dtype=pl.UInt32), [1, 2]),
        (pl.Series([1.5], dtype=pl.Float32), pl.Series([2.5]), [1.5, 2.5]),
        (pl.Series([2**53]), pl.Series([0.5]), [2.0**53, 0.5]),
        (pl.Series([True]), pl.Series([0]), [1, 0]),
        (pl.Series([DAY]), pl.Series([MOMENT], dtype=pl.Datetime("ms")), [dt.datetime(2024, 1, 1), MOMENT]),
        (pl.Series([MOMENT], dtype=pl.Datetime("ns")), pl.Series([MOMENT], dtype=pl.Datetime("ms")), [MOMENT, MOMENT]),
        (pl.Series([5012]), pl.Series(["5012"]), ["5012", "5012"]),
        (pl.Series([1.0, 2.5]), pl.Series(["a"]), ["1", "2.5", "a"]),
        (pl.Series([MOMENT]), pl.Series(["2024-01-05 10:00"]), ["2024-01-02 03:00:00", "2024-01-05 10:00"]),
        (pl.Series([None], dtype=pl.Null), pl.Series([1]), [None, 1]),
        (pl.Series(["a"], dtype=pl.Categorical), pl.Series(["b"]), ["a", "b"]),
    ],
)
def test_types_that_hold_all_values(first: pl.Series, second: pl.Series, result: list[object]) -> None:
    assert united(first, second).to_list() == result
    assert united(second, first).to_list() == result[len(first) :] + result[: len(first)]


@pytest.mark.parametrize(
    ("first", "second", "types"),
    [
        (pl.Series([2**53 + 1]), pl.Series([0.5]), ("int64 in ", "float64 in ")),
        (pl.Series([2**63], dtype=pl.UInt64), pl.Series([-1]), ("uint64", " int64")),
        (pl.Series([MOMENT]), pl.Series(["01/02/2024"]), ("datetime in us", "text")),
        (pl.Series([[1]]), pl.Series([1]), ("list of int64", " int64 in ")),
        (pl.Series([MOMENT]), pl.Series([MOMENT]).dt.replace_time_zone("UTC"), ("datetime in us in ", "datetime in us (UTC)")),
        (pl.Series([dt.datetime(3024, 1, 1)], dtype=pl.Datetime("ms")), pl.Series([MOMENT], dtype=pl.Datetime("ns")), ("in ms", "in ns")),
    ],
)
def test_a_loss_names_both_files_and_types(first: pl.Series, second: pl.Series, types: tuple[str, ...]) -> None:
    for pair in itertools.permutations((first, second)):
        with pytest.raises(InputError, match=r"column 'x' is .*, and no type holds the values of both") as caught:
            united(*pair)
        assert all(word in str(caught.value) for word in types)


TYPES = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.Float32, pl.Float64, pl.String)


@given(st.lists(st.tuples(st.lists(st.integers(0, 127), min_size=1, max_size=3), st.sampled_from(TYPES)), min_size=1, max_size=5))
def test_values_of_any_types_stay_equal(parts: list[tuple[list[int], type[pl.DataType]]]) -> None:
    columns = [pl.Series(values).cast(dtype) for values, dtype in parts]
    assert normal_form(united(*columns)).to_list() == [str(value) for values, _ in parts for value in values]
