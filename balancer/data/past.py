"""What a row's fields know of the earlier rows of its entity: counts, exact sums, the row before.

What is special: the facts are an interface. A whole table answers from prefix sums (`TablePast`); a service answers for one row at a time from what it
keeps. The formulas on top (`balancer.data.features`) are the same code, so the fields are the same bits. Sums are exclusive prefix sums in 64-bit
fixed point, whose differences are exact: neither a later row nor another entity's rows can move even a rounding error. Running sums of raw amounts,
which don't fit fixed point, restart at each entity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.spec import DAY
from balancer.data.timeline import Index, Timeline

VELOCITY = {"1h": 3600.0, "6h": 6 * 3600.0, "1d": DAY, "2d": 2 * DAY, "7d": 7 * DAY, "30d": 30 * DAY}
"""Windows that look back, in seconds."""
AMOUNT_LIMIT = 1e15
"""Amounts count as at most this in running sums, so that no sum overflows."""
SCALE = float(2**24)
"""Fixed point: sums are whole numbers of 1 / SCALE."""
QUANTITIES = ("cos", "sin", "level", "square")
"""What is summed per row: cosine and sine of the time of day, the level of the amount and its square."""

Float = NDArray[np.float64]
Kind = TypeVar("Kind", bound=np.generic)


def signed_log(values: Float) -> Float:
    """sign(x) log(1 + |x|): the level of an amount."""
    return np.sign(values) * np.log1p(np.abs(values))


def quantities(time: Float, level: Float | None) -> dict[str, Float]:
    """(N,) each of `QUANTITIES` that rows have, before they are scaled."""
    angle = np.mod(time, DAY) * (2 * np.pi / DAY)
    circle = {"cos": np.cos(angle), "sin": np.sin(angle)}
    return circle if level is None else circle | {"level": level, "square": level * level}


def fixed(values: Float) -> Index:
    """Fixed point of `values`, int64."""
    return np.rint(values * SCALE).astype(np.int64)


class KeyPast(NamedTuple):
    """Earlier rows of the entity that share the row's value of one column; arrays (N,)."""

    used: Index
    """How many there are."""
    last_time: Float
    """Time of the latest; anything where there is none."""
    level: Float
    """Sum of their levels."""
    square: Float
    """Sum of the squares of their levels."""


class Past(Protocol):
    """Facts about N rows; all arrays (N,)."""

    time: Float
    """Seconds."""
    amount: Float | None
    """Finite amounts, or None where the table has none."""
    columns: tuple[str, ...]
    """Categorical and context columns."""
    categorical: tuple[str, ...]
    """Which of them are categorical: few values, so that the entity's amounts at each have a spread worth measuring."""
    seen: Index
    """Earlier rows of the entity."""
    first_time: Float
    """Time of the entity's first row, the row itself if it has no earlier one."""
    previous_time: Float
    """Time of the row before; anything where there is none."""
    previous_gap: Float
    """Seconds between the two rows before; anything where there are not two."""
    previous_level: Float
    """Level of the row before; anything where there is none."""
    top_level: Float
    """Highest level so far; anything where there is no earlier row."""

    def count(self, window: str) -> Index:
        """Earlier rows younger than the window."""

    def sum(self, quantity: str, window: str | None) -> Float:
        """Sum of one of `QUANTITIES` over the earlier rows younger than the window, or over all."""

    def amounts(self, window: str) -> Float:
        """Sum of the amounts of the earlier rows younger than the window; anything where there is none."""

    def key(self, column: str) -> KeyPast:
        """Earlier rows with the row's value of the column."""

    def previous(self, field: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the field `field`, here `values`, was on the row before; anything where there is none."""


@dataclass(frozen=True)
class Events:
    """Columns of N rows sorted by (entity, time, input order)."""

    time: Float
    """(N,) seconds."""
    start: Index
    """(N,) first row of the row's entity."""
    amount: Float | None
    """(N,) finite amounts, or None where the table has none."""
    keys: dict[str, Index]
    """(N,) codes of each categorical and context column, -1 = null."""
    categorical: tuple[str, ...] = ()
    """Which of the keys are categorical."""


class TablePast:
    """The facts about all rows of a table at once; each is computed when it is asked for, so that few are held."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.time, self.amount = events.time, events.amount
        self.columns, self.categorical = tuple(events.keys), events.categorical
        self._index = np.arange(len(events.time), dtype=np.int64)
        self._before = np.maximum(self._index - 1, 0)
        self.seen = self._index - events.start
        self.first_time = events.time[events.start]
        self.previous_time = events.time[self._before]
        self.previous_gap = (self.time - self.previous_time)[self._before]
        timeline = Timeline(events.start, events.time)
        self._first = {name: timeline.position(events.start, events.time - seconds) for name, seconds in VELOCITY.items()}
        self._level = None if events.amount is None else signed_log(events.amount)
        nothing = np.zeros(0)
        self.previous_level, self.top_level, self._total = nothing, nothing, nothing
        if self._level is not None and events.amount is not None:
            clipped = np.clip(events.amount, -AMOUNT_LIMIT, AMOUNT_LIMIT)
            running = pl.DataFrame({"start": events.start, "level": self._level, "amount": clipped}).select(
                pl.col("level").cum_max().over("start"), pl.col("amount").cum_sum().over("start")
            )
            self.previous_level = self._level[self._before]
            self.top_level = running["level"].to_numpy()[self._before]
            self._total = np.where(self.seen > 0, running["amount"].to_numpy()[self._before], 0.0)

    def count(self, window: str) -> Index:
        """See `Past`."""
        return self._index - self._first[window]

    def sum(self, quantity: str, window: str | None) -> Float:
        """See `Past`."""
        first = self._events.start if window is None else self._first[window]
        return earlier_sum(quantities(self.time, self._level)[quantity], self._index, first)

    def amounts(self, window: str) -> Float:
        """See `Past`."""
        return self._total - self._total[self._first[window]]

    def key(self, column: str) -> KeyPast:
        """See `Past`."""
        key = self._events.keys[column]
        pair = self._events.start * (int(key.max(initial=0)) + 2) + key + 1
        order = np.argsort(pair, kind="stable")
        group = pair[order]
        is_new = np.concatenate((np.ones(1, np.bool_), group[1:] != group[:-1]))[: len(order)]
        begin = np.maximum.accumulate(np.where(is_new, self._index, 0))
        nothing = np.zeros(len(order))
        level, square = nothing, nothing
        if self._level is not None:
            own = self._level[order]
            level, square = (_back(order, earlier_sum(each, self._index, begin)) for each in (own, own * own))
        last_time = _back(order, self.time[order][self._before])
        return KeyPast(_back(order, self._index - begin), last_time, level, square)

    def previous(self, field: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Past`."""
        return values[self._before]


def earlier_sum(values: Float, index: Index, first: Index) -> Float:
    """Sum of `values[first:index]` for each row, exact: fixed point with 24 binary digits, whatever lies outside the range."""
    total = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(fixed(values), out=total[1:])
    return (total[index] - total[first]) / SCALE


def _back(order: Index, values: NDArray[Kind]) -> NDArray[Kind]:
    out = np.empty_like(values)
    out[order] = values
    return out
