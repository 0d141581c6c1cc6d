"""Statistics of the earlier rows of an entity: counts, exact sums, the row before.

What is special: the statistics are an interface, `Past`. `TablePast` computes them for a whole table from
prefix sums; the service computes them for one row at a time from its database. Both use the same formulas
(`balancer.data.features`), so the fields are identical to the last bit. Sums are exclusive prefix sums in
64-bit fixed point, and their differences are exact: neither a later row nor a row of another entity can
change even a rounding error. Running sums of raw amounts do not fit into fixed point; they restart at each
entity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.spec import DAY
from balancer.data.timeline import Index, Kind, Moments, Timeline, first_of_key, shifted

VELOCITY = {"1h": 3600.0, "6h": 6 * 3600.0, "1d": DAY, "2d": 2 * DAY, "7d": 7 * DAY, "30d": 30 * DAY}
"""Length of each look-back window, in seconds."""
AMOUNT_LIMIT = 1e15
"""Amounts are clipped to this in running sums, so that no sum overflows."""
SCALE = float(2**24)
"""Fixed-point scale: sums are integer multiples of 1 / SCALE."""
QUANTITIES = ("cos", "sin", "level", "square")
"""What is summed over rows: cosine and sine of the time of day, the level of the amount, and its square."""

Float = NDArray[np.float64]


def signed_log(values: Float) -> Float:
    """Compute sign(x) log(1 + |x|), the level of an amount."""
    return np.sign(values) * np.log1p(np.abs(values))


def quantities(time: Float, level: Float | None) -> dict[str, Float]:
    """Compute the `QUANTITIES` of N rows, before scaling.

    Args:
        time: (N,) seconds.
        level: (N,) level of the amount, or None where the table has no amount.

    Returns:
        (N,) per quantity; without amounts only "cos" and "sin".
    """
    return {name: _quantity(name, time, level) for name in (QUANTITIES if level is not None else QUANTITIES[:2])}


def _quantity(name: str, time: Float, level: Float | None) -> Float:
    if name == "cos":
        return np.cos(np.mod(time, DAY) * (2 * np.pi / DAY))
    if name == "sin":
        return np.sin(np.mod(time, DAY) * (2 * np.pi / DAY))
    if level is None:
        raise ValueError(f"{name} needs amounts")
    return level if name == "level" else level * level


def fixed(values: Float) -> Index:
    """Convert `values` to 64-bit fixed point."""
    return np.rint(values * SCALE).astype(np.int64)


class KeyPast(NamedTuple):
    """Statistics of the earlier rows of the entity with the same value in a column; arrays are (..., N)."""

    used: Index
    """Number of such rows."""
    last_time: Float
    """Time of the latest such row; undefined where there is none."""
    level: Float
    """Sum of the levels of their amounts."""
    square: Float
    """Sum of the squares of their levels."""


class Past(Protocol):
    """Statistics of the rows before each of N rows; all arrays are (N,)."""

    time: Float
    """Seconds."""
    amount: Float | None
    """Finite amounts, or None where the table has none."""
    columns: tuple[str, ...]
    """Categorical and context columns."""
    categorical: tuple[str, ...]
    """The categorical ones of `columns`. They have few values, so the spread of the entity's amounts at each
    value is meaningful."""

    @property
    def seen(self) -> Index:
        """Number of earlier rows of the entity."""

    @property
    def first_time(self) -> Float:
        """Time of the first row of the entity; the time of the row itself where it has no earlier one."""

    @property
    def previous_time(self) -> Float:
        """Time of the previous row; undefined where there is none."""

    @property
    def previous_gap(self) -> Float:
        """Seconds between the two previous rows; undefined where there are fewer than two."""

    @property
    def previous_level(self) -> Float:
        """Level of the previous row; undefined where there is none."""

    @property
    def top_level(self) -> Float:
        """Highest level of the earlier rows; undefined where there is none."""

    def count(self, window: str) -> Index:
        """Count the earlier rows inside the window."""

    def sum(self, quantity: str, window: str | None) -> Float:
        """Sum one of `QUANTITIES` over the earlier rows inside the window, or over all for None."""

    def amounts(self, window: str) -> Float:
        """Sum the amounts of the earlier rows inside the window; undefined where there is none."""

    def key_groups(self) -> Iterator[tuple[Sequence[str], KeyPast]]:
        """Statistics (K, N) of the earlier rows with the same value, for K of the `columns` at a time."""

    def previous(self, field: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Value of the field on the previous row (undefined for the first), given its current `values`."""


