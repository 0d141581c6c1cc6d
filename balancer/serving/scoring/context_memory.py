"""What a worker remembers of a context value (a terminal, a merchant), and its statistics before a moment.

What is special: the statistics are those of the database (`balancer.serving.scoring.context_past`), but a row
that is scored needs no query for them. Every change of a value changes its versions in the database
(`context_versions`), so a worker knows whether what it remembers still holds. A value with more rows than are
worth remembering is read from the sums of the database instead.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from balancer.data.context_past import ACTIVITY_WINDOWS, LEVEL_WINDOW, RECENT_LABELS
from balancer.data.risk import WINDOW_DAYS
from balancer.data.spec import DAY
from balancer.serving.storage.driver import Driver

MOST_ROWS = 2_000
"""Rows of a value that are read at once."""
KEPT_ROWS = 20_000
"""Up to twice as many rows of a value are remembered."""
MOST_LABELS = 50_000
"""Labels of a value that are remembered."""
LONGEST = max(ACTIVITY_WINDOWS.values())
EVER = -math.inf

_CONTEXT = 'tenant = :tenant AND "column" = :column AND value = :value'
_ROWS = f"SELECT time, level, square FROM context_rows WHERE {_CONTEXT} AND time > :after ORDER BY time DESC LIMIT {MOST_ROWS}"
_NEWEST = f"SELECT MAX(time) FROM context_rows WHERE {_CONTEXT}"
_LAST = f"SELECT MAX(time) FROM context_rows WHERE {_CONTEXT} AND time <= :until"
_TOTAL = f'SELECT "rows", sum_level, sum_square FROM context_spans WHERE {_CONTEXT} AND width = 0'
_LABELS = f"SELECT time, fraud FROM labelled WHERE {_CONTEXT} ORDER BY time, fraud LIMIT {MOST_LABELS + 1}"


class RowActivity(NamedTuple):
    """`balancer.data.context_past.Activity` of one row, with sums in fixed point."""

    rows: int = 0
    last_time: float = 0.0
    within: tuple[int, ...] = (0,) * len(ACTIVITY_WINDOWS)
    level: int = 0
    square: int = 0
    recent_level: int = 0


class RowLabels(NamedTuple):
    """`balancer.data.context_past.KnownLabels` of one row, and counts in the windows of `WINDOW_DAYS`."""

    known: int = 0
    recent_frauds: tuple[int, ...] = (0,) * len(RECENT_LABELS)
    any_fraud: bool = False
    fraud_time: float = 0.0
    legitimate: int = 0
    run_length: int = 0
    run_time: float = 0.0
    first_time: float = 0.0
    window_known: tuple[int, ...] = (0,) * len(WINDOW_DAYS)
    window_frauds: tuple[int, ...] = (0,) * len(WINDOW_DAYS)


class Labels:
    """All labels of a value.

    Args:
        labels: Time and whether it is a fraud, in the order of both.
    """

    def __init__(self, labels: Sequence[tuple[float, bool]]) -> None:
        self._times = [time for time, _ in labels]
        self._flags = [bool(fraud) for _, fraud in labels]
        self._fraud_times = [time for time, fraud in labels if fraud]
        self._legitimate_times = [time for time, fraud in labels if not fraud]

    def at(self, time: float, delay: float) -> RowLabels:
        """Return what is known at `time`, if a label is known `delay` seconds after its row."""
        end = time - delay
        until = end if delay > 0 else math.nextafter(time, -math.inf)
        count, frauds = bisect_right(self._times, until), bisect_right(self._fraud_times, until)
        if not count:
            return RowLabels()
        starts = [end - days * DAY for days in WINDOW_DAYS]
        window_known = tuple(count - bisect_right(self._times, start) for start in starts)
        window_frauds = tuple(frauds - bisect_right(self._fraud_times, start) for start in starts)
        recent = tuple(sum(self._flags[max(0, count - number) : count]) for number in RECENT_LABELS)
        known = min(count, RECENT_LABELS[-1])
        if not frauds:
            return RowLabels(known, recent, legitimate=count, window_known=window_known, window_frauds=window_frauds)
        fraud_time = self._fraud_times[frauds - 1]
        earlier = bisect_right(self._legitimate_times, fraud_time)
        # The run begins with the first fraud that is not before the last legitimate row.
        begin = bisect_left(self._fraud_times, self._legitimate_times[earlier - 1]) if earlier else 0
        return RowLabels(
            known,
            recent,
            True,
            fraud_time,
            count - bisect_right(self._times, fraud_time),
            bisect_right(self._fraud_times, fraud_time) - begin,
            self._fraud_times[begin],
            self._fraud_times[0],
            window_known,
            window_frauds,
        )


class ContextMemory:
    """The latest rows of a context value, sums over all of its rows, and its labels.

    Attributes:
        rows_version: Version of the rows in the database.
        labels_version: Version of the labels in the database.
        labels: The labels; None where there are too many to remember.
        unwritten: Rows of the running batch: times, levels and squares.
    """

    def __init__(self, driver: Driver, tenant: str, column: str, value: str, versions: tuple[int, int], moment: float) -> None:
        self._context = {"tenant": tenant, "column": column, "value": value}
        self.rows_version, self.labels_version = versions
        self.unwritten: list[tuple[float, int, int]] = []
        self.labels = self._read_labels(driver)
        newest = driver.rows(_NEWEST, self._context)[0][0]
        self._since = EVER
        self._before: float | None = None
        total = driver.rows(_TOTAL, self._context)
        self._total = [int(each) for each in total[0]] if total else [0, 0, 0]
        found: list[tuple[float, int, int]] = []
        if newest is not None:
            self._since = min(moment, newest) - LONGEST
            found = [(time, int(level), int(square)) for time, level, square in driver.rows(_ROWS, self._context | {"after": self._since})]
            found.reverse()
            if len(found) == MOST_ROWS:  # there may be earlier rows at the time of the first
                self._since = found[0][0]
                found = [row for row in found if row[0] > self._since]
            self._before = driver.rows(_LAST, self._context | {"until": self._since})[0][0]
        self._times = [row[0] for row in found]
        self._sums = _prefix_sums(found)

    def read_labels(self, driver: Driver, version: int) -> None:
        """Read the labels again, of a newer version."""
        self.labels, self.labels_version = self._read_labels(driver), version

    def _read_labels(self, driver: Driver) -> Labels | None:
        found = driver.rows(_LABELS, self._context)
        return None if len(found) > MOST_LABELS else Labels(found)

    @property
    def size(self) -> int:
        """About how many bytes it needs."""
        return 600 + 250 * len(self._times) + (0 if self.labels is None else 80 * len(self.labels._times))

    def activity(self, time: float) -> RowActivity | None:
        """Return the statistics of the rows up to `time`; None where the database must compute them."""
        if time - LONGEST < self._since:
            return None
        times, sums = self._times, self._sums
        place, size = bisect_right(times, time), len(times)
        rows, level, square = self._total
        if place < size:  # later rows are taken out
            rows -= size - place
            level -= sums[size][0] - sums[place][0]
            square -= sums[size][1] - sums[place][1]
        within = []
        recent = 0
        for name, seconds in ACTIVITY_WINDOWS.items():
            first = bisect_right(times, time - seconds)
            within.append(place - first)
            if name == LEVEL_WINDOW:
                recent = sums[place][0] - sums[first][0]
        return RowActivity(rows, times[place - 1] if place else self._before or 0.0, tuple(within), level, square, recent)

    def add(self, time: float, level: int, square: int) -> None:
        """Add a row of the running batch."""
        self.unwritten.append((time, level, square))
        self._total[0] += 1
        self._total[1] += level
        self._total[2] += square
        if time <= self._since:
            self._before = time if self._before is None else max(self._before, time)
            return
        times, sums = self._times, self._sums
        place = bisect_right(times, time)
        times.insert(place, time)
        sums.insert(place + 1, (sums[place][0] + level, sums[place][1] + square))
        for later in range(place + 2, len(sums)):
            sums[later] = (sums[later][0] + level, sums[later][1] + square)
        if len(times) > 2 * KEPT_ROWS:
            self._forget()

    def written(self) -> None:
        """Note that the running batch is in the database."""
        self.unwritten.clear()

    def _forget(self) -> None:
        """Drop the rows that no window of a later row needs, and those that are too many."""
        keep = max(bisect_right(self._times, self._times[-1] - LONGEST - DAY), len(self._times) - KEPT_ROWS)
        if keep:
            self._since = self._before = self._times[keep - 1]
            self._times = self._times[keep:]
            self._sums = self._sums[keep:]


def _prefix_sums(rows: Sequence[tuple[float, int, int]]) -> list[tuple[int, int]]:
    sums = [(0, 0)]
    level = square = 0
    for _, one, two in rows:
        level += one
        square += two
        sums.append((level, square))
    return sums
