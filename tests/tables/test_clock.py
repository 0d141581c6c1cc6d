"""A date and a time of day in two columns give the bits of one column."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.tables.clock import clock_digits, is_time_of_day, parse_joined, time_of_day

TIMES = [datetime(2024, 1, 1, 0, 41, 7) + timedelta(minutes=613 * place) for place in range(300)]
SECONDS = [each.replace(tzinfo=UTC).timestamp() for each in TIMES]


@given(
    day=st.sampled_from(["%Y-%m-%d", "%d/%m/%Y", "%m/%d/%y", "%Y%m%d", "%d-%b-%Y"]),
    clock=st.sampled_from(["%H:%M:%S", "%I:%M:%S %p", "%H.%M.%S", "%H%M%S", "%H:%M:%S.%f"]),
)
def test_text(day: str, clock: str) -> None:
    result = parse_joined(pl.Series("date", [f"{each:{day}}" for each in TIMES]), pl.Series("at", [f"{each:{clock}}" for each in TIMES]))
    assert not result.bad.any()
    assert result.seconds.tolist() == SECONDS


def test_other_types() -> None:
    day = pl.Series("date", [each.date() for each in TIMES])
    number = pl.Series("at", [int(f"{each:%H%M%S}") for each in TIMES])
    for clock in (pl.Series("at", [each.time() for each in TIMES]), number, number.cast(pl.Float64)):
        assert parse_joined(day, clock).seconds.tolist() == SECONDS
    since = pl.Series("at", [(each.hour * 60 + each.minute) * 60 + each.second for each in TIMES])
    assert parse_joined(day, since).seconds.tolist() == SECONDS
    hours = parse_joined(day, pl.Series("hour", [each.hour for each in TIMES])).seconds
    assert hours.tolist() == [value // 3600 * 3600 for value in SECONDS]


def test_a_format_of_both() -> None:
    day, clock = pl.Series("date", ["02/01/2024"]), pl.Series("at", ["10.15"])
    wanted = datetime(2024, 1, 2, 10, 15, tzinfo=UTC).timestamp()
    assert parse_joined(day, clock, form="%d/%m/%Y %H.%M").seconds[0] == wanted
    assert parse_joined(day, clock, form="%d/%m/%Y").seconds[0] == wanted


def test_missing_and_bad_rows() -> None:
    day, clock = pl.Series("date", ["2024-01-31", None, "2024-01-31", "soon"]), pl.Series("at", ["10:15", "10:15", "NA", "25:61"])
    result = parse_joined(day, clock)
    assert result.missing.tolist() == [False, True, True, False]
    assert result.bad.tolist() == [False, False, False, True]
    with pytest.raises(InputError, match="row 1 has a time of day of its own"):
        parse_joined(pl.Series("date", ["2024-01-31 10:00"]), pl.Series("at", ["10:15"]))
    with pytest.raises(InputError, match="is boolean, not a time of day"):
        time_of_day(pl.Series("at", [True]))


def test_is_time_of_day() -> None:
    assert is_time_of_day(pl.Series(["10:15", None, "", "9:05 PM"]))
    assert is_time_of_day(pl.Series([time(10, 15)]))
    assert not is_time_of_day(pl.Series(["2024-01-31 10:15"]))
    assert not is_time_of_day(pl.Series([10, 15]))
    assert not is_time_of_day(pl.Series([None], dtype=pl.String))
    np.testing.assert_array_equal(time_of_day(pl.Series(["1:45 PM", "1 pm"]))[0].is_null().to_numpy(), [False, True])


@pytest.mark.parametrize(("shown", "digits"), [("%H", "hours"), ("%H%M", "HHMM"), ("%H%M%S", "HHMMSS")])
def test_digits_of_a_small_table_are_those_of_the_training_table(shown: str, digits: str) -> None:
    day, clock = pl.Series("date", [each.date() for each in TIMES]), pl.Series("at", [int(f"{each:{shown}}") for each in TIMES])
    whole = parse_joined(day, clock)
    assert whole.found.clock == digits == clock_digits(clock)
    assert f"digits in at are read as times of day, {shown}" in str(whole.note)
    one = parse_joined(day[:1], clock[:1], usual=whole.found)
    assert one.seconds.tolist() == whole.seconds[:1].tolist()
    text = pl.Series("date", [f"{each:%d.%m.%y}" for each in TIMES])
    assert parse_joined(text, clock, form=f"%d.%m.%y {shown}").seconds.tolist() == whole.seconds.tolist()


def test_clock_digits() -> None:
    assert clock_digits(pl.Series(["0015", "1530"])) == "HHMM"
    assert clock_digits(pl.Series([0.0, 23.0])) == "hours"
    assert clock_digits(pl.Series([86_399, 5])) is None
    assert clock_digits(pl.Series(["x", "5"])) is None