@dataclass(frozen=True)
class Events:
    """Columns of N rows sorted by (entity, time, input order)."""

    time: Float
    """(N,) seconds."""
    start: Index
    """(N,) index of the first row of the entity."""
    amount: Float | None
    """(N,) finite amounts, or None where the table has none."""
    keys: dict[str, Index]
    """(N,) codes of each categorical and context column; -1 is null."""
    categorical: tuple[str, ...] = ()
    """The categorical ones of `keys`."""
    arrival: Index | None = None
    """(N,) position in the input, which orders rows of different entities with the same time. None: the rows
    arrived in the order in which they are here."""

    @cached_property
    def moments(self) -> Moments:
        """The distinct times of the rows."""
        return Moments.of(self.time)


class TablePast:
    """The statistics of all rows of a table at once; each is computed on request to save memory."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.time, self.amount = events.time, events.amount
        self.columns, self.categorical = tuple(events.keys), events.categorical
        self._index = np.arange(len(events.time), dtype=np.int64)
        timeline = Timeline(events.start, events.moments)
        # Six arrays of the length of the table are kept, so they are as short as they can be.
        self._first: dict[str, NDArray[np.int32]] = {
            name: timeline.position(events.start, events.moments.minus(seconds)).astype(np.int32) for name, seconds in VELOCITY.items()
        }
        self._level = None if events.amount is None else signed_log(events.amount)
        self._top, self._total = np.zeros(0), np.zeros(0)
        if self._level is not None and events.amount is not None:
            clipped = np.clip(events.amount, -AMOUNT_LIMIT, AMOUNT_LIMIT)
            running = pl.DataFrame({"start": events.start, "level": self._level, "amount": clipped}).select(
                pl.col("level").cum_max().over("start"), pl.col("amount").cum_sum().over("start")
            )
            self._top = shifted(running["level"].to_numpy())
            self._total = np.where(self._index > events.start, shifted(running["amount"].to_numpy()), 0.0)

    @property
    def seen(self) -> Index:
        """See `Past`."""
        return self._index - self._events.start

    @property
    def first_time(self) -> Float:
        """See `Past`."""
        return self.time[self._events.start]

    @property
    def previous_time(self) -> Float:
        """See `Past`."""
        return shifted(self.time)

    @property
    def previous_gap(self) -> Float:
        """See `Past`."""
        return shifted(self.time - self.previous_time)

    @property
    def previous_level(self) -> Float:
        """See `Past`."""
        return np.zeros(0) if self._level is None else shifted(self._level)

    @property
    def top_level(self) -> Float:
        """See `Past`."""
        return self._top

    def count(self, window: str) -> Index:
        """See `Past`."""
        return self._index - self._first[window]

    def sum(self, quantity: str, window: str | None) -> Float:
        """See `Past`."""
        first = self._events.start if window is None else self._first[window]
        return earlier_sum(_quantity(quantity, self.time, self._level), self._index, first)

    def amounts(self, window: str) -> Float:
        """See `Past`."""
        return self._total - self._total[self._first[window]]

    def key_groups(self) -> Iterator[tuple[Sequence[str], KeyPast]]:
        """See `Past`: one column at a time, to save memory."""
        for column in self.columns:
            key = self.key(column)
            yield (column,), KeyPast(key.used[None], key.last_time[None], key.level[None], key.square[None])

    def key(self, column: str) -> KeyPast:
        """Statistics (N,) of the earlier rows with the same value in `column`."""
        key = self._events.keys[column]
        pair = self._events.start * (int(key.max(initial=0)) + 2) + key + 1
        order = np.argsort(pair, kind="stable")
        begin = first_of_key(pair[order])
        del pair
        zeros = np.zeros(len(order))
        level, square = zeros, zeros
        if self._level is not None:
            sorted_level = self._level[order]
            summed = (sorted_level, sorted_level * sorted_level)
            level, square = (_back(order, earlier_sum(each, self._index, begin)) for each in summed)
        last_time = _back(order, shifted(self.time[order]))
        return KeyPast(_back(order, self._index - begin), last_time, level, square)

    def previous(self, field: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Past`."""
        return shifted(values)


def earlier_sum(values: Float, index: Index, first: NDArray[np.integer]) -> Float:
    """Sum `values[first:index]` for each row.

    The sum is exact in fixed point with 24 binary digits: values outside the range cannot change it.
    """
    total = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(fixed(values), out=total[1:])
    sums: Float = (total[index] - total[first]) / SCALE
    return sums


def _back(order: Index, values: NDArray[Kind]) -> NDArray[Kind]:
    """Undo the sorting by `order`."""
    out = np.empty_like(values)
    out[order] = values
    return out
