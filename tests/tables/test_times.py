"""Times of a table: formats in any order of rows and any zone, units of numbers, one value as a column."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.tables.time_numbers import seconds_of
from balancer.tables.time_text import formats_of
from balancer.tables.times import TimeForm, is_time, looks_like_times, parse_time, parse_times

START = datetime(2023, 11, 20, 0, 41, 7)
DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%d/%m/%y", "%m/%d/%y", "%y-%m-%d")
NAMED = ("%d-%b-%Y", "%d-%B-%y", "%d %B %Y", "%b %d %Y", "%B %d, %Y", "%d%b%Y", "%Y-%b-%d", "%a, %d %b %Y")
CLOCKS = (" %H:%M:%S", "T%H:%M:%S", " %I:%M:%S %p", " %I:%M:%S%p", ", %H:%M:%S", " %H.%M.%S", " %H:%M:%S.%f")
DIGITS = ("%Y%m%d%H%M%S", "%Y%m%dT%H%M%S", "%Y%m%d %H:%M:%S")
FORMATS = (*(day + clock for day in (*DAYS, *NAMED) for clock in CLOCKS), *DIGITS, "%d%b%Y:%H:%M:%S", "%a %b %d %H:%M:%S %Y")


def moments(minutes: int, count: int = 300) -> list[datetime]:
    """Times that are more than twelve days, and more than a year, apart."""
    return [START + timedelta(minutes=minutes * place) for place in range(count)]


def seconds(times: list[datetime]) -> np.ndarray:
    return np.array([each.replace(tzinfo=UTC).timestamp() for each in times])


def series(values: list[object], name: str = "time") -> pl.Series:
    return pl.Series(name, values)


@given(form=st.sampled_from(FORMATS), minutes=st.integers(1900, 2600), order=st.randoms(use_true_random=False), upper=st.booleans())
def test_every_format_in_any_order_of_rows(form: str, minutes: int, order: object, upper: bool) -> None:
    times = moments(minutes)
    order.shuffle(times)  # type: ignore[attr-defined]
    texts = [each.strftime(form) for each in times]
    result = parse_times(series([text.upper() if upper else text for text in texts]))
    assert not result.bad.any()
    np.testing.assert_array_equal(result.seconds, seconds(times))


@given(hours=st.lists(st.integers(-11, 13), min_size=1, max_size=4), form=st.sampled_from(["T", " "]), colon=st.booleans())
def test_zones_are_converted(hours: list[int], form: str, colon: bool) -> None:
    times = moments(2000)
    zones = [timezone(timedelta(hours=each)) for each in hours]
    texts = [
        each.replace(tzinfo=UTC).astimezone(zones[place % len(zones)]).strftime(f"%Y-%m-%d{form}%H:%M:%S%z")
        for place, each in enumerate(times)
    ]
    texts = [text[:-2] + ":" + text[-2:] if colon else text for text in texts]
    np.testing.assert_array_equal(parse_times(series(texts)).seconds, seconds(times))


@pytest.mark.parametrize("zone", ["Z", "z", " UTC", " GMT", "+00:00", "+00", " +0000"])
def test_words_for_utc(zone: str) -> None:
    times = moments(2000)
    texts = [f"{each:%Y-%m-%dT%H:%M:%S}{zone}" for each in times]
    np.testing.assert_array_equal(parse_times(series(texts)).seconds, seconds(times))


@given(kind=st.sampled_from(["text", "int", "float", "float text"]), form=st.sampled_from(["%Y%m%d", "%d%m%Y", "%m%d%Y"]))
def test_eight_digits_that_are_dates_are_dates(kind: str, form: str) -> None:
    days = [START.replace(hour=0, minute=0, second=0) + timedelta(days=place) for place in range(400)]
    texts = [each.strftime(form) for each in days]
    values: dict[str, list[object]] = {
        "text": [*texts],
        "int": [int(text) for text in texts],
        "float": [float(text) for text in texts],
        "float text": [str(float(text)) for text in texts],
    }
    result = parse_times(series(values[kind]))
    np.testing.assert_array_equal(result.seconds, seconds(days))
    assert result.note is not None
    assert "--time-unit" in result.note
    plain = parse_times(series(values[kind]), unit="s")
    assert plain.seconds.tolist() == [float(text) for text in texts]
    given_form = parse_times(series(values[kind]), form=form)
    np.testing.assert_array_equal(given_form.seconds, seconds(days))


def test_digits_that_are_no_dates_are_seconds() -> None:
    for first, step in ((86_400, 37), (19_000_000, 137), (1_700_000_000, 61), (0, 1)):
        values = list(range(first, first + 500 * step, step))
        result = parse_times(series([*values]))
        assert result.seconds.tolist() == values
        assert result.note is None


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("kind", [int, float, str])
def test_units_by_size(unit: str, per_second: int, kind: type) -> None:
    times = moments(2000)
    values = [kind(int(each) * per_second) for each in seconds(times)]
    result = parse_times(series(values))
    np.testing.assert_array_equal(result.seconds, seconds(times))
    assert result.found == TimeForm(unit=unit)
    assert (result.note is None) == (unit == "s")


@pytest.mark.parametrize(("unit", "factor"), [("min", 60.0), ("h", 3600.0), ("d", 86_400.0), ("ms", 1e-3)])
def test_a_unit_that_is_given(unit: str, factor: float) -> None:
    np.testing.assert_allclose(parse_times(series([1, 2, 743]), unit=unit).seconds, np.array([1, 2, 743]) * factor)


@pytest.mark.parametrize(("name", "factor"), [("step", 3600), ("TX_TIME_DAYS", 86_400), ("hours", 3600), ("TX_TIME_SECONDS", 1), ("t", 1)])
def test_a_name_can_say_the_unit_of_small_numbers(name: str, factor: float) -> None:
    result = parse_times(series([1, 2, 743], name))
    assert result.seconds.tolist() == [factor, 2 * factor, 743 * factor]
    assert (result.note is not None) == (factor > 1)


def test_excel_days() -> None:
    times = moments(2000)
    result = parse_times(series([*(seconds(times) / 86_400 + 25_569)]))
    np.testing.assert_array_equal(result.seconds, seconds(times))
    assert "Excel" in str(result.note)
    assert parse_times(series([36_526, 40_000, 41_000])).found.unit == "s"


def test_words_for_missing_are_missing() -> None:
    result = parse_times(series(["2024-01-31", "", " NA ", None, "null", "NaT"]))
    assert result.missing.tolist() == [False, True, True, True, True, True]
    assert not result.bad.any()
    assert parse_times(series(["", None])).missing.all()
    assert parse_times(series([None, None])).missing.all()


def test_a_fraction_may_be_in_some_rows_only() -> None:
    texts = ["2024-01-01 10:00:00"] * 3000 + ["2024-01-01 10:00:00.5"]
    assert parse_times(series([*texts])).seconds[-1] == datetime(2024, 1, 1, 10, tzinfo=UTC).timestamp() + 0.5


def test_ambiguous_days_name_the_flag() -> None:
    texts = [f"{day:02}/{month:02}/2024" for day in range(1, 13) for month in range(1, 13)]
    with pytest.raises(InputError, match=r"can be read as '%d/%m/%Y' or '%m/%d/%Y'.*--time-format"):
        parse_times(series([*texts]))
    first = parse_times(series([*texts]), form="%d/%m/%Y").seconds
    assert first[1] == datetime(2024, 2, 1, tzinfo=UTC).timestamp()
    # As the training table was read.
    assert parse_times(series([*texts]), usual=TimeForm("%d/%m/%Y")).seconds.tolist() == first.tolist()
    # One row decides for all of them, wherever it is.
    assert parse_times(series([*texts * 100, "13/01/2024"])).seconds[: len(texts)].tolist() == first.tolist()


@pytest.mark.parametrize(
    ("values", "form", "message"),
    [
        (["soon"], None, "'soon' can't be read as a time"),
        (["2024-01-01"], "%d/%m/%Y", r"--time-format '%d/%m/%Y' reads no row; the first is '2024-01-01' \(row 1\)"),
        (["10:15"], "%H:%M", "--time-format '%H:%M' has no year"),
        (["10:15"], None, "'10:15' can't be read as a time"),
        (["01/24"], "%d/%y", "has no month"),
        (["3 janv. 2024 00:15"], None, "write times as 2024-05-31 13:45:00.*months are read in English only"),
        ([145_000_000_000, 146_000_000_007], None, "would be milliseconds of the year 1974, which is not plausible: give --time-unit"),
        ([True], None, "is boolean, not a time"),
        ([time(10, 15)], None, "times of day without a date: join it"),
    ],
)
def test_refused(values: list[object], form: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_times(series(values), form=form)


def test_bad_rows_are_marked() -> None:
    result = parse_times(series(["2024-01-31", "31/01/2024", "soon", "2024-02-30"]))
    assert result.bad.tolist() == [False, True, True, True]
    result = parse_times(series([1.7e12, 1.7e12, float("inf")]))
    assert result.bad.tolist() == [False, False, True]
    result = parse_times(series([20240131, 20240201, 20240230]))
    assert result.bad.tolist() == [False, False, True]


@given(
    value=st.one_of(
        st.datetimes(datetime(1971, 1, 1), datetime(2090, 1, 1)).flatmap(lambda each: st.sampled_from([each.strftime(f) for f in FORMATS])),
        st.datetimes(datetime(1971, 1, 1), datetime(2090, 1, 1)).map(lambda each: each.isoformat()),
        st.datetimes(datetime(1971, 1, 1), datetime(2090, 1, 1)).map(lambda each: each.isoformat(" ") + "+05:30"),
        st.integers(-(10**10), 2 * 10**18),
        st.floats(-1e10, 1e13),
        st.integers(0, 10**15).map(str),
        st.dates(date(1990, 1, 1), date(2090, 1, 1)).map(lambda each: each.strftime("%Y%m%d")),
        st.text(max_size=12),
    ),
    usual=st.sampled_from(
        [None, TimeForm("%d/%m/%Y %H:%M:%S"), TimeForm(unit="s"), TimeForm(unit="ms"), TimeForm("%Y%m%d"), TimeForm(unit="h")]
    ),
)
def test_one_value_is_read_as_a_column_of_it(value: str | float, usual: TimeForm | None) -> None:
    try:
        result = parse_times(series([value]), usual=usual)
        column = None if result.bad[0] or result.missing[0] else float(result.seconds[0])
    except InputError:
        column = None
    try:
        one: float | None = parse_time(value, usual=usual)
    except InputError:
        one = None
    assert one == column


@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}, 10**400, float("nan"), ""])
def test_values_that_are_no_time(value: object) -> None:
    with pytest.raises(InputError):
        parse_time(value)


def test_which_columns_look_like_times() -> None:
    assert looks_like_times(series(["2024-01-31", None, "2024-02-01"]))
    assert looks_like_times(series(["31.01.2024 10:15"]))
    assert not looks_like_times(series(["a-b", "c"]))
    assert not looks_like_times(series(["5411", "5812"]))
    assert not looks_like_times(series([None]).cast(pl.String))
    assert is_time("Jan 3 2024")
    assert not is_time("later")
    assert formats_of("13:45") == []


@pytest.mark.parametrize(
    ("form", "text"),
    [
        *(("%b-%Y", "Jan-2012"), ("%Y-%m", "2012-01"), ("%m/%Y", "01/2012"), ("%B %Y", "January 2012"), ("%b-%y", "Jan-12")),
        *(("%Y%m", "201201"), ("%Y-%b", "2012-Jan")),
    ],
)
def test_months_are_their_first_day(form: str, text: str) -> None:
    assert datetime(2012, 1, 1).strftime(form) == text
    months = [datetime(2016 + place // 12, place % 12 + 1, 1, tzinfo=UTC) for place in range(48)] * 3
    values = series([each.strftime(form) for each in months])
    result = parse_times(values)
    assert result.seconds.tolist() == [each.timestamp() for each in months]
    assert f"months ({form}), taken as the first day" in str(result.note)
    assert parse_times(values, form=form).seconds.tolist() == result.seconds.tolist()
    if form == "%Y%m":
        assert parse_times(values.cast(pl.Int64)).seconds.tolist() == result.seconds.tolist()


@given(first=st.datetimes(datetime(2001, 1, 1), datetime(2040, 1, 1)), kind=st.sampled_from([str, int]))
def test_twelve_digits_are_dates_of_either_kind_or_refused(first: datetime, kind: type) -> None:
    times = [(first + timedelta(minutes=977 * place)).replace(microsecond=0) for place in range(300)]
    wanted = [each.replace(tzinfo=UTC).timestamp() for each in times]
    for form, exact in (("%y%m%d%H%M%S", 1), ("%Y%m%d%H%M", 60)):
        values = [kind(each.strftime(form)) for each in times]
        try:
            result = parse_times(series(values))
        except InputError:
            with pytest.raises(InputError, match="--time-format"):
                parse_times(series(values))
            continue
        assert result.seconds.tolist() == [value // exact * exact for value in wanted]
        assert not result.bad.any()


@pytest.mark.parametrize("name", ["date", "BUDAT", "trans_date"])
def test_whole_days_of_excel(name: str) -> None:
    days = series([*range(45_294, 45_354)], name)
    assert parse_times(days).found.unit == "excel"
    assert parse_times(days).seconds[0] == datetime(2024, 1, 3, tzinfo=UTC).timestamp()


def test_whole_days_of_excel_by_their_values() -> None:
    assert parse_times(series([*range(45_294, 45_354)] * 3)).found.unit == "excel"
    assert parse_times(series([*range(45_294, 45_354)] * 3, "hours")).found.unit == "h"
    assert parse_times(series([*range(40_000, 54_000, 7)])).found.unit == "s"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("2024-01-03T00:15:39[Europe/Berlin]", "%Y-%m-%dT%H:%M:%S[Europe/Berlin]"),
        ("Wed Jan 03 00:15:39 EST 2024", "%a %b %d %H:%M:%S EST %Y"),
        ("[03/Jan/2024:00:15:39 +0000]", "[%d/%b/%Y:%H:%M:%S %z]"),
        ("2024-W01-3", "%G-W%V-%u"),
        ("at 2024-01-03 00:15", "at %Y-%m-%d %H:%M"),
    ],
)
def test_the_format_that_is_proposed_works(text: str, form: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_times(series([text] * 3))
    assert f'give --time-format "{form}"' in str(raised.value)
    assert not parse_times(series([text] * 3), form=form).bad.any()
    with pytest.raises(InputError) as raised:  # a command that scores has no such flag
        parse_times(series([text] * 3), usual=TimeForm("%d/%m/%Y"))
    assert "--time" not in str(raised.value)


@given(form=st.sampled_from(FORMATS), minutes=st.integers(601, 3000))
def test_a_note_names_a_format_that_reads_the_column(form: str, minutes: int) -> None:
    values = series([f"{each:{form}}" for each in moments(minutes)])
    result = parse_times(values)
    if result.note is not None:
        shown = str(result.note).partition(" are read as ")[2].partition(" (--time-format")[0].removeprefix("dates, ")
        assert "#" not in shown
        assert parse_times(values, form=shown).seconds.tolist() == result.seconds.tolist()


@given(
    number=st.integers(-(10**12), 10**19)
    | st.floats(-1e12, 1e19)
    | st.integers(10**9, 2 * 10**9).map(float)
    | st.integers(10**9, 21 * 10**8),
    unit=st.sampled_from([None, "s", "ms", "us", "ns", "min", "h", "d", "excel"]),
)
def test_a_number_that_is_read_at_once_has_the_bits_of_a_column(number: float, unit: str | None) -> None:
    one = seconds_of(number, TimeForm(unit=unit))
    if one is not None:
        column = parse_times(series([number]), usual=TimeForm(unit=unit))
        assert not column.bad[0]
        assert one == column.seconds[0]


@given(
    form=st.sampled_from(["%d/%m/%Y %H:%M", "%m/%d/%Y", "%Y%m%d", "%Y%m%d%H%M%S", "%d.%m.%Y %H:%M:%S", "(%Y) %m+%d"]),
    year=st.integers(990, 9999),
    parts=st.tuples(*(st.integers(0, most) for most in (13, 32, 25, 61, 61))),
)
def test_a_text_of_the_usual_format_has_the_bits_of_a_column(form: str, year: int, parts: tuple[int, ...]) -> None:
    text = form.replace("%Y", f"{year:04}")
    for directive, value in zip("mdHMS", parts, strict=True):
        text = text.replace(f"%{directive}", f"{value:02}")
    try:
        column = parse_times(series([text]), usual=TimeForm(form))
    except InputError:
        column = None
    if column is not None and not column.bad[0]:
        assert parse_time(text, usual=TimeForm(form)) == column.seconds[0]
        return
    with pytest.raises(InputError):
        parse_time(text, usual=TimeForm(form))
