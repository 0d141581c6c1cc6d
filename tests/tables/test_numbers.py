"""Numbers in text: marks, currencies, null words; the column decides where a cell can be read in two ways."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.tables.numbers import NULL_WORDS, currencies, find_marks, parse_numbers, read_numbers
from balancer.tables.options import ReadOptions

NO_OPTIONS = ReadOptions()


def parsed(cells: Sequence[str | None], read: ReadOptions = NO_OPTIONS) -> tuple[list[float | None], list[bool]]:
    values, wrong = parse_numbers(pl.Series("x", cells, dtype=pl.String), read)
    assert values.name == wrong.name == "x"
    return values.to_list(), wrong.to_list()


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", " 2.5 ", "-3e2", "+.5", "5."], [1, 2.5, -300, 0.5, 5]),
        (["12,50", "1.234,56", "1.234", "-7"], [12.5, 1234.56, 1234, -7]),
        (["1,234.56", "1,234", "12"], [1234.56, 1234, 12]),
        (["1.234.567", "1.234"], [1234567, 1234]),
        (["1 234,5", "1\u00a0234,5", "1\u202f234"], [1234.5, 1234.5, 1234]),
        (["1'234.5", "1\u2019234"], [1234.5, 1234]),
        (["1,23,456.78"], [123456.78]),
        (["$12", "-$13", "$-14", "($15.00)"], [12, -13, -14, -15]),
        (["12,5 €", "EUR 3", "3 EUR"], [12.5, 3, 3]),
        (["(12.50)", "12.50-", "\u22125"], [-12.5, -12.5, -5]),
        (["12.5%", "50 %", "0.3"], [0.125, 0.5, 0.3]),
        (["1.234", "5.5"], [1.234, 5.5]),
    ],
)
def test_spellings(cells: list[str | None], values: list[float]) -> None:
    found, wrong = parsed(cells)
    assert found == pytest.approx(values)
    assert not any(wrong)


@pytest.mark.parametrize("cell", ["abc", "ACC0012", "12 34", "--5", "(5", "5-5", "1.2.3", "12-05-2024", "0x10", "1,2,3"])
def test_what_is_no_number(cell: str) -> None:
    assert parsed(["1.5", cell]) == ([1.5, None], [False, True])


def test_a_number_that_can_be_read_in_two_ways() -> None:
    cells = ["5", "1,234"]
    found = read_numbers(pl.Series(cells), NO_OPTIONS)
    assert found.marks.ambiguous == 1
    assert parsed(cells, ReadOptions(decimal=","))[0] == [5, 1.234]
    assert parsed(cells, ReadOptions(thousands=","))[0] == [5, 1234]
    assert find_marks(pl.Series([*cells, "0,5"]), NO_OPTIONS).decimal == ","
    assert parsed([*cells, "1,234.5"])[0] == [5, 1234, 1234.5]
    # Fifty numbers in groups of three beside short whole numbers are no decimal fractions.
    assert read_numbers(pl.Series(["1,234"] * 50 + ["7"]), NO_OPTIONS).marks.ambiguous is None


def test_null_words_and_those_that_are_given() -> None:
    assert parsed(["NA", " n/a ", "NaN", None, "", "\\N", "-", "1"]) == ([None] * 7 + [1], [False] * 8)
    assert parsed(["-999", "2", "Leer"], ReadOptions(null_values=("-999", "leer"))) == ([None, 2, None], [False] * 3)


def test_currencies() -> None:
    assert currencies(pl.Series(["$5", "US$ 6", "7 EUR", "8", None])) == ["$", "EUR", "US$"]
    assert currencies(pl.Series(["5", "-6.5"])) == []


AMOUNTS = st.lists(st.integers(-(10**10), 10**10), min_size=1, max_size=20)


@given(
    AMOUNTS,
    st.sampled_from([(",", "."), (".", ","), (",", " "), (".", "'"), (",", "\u00a0"), (".", ""), (",", "")]),
    st.sampled_from(["{}", "{} €", "€{}", "EUR {}", " {} "]),
    st.sampled_from(["", *sorted(NULL_WORDS)]),
)
def test_amounts_with_two_decimals_are_read_exactly(cents: list[int], marks: tuple[str, str], form: str, word: str) -> None:
    decimal, thousands = marks

    def written(value: int) -> str:
        whole = f"{abs(value) // 100:,}".replace(",", thousands)
        return form.format(f"{'-' if value < 0 else ''}{whole}{decimal}{abs(value) % 100:02d}")

    cells: list[str | None] = [*map(written, cents), word]
    assert parsed(cells) == ([value / 100 for value in cents] + [None], [False] * len(cells))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_plain_numbers_keep_every_bit(values: list[float]) -> None:
    assert parsed([repr(value) for value in values])[0] == values
