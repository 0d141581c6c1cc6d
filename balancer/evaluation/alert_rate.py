"""The share of rows that raise an alarm, and the range in which it usually is.

The range follows from the test rows of a run: chance within a day (binomial), and what differs from day to
day beyond chance (the between-group variance of a one-way analysis of variance, as in DerSimonian and Laird
1986).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DAY = 86_400.0
WIDTH = 3.5
"""Half of the range, in standard errors of the log-odds."""
FACTOR = 2.0
"""The range reaches at least from the usual rate divided by this to the rate times this: a change that is
certain but small is no warning."""


@dataclass(frozen=True)
class AlertRate:
    """Alarms of a table beside those of the test rows of the run."""

    rate: float
    """Share of the rows that raise an alarm."""
    low: float
    high: float
    """Limits of the usual range."""
    usual: float
    """Share of the test rows."""

    @property
    def is_usual(self) -> bool:
        """Whether the rate is in its range."""
        return self.low <= self.rate <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Convert to a JSON-serializable dict."""
        return {"rate": self.rate, "test": self.usual, "usual": [self.low, self.high], "is_usual": self.is_usual}

    def warning(self) -> str | None:
        """What to tell the user where the rate is not usual, in one sentence."""
        if self.is_usual:
            return None
        amounts = "are amounts in the same unit and with the same sign"
        asks = f"{amounts}, and is --past given?" if self.rate > self.high else f"does the table have the same columns, and {amounts}?"
        rate, low, high = (100 * share for share in (self.rate, self.low, self.high))
        return f"{_percent(rate)} % of the rows raise an alarm; {_percent(low)} to {_percent(high)} % is usual for this run: {asks}"


def alert_rate(alarms: int, rows: int, days: int, test_alarm: NDArray[Any], test_time: NDArray[Any]) -> AlertRate | None:
    """Compare the share of alarms with its usual range.

    Args:
        alarms: Rows of the table that raise an alarm.
        rows: Rows of the table.
        days: Days on which it has a row.
        test_alarm: (M,) whether each test row of the run raises an alarm.
        test_time: (M,) their times in seconds.

    Returns:
        None where either has no row.
    """
    tested = len(test_alarm)
    if not rows or not tested:
        return None
    mean = (test_alarm.sum() + 0.5) / (tested + 1)
    _, day = np.unique(np.floor(test_time / DAY), return_inverse=True)
    number = np.bincount(day)
    between = 0.0
    if len(number) > 1:
        rates = np.bincount(day, weights=test_alarm.astype(np.float64)) / number
        typical = (tested - (number.astype(np.float64) ** 2).sum() / tested) / (len(number) - 1)
        squares = (number * (rates - mean) ** 2).sum() / (len(number) - 1)
        between = max(0.0, float(squares - mean * (1 - mean)) / typical)
    within = mean * (1 - mean)
    error = np.sqrt(within * (1 / rows + 1 / tested) + between * (1 / max(1, days) + 1 / len(number))) / within
    centre = np.log(mean / (1 - mean))
    low, high = 1 / (1 + np.exp(-(centre + WIDTH * error * np.array([-1.0, 1.0]))))
    if low * rows < 1:  # less than one alarm is none
        low = 0.0
    rate = alarms / rows
    return AlertRate(
        rate, min(float(low), float(mean) / FACTOR), min(1.0, max(float(high), float(mean) * FACTOR)), float(np.mean(test_alarm))
    )


def _percent(value: float) -> str:
    """A percentage with two significant digits."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 or value == 0 else f"{value:.2g}"
