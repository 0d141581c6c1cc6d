"""Profiles of columns: the kind of the values whatever their type in the file, and null words."""

from __future__ import annotations

from datetime import date, datetime, time

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.tables.numbers import NULL_WORDS
from balancer.tables.options import ReadOptions
from balancer.tables.profile import ColumnProfile, is_null_word, profile


def of(values: list[object] | pl.Series, read: ReadOptions | None = None) -> ColumnProfile:
    series = values if isinstance(values, pl.Series) else pl.Series(values, strict=False)
    return profile(series.alias("x").to_frame(), read)["x"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, None], "empty"),
        (["", " ", "NA", "-"], "empty"),
        ([3, 3], "constant"),
        (["a", "a"], "constant"),
        ([True, False], "boolean"),
        (["Y", "N", "y", ""], "boolean"),
        (["OUI", "NON"], "boolean"),
        (["T", "F"], "boolean"),
        ([1, 2, 3], "integer"),
        (["1", "-2", "+3"], "integer"),
        ([1.0, 2.5], "number"),
        (["1.0", "2.0"], "number"),
        (["$1,250.00", "$3.10"], "number"),
        (["01", "02", "11"], "text"),
        (["a", "b"], "text"),
        ([date(2024, 1, 1), date(2024, 1, 2)], "date"),
        (["2024-01-31", "2024-02-01"], "date"),
        (["31/12/2024 10:15", "01/02/2024 00:00"], "date"),
        (["2024-01-31T10:00:00+02:00", "2024-02-01T10:00:00Z"], "date"),
        (["3 Jan 2024", "14 February 2024"], "date"),
        (["20240131", "20240201"], "date"),
        ([20240131, 20240201], "date"),
        (["10:15:00", "23:59:59"], "time"),
        ([time(1), time(2)], "time"),
        (["10.0.0.1", "192.168.1.20"], "text"),
        ([[1], [2]], "other"),
    ],
)
def test_kinds(values: list[object], kind: str) -> None:
    assert of(values).kind == kind


@pytest.mark.parametrize("word", sorted(NULL_WORDS))
def test_a_null_word_does_not_change_the_kind(word: str) -> None:
    column = of(["1.5", "2.5", word.upper(), "4.5"])
    assert (column.kind, column.missing, column.distinct) == ("number", 0.25, 3)
    assert column.first == ("1.5", "2.5", "4.5")


def test_null_words_of_the_user() -> None:
    assert of(["1", "2", "not.v"]).kind == "text"
    assert of(["1", "2", "not.v"], ReadOptions(null_values=("NOT.V",))).kind == "integer"


@given(st.text(max_size=8))
def test_null_words_are_compared_in_lower_case(text: str) -> None:
    assert is_null_word(pl.Series([text, None]), ReadOptions()).to_list() == [text.lower() in NULL_WORDS, False]


def test_a_fault_in_a_long_column_of_numbers_is_left_to_its_check() -> None:
    assert of([*map(str, range(1000)), "12,5x"]).kind == "integer"
    assert of(["1", "2", "A"] * 300).kind == "text"


def test_figures() -> None:
    column = of(pl.Series([5411, 5812, None, 5411]))
    assert (column.distinct, column.missing, column.low, column.high, column.digits, column.whole) == (2, 0.25, 5411, 5812, 4, True)
    assert (column.present, column.repeats, column.numeric, column.unique) == (3, 1.5, True, False)
    assert of([1, 22]).digits is None
    assert of([1.0, 2.0, None]).whole and not of([1.0, 2.5]).whole
    assert of([float("inf"), 1.0]).high == 1.0
    assert of([float("nan"), 1.0]).missing == 0.5
    assert of(["a b", "c"]).words == 0.5
    assert of([datetime(2024, 1, 1), datetime(2024, 1, 2)]).clock and not of(["2024-01-01", "2024-01-02"]).clock


def test_a_sample_has_the_distinct_values_of_the_whole_table() -> None:
    column = profile(pl.DataFrame({"x": [1, 2, 2]}), rows=300, distinct={"x": 90})["x"]
    assert (column.rows, column.distinct, column.unique) == (300, 90, False)
    unique = profile(pl.DataFrame({"x": [1, 2, None]}), rows=300, distinct={"x": 190})["x"]
    assert (unique.distinct, unique.unique) == (200, True)  # the estimate is some per cent off


@given(st.lists(st.one_of(st.none(), st.integers(-(10**6), 10**6)), min_size=1, max_size=30))
def test_numbers_have_the_same_profile_as_text(values: list[int | None]) -> None:
    typed = of(pl.Series(values, dtype=pl.Int64))
    text = of(pl.Series([None if value is None else str(value) for value in values], dtype=pl.String))
    assert text == typed


@given(st.lists(st.one_of(st.none(), st.text(max_size=6), st.floats().map(str), st.dates().map(str)), max_size=30))
def test_any_text_has_a_profile(values: list[str | None]) -> None:
    column = of(pl.Series(values, dtype=pl.String))
    assert 0 <= column.missing <= 1 and column.distinct <= len(values) and len(column.first) <= 3


def test_phone_numbers_and_versions_are_no_numbers() -> None:
    frame = pl.DataFrame(
        {
            "phone": [f"+4917{row:08}" for row in range(400)],
            "spaced": [f"+49 170 {row:07}" for row in range(400)],
            "signed": [f"+{row}.50" for row in range(400)],
            "version": ["1.0", "1.10", "2.0", "1.9"] * 100,
            "price": ["1.0", "1.1", "2.0", "1.25"] * 100,
            "fixed": ["1.00", "1.10", "2.00", "1.25"] * 100,
        }
    )
    kinds = {name: each.kind for name, each in profile(frame).items()}
    assert kinds == dict.fromkeys(("phone", "spaced", "version"), "text") | dict.fromkeys(("signed", "price", "fixed"), "number")


def test_one_unknown_word_leaves_numbers_numbers() -> None:
    numbers = [str(7 * row % 9) for row in range(990)]
    assert of([*numbers, "nix"]).kind == "integer"
    assert of([*numbers, *["nix"] * 20]).kind == "text"
    assert of([*(str(row % 3) for row in range(990)), "other"]).kind == "text"
    assert of([*numbers, "nix", "nada"]).kind == "text"
    assert of([*map(str, range(7, 700, 7)), *["nix"] * 9, *map(str, range(7))]).kind == "integer"


@pytest.mark.parametrize("form", ["%b-%Y", "%Y-%m", "%B %Y", "%b-%y"])
def test_months_are_dates(form: str) -> None:
    column = of([date(2012 + row // 12 % 9, row % 12 + 1, 1).strftime(form) for row in range(300)])
    assert (column.kind, column.clock) == ("date", False)
    assert of(["Mark-10", "Mayor-20", "Zone-12"] * 100).kind == "text"
