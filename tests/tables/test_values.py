from __future__ import annotations

import datetime as dt
import unicodedata
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.tables.joined import join_texts, parts
from balancer.tables.keys import join_columns
from balancer.tables.values import is_nobody, normal_form, normal_text

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ODD = st.sampled_from(
    [
        "1.0",
        "-0",
        "-0.0",
        "01",
        "00.0",
        "+1",
        "1.",
        "1.00",
        ".0",
        "TRUE",
        "tRue",
        "false ",
        "\x1c1",
        "\u00a0x\u3000",
        "\x85",
        "\u200b",
        "１.0",
    ]
)
FLOAT = st.floats() | st.integers(-(2**60), 2**60).map(float)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([1, 2]), ["1", "2"]),
        (pl.Series([1, 2], dtype=pl.UInt8), ["1", "2"]),
        (pl.Series([1.0, -0.0, 2.5, float("nan"), None]), ["1", "0", "2.5", None, None]),
        (pl.Series([0.1, 16777216.0], dtype=pl.Float32), ["0.1", "16777216"]),
        (pl.Series(["1.0", "1", "01", "1.50", "-0.0"]), ["1", "1", "01", "1.50", "0"]),
        (pl.Series([True, False, None]), ["true", "false", None]),
        (pl.Series(["True", "FALSE", "true", "yes"]), ["true", "false", "true", "yes"]),
        (pl.Series(["Cafe\u0301", "Caf\u00e9", "\u00a0a\u3000"]), ["Caf\u00e9", "Caf\u00e9", "a"]),
        (pl.Series(["", "  ", "\t", None, "x"]), [None, None, None, None, "x"]),
        (pl.Series(["b", "1.0", None], dtype=pl.Categorical), ["b", "1", None]),
        (pl.Series(["b ", None], dtype=pl.Enum(["b "])), ["b", None]),
        (pl.Series([Decimal("1.00"), Decimal("0.10"), Decimal("100"), Decimal("-0.00")]), ["1", "0.1", "100", "0"]),
        (pl.Series([dt.date(2024, 5, 31)]), ["2024-05-31"]),
        (pl.Series([dt.datetime(2024, 5, 31), dt.datetime(2024, 5, 31, 1, 2, 3)]), ["2024-05-31", "2024-05-31T01:02:03"]),
        (pl.Series([None, None]), [None, None]),
    ],
)
def test_equal_values_have_one_normal_form(values: pl.Series, expected: list[str | None]) -> None:
    found = normal_form(values.alias("column"))
    assert found.dtype == pl.String and found.name == "column"
    assert found.to_list() == expected
    assert [normal_text(value) for value in values.to_list()] == expected or values.dtype == pl.Float32


@given(st.lists(TEXT | ODD | st.none(), max_size=6))
def test_one_text_is_converted_as_a_column_is(values: list[str | None]) -> None:
    found = normal_form(pl.Series(values, dtype=pl.String)).to_list()
    assert found == [normal_text(value) for value in values]
    assert normal_form(pl.Series(found, dtype=pl.String)).to_list() == found, "a normal form is its own normal form"


@given(st.lists(FLOAT, max_size=6))
def test_one_number_is_converted_as_a_column_is(values: list[float]) -> None:
    column = pl.Series(values, dtype=pl.Float64)
    found = normal_form(column).to_list()
    assert found == [normal_text(value) for value in values]
    assert normal_form(pl.Series(found, dtype=pl.String)).to_list() == found, "the text of a number is the number"


@given(st.integers(-(2**63), 2**63 - 1))
def test_whole_numbers_are_equal_in_every_type(value: int) -> None:
    expected = [str(value)]
    assert normal_form(pl.Series([value], dtype=pl.Int64)).to_list() == expected
    assert normal_form(pl.Series([f" {value}.0"])).to_list() == expected
    assert normal_text(value) == expected[0]
    if abs(value) < 2**53:
        assert normal_form(pl.Series([float(value)])).to_list() == expected


@given(TEXT)
def test_composed_and_decomposed_text_are_equal(text: str) -> None:
    assert normal_text(unicodedata.normalize("NFD", text)) == normal_text(unicodedata.normalize("NFC", text))


def test_a_list_has_no_normal_form() -> None:
    with pytest.raises(InputError, match="'tags' is list"):
        normal_form(pl.Series("tags", [["a"]]))
    with pytest.raises(InputError, match="a list can't be"):
        normal_text(["a"])
    with pytest.raises(InputError, match="half of a character"):
        normal_text("a\ud800")


def test_words_for_a_missing_value() -> None:
    values = pl.Series(["nan", "NULL", "None", "card", None, "n/a"])
    assert is_nobody(values).to_list() == [True, True, True, False, False, True]


@given(st.lists(st.tuples(TEXT | st.none(), st.sampled_from(["a", "a+b", "\\", "\\N", "+", None])), min_size=1, max_size=6))
def test_joined_keys_are_equal_only_for_equal_parts(rows: list[tuple[str | None, str | None]]) -> None:
    columns = [pl.Series([row[place] for row in rows], dtype=pl.String) for place in range(2)]
    keys = join_columns(columns, "a+b")
    assert keys.to_list() == [join_texts(row) for row in rows]
    assert len(set(keys.to_list())) == len(set(rows))
    assert [key is None for key in keys] == [row == (None, None) for row in rows]


def test_a_column_with_a_plus_in_its_name_is_itself() -> None:
    assert parts("a+b", ["a", "b", "a+b"]) == ("a+b",)
    assert parts("a + b", ["a", "b"]) == ("a", "b")
