"""Statistics of the earlier rows of a context value (a terminal, a merchant): known labels, and activity.

What is special: as in `balancer.data.past`, the statistics are an interface, `ContextPast`.
`TableContextPast` computes them for a whole table from prefix sums, the service for one row at a time from
its database; sums are in 64-bit fixed point, so both give the same bits.

Which rows are earlier:

- Labels: those of rows at or before t - delay (with delay 0, strictly before t), as in `balancer.data.risk`.
    Among labels of one moment the legitimate ones come first, so the order of their rows does not matter.
- Activity: all rows before the row in the order of (time, arrival), labelled or not, of whatever entity. The
    order of arrival is that of the input table. The service adds rows as they arrive, so a replay in the
    order of time equals the table. A row that arrives there after later rows of the same value does not see
    them, and they were scored without it.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from balancer.data.past import Events, Float, earlier_sum, signed_log
from balancer.data.risk import known_labels
from balancer.data.spec import DAY
from balancer.data.timeline import Index, Kind, Timeline, first_of_key, shifted

ACTIVITY_WINDOWS = {"1h": 3600.0, "1d": DAY, "7d": 7 * DAY}
"""Length of each look-back window of the activity, in seconds."""
LEVEL_WINDOW = "7d"
"""The window whose mean amount is compared with the mean of all earlier rows."""
RECENT_LABELS = (1, 3, 10)
"""Numbers of the last known labels among which frauds are counted, ascending."""

Flag = NDArray[np.bool_]


class KnownLabels(NamedTuple):
    """What is known of the labels of a context value; arrays are (N,)."""

    known: Index
    """Number of known labels, at most the largest of `RECENT_LABELS`."""
    recent_frauds: tuple[Index, ...]
    """Number of frauds among the last known labels, for each number in `RECENT_LABELS`."""
    any_fraud: Flag
    """Whether a fraud is known; without one, the times below are undefined."""
    fraud_time: Float
    """Time of the last known fraud."""
    legitimate: Index
    """Number of known legitimate rows after it; of all known rows where no fraud is known."""
    run_length: Index
    """Number of frauds in the run that ended with it: known rows in a row that are all frauds."""
    run_time: Float
    """Time of the first fraud of this run."""
    first_time: Float
    """Time of the first known fraud."""


class Activity(NamedTuple):
    """The earlier rows of a context value; arrays are (N,)."""

    rows: Index
    """Number of earlier rows."""
    last_time: Float
    """Time of the latest one; undefined where there is none."""
    within: dict[str, Index]
    """Number of earlier rows inside each of `ACTIVITY_WINDOWS`."""
    level: Float
    """Sum of the levels of their amounts; 0 where the table has no amount."""
    square: Float
    """Sum of the squares of their levels; 0 where the table has no amount."""
    recent_level: Float
    """Sum of the levels inside `LEVEL_WINDOW`; 0 where the table has no amount."""


class ContextPast(Protocol):
    """Statistics of the context values of N rows; all arrays are (N,). A null has no earlier rows."""

    time: Float
    """Seconds."""
    amount: Float | None
    """Finite amounts, or None where the table has none."""

    def labels(self, column: str) -> KnownLabels:
        """What is known of the labels of the row's value in `column`."""

    def activity(self, column: str) -> Activity:
        """The earlier rows with the row's value in `column`."""


