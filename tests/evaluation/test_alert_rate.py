"""A share of alarms that differs by chance or from day to day is usual; one that differs more is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.evaluation.alert_rate import DAY, AlertRate, alert_rate


def days(rng: np.random.Generator, number: int, rows: int, share: float, spread: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Alarms and times of some days; the log-odds of each day has a normal deviation of `spread`."""
    odds = share / (1 - share) * np.exp(rng.normal(0, spread, number))
    alarm = rng.random((number, rows)) < (odds / (1 + odds))[:, None]
    return alarm.ravel(), (np.arange(number)[:, None] * DAY + rng.uniform(0, DAY, (number, rows))).ravel()


def figures(alarm: np.ndarray, time: np.ndarray) -> tuple[int, int, int]:
    """Alarms, rows and days of a table."""
    return int(alarm.sum()), len(alarm), len(np.unique(np.floor(time / DAY)))


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_equal_streams_are_usual_and_a_tenfold_rate_is_not(spread: float) -> None:
    rng = np.random.default_rng(0)
    unusual = 0
    for _ in range(200):
        test = days(rng, 20, 200, 0.01, spread)
        found = alert_rate(*figures(*days(rng, 3, 200, 0.01, spread)), *test)
        assert found is not None
        unusual += not found.is_usual
        high = alert_rate(*figures(*days(rng, 3, 400, 0.2)), *test)
        assert high is not None and not high.is_usual and "same unit" in str(high.warning())
    assert unusual <= 2


def test_days_that_differ_make_the_range_wider() -> None:
    rng = np.random.default_rng(1)
    table = figures(*days(rng, 1, 5000, 0.02))
    equal, varied = (alert_rate(*table, *days(rng, 30, 500, 0.02, spread)) for spread in (0.0, 1.0))
    assert equal is not None and varied is not None
    assert varied.high > equal.high
    assert varied.low <= equal.low


def test_no_row_gives_nothing_and_few_rows_no_warning() -> None:
    rng = np.random.default_rng(2)
    test = days(rng, 10, 500, 0.01)
    assert alert_rate(0, 0, 0, *test) is None
    for alarm in (False, True):
        one = alert_rate(int(alarm), 1, 1, *test)
        assert one is not None and (one.is_usual or alarm)


def test_the_warning_names_the_rates() -> None:
    assert AlertRate(0.57, 0.003, 0.012, 0.006).warning() == (
        "57 % of the rows raise an alarm; 0.3 to 1.2 % is usual for this run: are amounts in the same unit and with the same sign, and is --past given?"
    )
    assert "same columns" in str(AlertRate(0.0, 0.003, 0.012, 0.006).warning())
    assert AlertRate(0.005, 0.003, 0.012, 0.006).warning() is None


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_the_range_holds_the_usual_rate(rows: int, tested: int, share: float, usual: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    test = rng.random(tested) < usual
    found = alert_rate(*figures(rng.random(rows) < share, rng.uniform(0, 9 * DAY, rows)), test, rng.uniform(0, 9 * DAY, tested))
    assert found is not None
    assert 0 <= found.low <= (test.sum() + 0.5) / (tested + 1) <= found.high <= 1
    assert (found.warning() is None) == found.is_usual
