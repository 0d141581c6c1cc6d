"""Each bad cell is named by column, row and remedy, or dropped and counted."""

from __future__ import annotations

from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest

from balancer.data.checks import RowCheck, check_entity, check_number, check_time, check_unique
from balancer.data.labels import check_label, find_classes, label_names
from balancer.errors import InputError

NAN, INF = float("nan"), float("inf")


def series(values: list[object], dtype: pl.DataType | None = None) -> pl.Series:
    return pl.Series("col", values, dtype=dtype)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, NAN, NAN], "'col': row 2 is NaN .*: give a value"),
        ([1.0, 2.0, INF], "'col': row 3 is infinite"),
        ([1.0, None, 2.0], "'col': row 2 is null"),
        (["1.5", "-2", "ten"], r"'col': row 3 is text, not a number \('ten'\)"),
        (["1.5", "inf", "2"], "'col': row 2 is infinite"),
    ],
)
def test_bad_numbers(values: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_number(series(values), RowCheck(3, "error"))
    assert "--bad-rows drop" in str(caught.value)
    check = RowCheck(3, "drop")
    check_number(series(values), check)
    assert sum(check.dropped.values()) == (~check.keep).sum() > 0


def test_good_numbers() -> None:
    assert check_number(series([1, -5, 10**12]), RowCheck(3, "error")).tolist() == [1, -5, 1e12]
    assert check_number(series([" 1.5 ", "-2e3", "0"]), RowCheck(3, "error")).tolist() == [1.5, -2000, 0]
    optional = check_number(series([1.0, None, NAN]), RowCheck(3, "error"), optional=True)
    np.testing.assert_array_equal(optional, [1, NAN, NAN])
    check = RowCheck(4, "error")
    np.testing.assert_array_equal(check_number(series([1.0, INF, -INF, 2.0]), check, optional=True), [1, NAN, NAN, 2])
    assert check.notes == ["2 infinite values of column col are read as missing"]
    text = check_number(series(["1.5", "Infinity", "-inf"]), RowCheck(3, "error"), optional=True)
    np.testing.assert_array_equal(text, [1.5, NAN, NAN])
    with pytest.raises(InputError, match="row 1 is beyond the range of 32-bit floats"):
        check_number(series([1e300]), RowCheck(1, "error"), optional=True)
    with pytest.raises(InputError, match="is list"):
        check_number(series([[1], [2]]), RowCheck(2, "error"))


def test_a_row_bad_twice_is_counted_once() -> None:
    check = RowCheck(3, "drop")
    check_number(pl.Series("a", [NAN, 1.0, 2.0]), check)
    check_number(pl.Series("b", [NAN, NAN, 2.0]), check)
    assert check.dropped == {"a: is NaN": 1, "b: is NaN": 1}
    assert check.keep.tolist() == [False, False, True]


MOMENT = datetime(2024, 5, 31, 13, 45, 10, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "values",
    [
        series([datetime(2024, 5, 31, 13, 45, 10)]),
        series([datetime(2024, 5, 31, 13, 45, 10)]).cast(pl.Datetime("ns")),
        series([datetime(2024, 5, 31, 13, 45, 10)]).dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"),
        series([MOMENT]),
        series([int(MOMENT)]),
        series([str(MOMENT)]),
        series(["2024-05-31 13:45:10"]),
        series(["2024-05-31T13:45:10.000"]),
        series(["2024-05-31T13:45:10Z"]),
        series(["2024-05-31T15:45:10+02:00"]),
        series(["31.05.2024 13:45:10"]),
        series(["05/31/2024 13:45:10"]),
    ],
    ids=lambda values: f"{values.dtype}-{values[0]}",
)
def test_forms_of_time(values: pl.Series) -> None:
    assert check_time(values, RowCheck(1, "error")).tolist() == [MOMENT]


def test_dates() -> None:
    assert check_time(series([date(1970, 1, 3)]), RowCheck(1, "error")).tolist() == [2 * 86_400.0]
    assert check_time(series(["1970-01-03"]), RowCheck(1, "error")).tolist() == [2 * 86_400.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([datetime(2024, 1, 1), None], r"row 2 has no time \(null\): give a time"),
        (["2024-01-01 10:00:00", "31/01/2024 10:00"], r"two formats: '2024-01-01 10:00:00' \(row 1\) but '31/01/2024 10:00' \(row 2\)"),
        (["2024-01-01 10:00:00", "soon"], r"not a time: '2024-01-01 10:00:00' \(row 1\) but 'soon' \(row 2\)"),
        (["soon", "later"], "'soon' can't be read as a time"),
        (["02/01/2024", "03/01/2024"], "'02/01/2024' can be read as '%d/%m/%Y' or '%m/%d/%Y'"),
        ([1.7e12, 1.7e12, 1.7e15], "row 3 is after the year 5000 if read as milliseconds"),
        ([1.7e12, 1.7e12, 1.7e9], "row 3 is before April 1973 if read as milliseconds"),
        ([1.0, NAN], "row 2 is not a finite time"),
        (["1700000000", "1700000001", "2024-01-01"], r"row 3 is not a number of seconds, .*\('2024-01-01'\)"),
        ([[1], [2]], "not a time"),
    ],
)
def test_bad_times(values: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_time(series(values), RowCheck(len(values), "error"))
    assert "'col'" in str(caught.value)


def test_bad_times_are_dropped() -> None:
    check = RowCheck(4, "drop")
    time = check_time(series(["1970-01-02", "02.01.1970", None, "1970-01-03"]), check)
    assert check.keep.tolist() == [True, False, False, True]
    assert time[check.keep].tolist() == [86_400.0, 172_800.0]


@pytest.mark.parametrize(
    ("values", "negative", "classes"),
    [
        (series([0, 1, 0, None]), None, ("0", "1")),
        (series([1.0, 0.0, NAN]), None, ("0", "1")),
        (series([True, False]), None, ("false", "true")),
        (series(["theft", "legit", "", "takeover"]), None, ("legit", "takeover", "theft")),
        (series([10, 2, 0, 1]), None, ("0", "1", "2", "10")),
        (series(["b", "a"]), "b", ("b", "a")),
        (series(["0.0", "1.0", "1"]), None, ("0", "1")),
        (series(["oui", "NON"]), None, ("NON", "oui")),
        (series(["Ja", "Nein"]), None, ("Nein", "Ja")),
        (series(["sí", "no"]), None, ("no", "sí")),
        (series(["T", "F"]), None, ("F", "T")),
        (series(["Y", "N"]), None, ("N", "Y")),
        (series([-1, 1]), None, ("-1", "1")),
        (series([-1.0, 1.0]), None, ("-1", "1")),
    ],
)
def test_classes(values: pl.Series, negative: str | None, classes: tuple[str, ...]) -> None:
    assert find_classes(label_names(values, None), negative) == classes


def test_ambiguous_classes() -> None:
    with pytest.raises(InputError, match="only the class '0'"):
        find_classes(label_names(series([0, 0]), None), None)
    with pytest.raises(InputError, match="no value at all"):
        find_classes(label_names(series([None, None]), None), None)
    with pytest.raises(InputError, match="name the legitimate one with --negative"):
        find_classes(label_names(series(["a", "b"]), None), None)
    with pytest.raises(InputError, match="class given by --negative, 'legti': did you mean 'legit'"):
        find_classes(label_names(series(["legit", "theft"]), None), "legti")
    with pytest.raises(InputError, match="60 distinct values, too many"):
        find_classes(label_names(series(list(range(60))), None), None)


def test_labels_masked_and_unknown() -> None:
    text = label_names(series([0, -1, 1, None]), "-1")
    assert check_label(text, ("0", "1"), RowCheck(4, "error")).tolist() == [0, -1, 1, -1]
    with pytest.raises(InputError, match=r"'col': row 3 is none of the known classes \['0', '2'\] \('1'\)"):
        check_label(text, ("0", "2"), RowCheck(4, "error"))


def test_ids_and_entities() -> None:
    with pytest.raises(InputError, match=r"row 3 repeats the id of an earlier row \(7\)"):
        check_unique(series([7, 8, 7]), RowCheck(3, "error"))
    with pytest.raises(InputError, match=r"row 2 has no id"):
        check_unique(series([7, None, 8]), RowCheck(3, "error"))
    with pytest.raises(InputError, match=r"past row 2 has no entity"):
        check_entity([series(["a", None])], series(["a", None]), RowCheck(2, "error", "past row"))
    with pytest.raises(InputError, match=r"row 2 has a word for a missing value as its entity.*'None'"):
        check_entity([series(["a", "None"])], series(["a", "None"]), RowCheck(2, "error"))
    check = RowCheck(4, "drop")
    check_entity([series([None, "x", "nan", None]), series(["y", None, None, None])], series(["a", "b", "c", "d"]), check)
    assert check.keep.tolist() == [True, True, False, False]


def test_numbers_with_and_without_a_per_cent_sign_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"column 'f': row 2 \('130.0%'\) has a per cent sign, and other rows have none: .* or leave the column"
    ):
        check_number(pl.Series("f", ["16.6", "130.0%", "3"]), RowCheck(3, "error"), optional=True)
    assert check_number(pl.Series("f", ["0", "130.0%", "3 %"]), RowCheck(3, "error")).tolist() == pytest.approx([0, 1.3, 0.03])


@pytest.mark.parametrize("word", ["#NV", "n.d.", "k.A.", "unbekannt", "n.v.", "Keine Angabe", "inconnu"])
def test_words_of_other_languages_are_missing(word: str) -> None:
    np.testing.assert_array_equal(check_number(series(["1.5", word]), RowCheck(2, "error"), optional=True), [1.5, NAN])


def test_a_word_that_is_no_number_names_the_flag() -> None:
    with pytest.raises(
        InputError, match=r"row 2 is text, not a number \('not seen'\): write a number, or --null-values 'not seen' if it means"
    ):
        check_number(series(["1.5", "not seen"]), RowCheck(2, "error"), optional=True)
    with pytest.raises(InputError) as raised:
        check_number(series(["1.5", "7x"]), RowCheck(2, "error"), optional=True)
    assert "--null-values" not in str(raised.value)


def test_text_with_a_line_break_is_not_proposed_as_a_null_word() -> None:
    with pytest.raises(InputError) as error:
        check_number(pl.Series("amount", ["1", "line\nbreak"]), RowCheck(2, "error"))
    assert "\n" not in str(error.value)
    assert "null-values" not in str(error.value)