class TableContextPast:
    """The statistics of all rows of a table at once; each is computed on request to save memory.

    Args:
        events: The rows.
        label: (N,) class; 0 is negative, -1 is unknown.
        delay: Seconds after which a label is known.
        label_time: (N,) as in `balancer.data.risk.known_labels`; None where all are known after the delay.
    """

    def __init__(self, events: Events, label: NDArray[np.int16], delay: float, label_time: Float | None = None) -> None:
        self._label_time = label_time
        self.time, self.amount = events.time, events.amount
        self._keys, self._label, self._delay, self._moments = events.keys, label, delay, events.moments
        self._arrival = np.arange(len(events.time)) if events.arrival is None else events.arrival

    def labels(self, column: str) -> KnownLabels:
        """See `ContextPast`."""
        order, key, time = self._sorted(column)
        label = self._label[order]
        is_known = label >= 0
        known_key, known_time, fraud = key[is_known], time[is_known], label[is_known] > 0
        if self._label_time is not None:
            known_key, known_time, fraud = known_labels(known_key, known_time, fraud, self._label_time[order][is_known])
        known_key, known_time, fraud = _legitimate_first(known_key, known_time, fraud)
        size = len(known_key)
        index = np.arange(size, dtype=np.int64)
        begin = first_of_key(known_key)
        before = np.maximum.accumulate(np.where(fraud, index, -1))  # the last fraud up to each known row, of any key
        run = np.maximum(np.maximum.accumulate(np.where(fraud, -1, index)) + 1, begin)  # where a run that goes on would have begun
        after = np.minimum.accumulate(np.where(fraud, index, size)[::-1])[::-1]  # the next fraud
        total = np.concatenate((np.zeros(1, np.int64), np.cumsum(fraud, dtype=np.int64)))

        moments = self._moments.take(order)
        end = Timeline(known_key, known_time).position(key, moments.minus(self._delay), inclusive=self._delay > 0)
        start = np.searchsorted(known_key, key)
        recent = tuple(total[end] - total[np.maximum(end - number, start)] for number in RECENT_LABELS)
        # Without a known label, or a known fraud, these point anywhere: the formulas do not read them.
        padded = np.concatenate((known_time, np.zeros(1)))
        last = _padded(before, -1)[np.maximum(end - 1, 0)]
        any_fraud = (end > start) & (last >= start)
        first_of_run = _padded(run, 0)[last]
        return KnownLabels(
            known=self._back(order, np.minimum(end - start, RECENT_LABELS[-1])),
            recent_frauds=tuple(self._back(order, count) for count in recent),
            any_fraud=self._back(order, any_fraud),
            fraud_time=self._back(order, padded[last]),
            legitimate=self._back(order, end - np.where(any_fraud, last + 1, start)),
            run_length=self._back(order, np.where(any_fraud, last + 1 - first_of_run, 0)),
            run_time=self._back(order, padded[first_of_run]),
            first_time=self._back(order, padded[_padded(after, 0)[np.minimum(start, size)]]),
        )

    def activity(self, column: str) -> Activity:
        """See `ContextPast`."""
        order, key, time = self._sorted(column)
        index = np.arange(len(order), dtype=np.int64)
        begin = first_of_key(key)
        moments = self._moments.take(order)
        timeline = Timeline(key, moments)
        first = {name: timeline.position(key, moments.minus(seconds)) for name, seconds in ACTIVITY_WINDOWS.items()}
        zeros = np.zeros(len(order))
        level, square, recent = zeros, zeros, zeros
        if self.amount is not None:
            values = signed_log(self.amount[order])
            level, recent = earlier_sum(values, index, begin), earlier_sum(values, index, first[LEVEL_WINDOW])
            square = earlier_sum(values * values, index, begin)
        return Activity(
            rows=self._back(order, index - begin),
            last_time=self._back(order, shifted(time)),
            within={name: self._back(order, index - place) for name, place in first.items()},
            level=self._back(order, level),
            square=self._back(order, square),
            recent_level=self._back(order, recent),
        )

    @cached_property
    def _by_time(self) -> Index:
        return np.lexsort((self._arrival, self.time))

    def _sorted(self, column: str) -> tuple[Index, Index, Float]:
        """Sort the rows with a value by (value, time, arrival).

        Returns:
            The rows, their (M,) values and times.
        """
        key = self._keys[column][self._by_time]
        order = np.argsort(key, kind="stable")
        order = order[np.searchsorted(key, 0, sorter=order) :]
        rows = self._by_time[order]
        return rows, key[order], self.time[rows]

    def _back(self, order: Index, values: NDArray[Kind]) -> NDArray[Kind]:
        """Undo the sorting; rows without a value get 0."""
        out = np.zeros(len(self.time), values.dtype)
        out[order] = values
        return out


def _legitimate_first(key: Index, time: Float, fraud: Flag) -> tuple[Index, Float, Flag]:
    """Sort rows that are sorted by (key, time) by (key, time, fraud)."""
    is_new = np.ones(len(key), np.bool_)
    is_new[1:] = (key[1:] != key[:-1]) | (time[1:] != time[:-1])
    order = np.argsort(np.cumsum(is_new) * 2 + fraud, kind="stable")
    return key[order], time[order], fraud[order]


def _padded(values: Index, value: int) -> Index:
    """Append `value`, so that an index at the end, or -1, reads it."""
    return np.append(values, value)
