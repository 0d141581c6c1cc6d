"""Causal fields of a transaction: its own, and against the history of its entity.

What is special: a row sees strictly earlier rows of its entity only (rows of one moment: the one earlier in the table), *bit for bit*.
Running sums are exclusive prefix sums in 64-bit fixed point, whose differences are exact, so neither a later row nor another entity's
rows can move even a rounding error; running sums of raw amounts, which don't fit fixed point, restart at each entity. Fields grow like a
logarithm at most.
Sources: velocity and customer windows after Le Borgne et al., Fraud Detection Handbook, chapter 3; hour habit after Correa Bahnsen et al.
2016 (periodic behaviour of time), here as a mean cosine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.spec import DAY
from balancer.data.timeline import Index, Timeline

VELOCITY = {"1h": 3600.0, "6h": 6 * 3600.0, "1d": DAY, "2d": 2 * DAY, "7d": 7 * DAY, "30d": 30 * DAY}
NEVER_DAYS = 3650.0
"""Stands for "never before" where a field says how long ago."""
AMOUNT_LIMIT = 1e15
"""Amounts count as at most this in running sums, so that no sum overflows."""
_SCALE = float(2**24)
_DEVIATION_FLOOR = 0.1

Float = NDArray[np.float64]
Field = tuple[str, NDArray[np.float32]]


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
    """Which of the keys are categorical: few values, so that the entity's amounts at each have a spread worth measuring."""


def signed_log(values: Float) -> Float:
    """sign(x) log(1 + |x|)."""
    return np.sign(values) * np.log1p(np.abs(values))


def row_fields(events: Events) -> Iterator[Field]:
    """Fields of the row alone: amount, hour of the day, day of the week."""
    if events.amount is not None:
        yield "amount_log", signed_log(events.amount).astype(np.float32)
    hour = np.mod(events.time, DAY) / 3600.0
    yield "hour", hour.astype(np.float32)
    yield "hour_sin", np.sin(hour * (np.pi / 12)).astype(np.float32)
    yield "hour_cos", np.cos(hour * (np.pi / 12)).astype(np.float32)
    # 1970-01-01 was a Thursday: Monday is 0.
    yield "weekday", np.mod(np.floor(events.time / DAY) + 3, 7).astype(np.float32)


def entity_fields(events: Events) -> Iterator[Field]:
    """Fields of the row against the earlier rows of its entity."""
    index = np.arange(len(events.time), dtype=np.int64)
    seen = index - events.start
    before = np.maximum(index - 1, 0)
    gap = _since(events.time, before, seen > 0)
    yield "is_first", (seen == 0).astype(np.float32)
    yield "gap_log", np.log1p(gap).astype(np.float32)
    yield "history_count", np.log1p(seen).astype(np.float32)
    age = events.time - events.time[events.start]
    yield "history_days", np.log1p(age / DAY).astype(np.float32)
    mean_gap = age / np.maximum(seen, 1)
    yield "previous_gap_log", np.where(seen > 1, np.log1p(gap[before]), 0.0).astype(np.float32)
    yield "previous_hour", np.where(seen > 0, np.mod(events.time[before], DAY) / 3600.0, 0.0).astype(np.float32)
    yield "gap_ratio", np.where(seen > 1, np.log1p(gap) - np.log1p(mean_gap), 0.0).astype(np.float32)
    firsts = window_firsts(events)
    for name, first in firsts.items():
        yield f"count_{name}", np.log1p(index - first).astype(np.float32)
    yield from _hour_habit(events, index, firsts)
    if events.amount is not None:
        yield from _amount_fields(events, events.amount, index, firsts)
    for name, key in events.keys.items():
        yield from _key_fields(name, key, events)


def window_firsts(events: Events) -> dict[str, Index]:
    """Per velocity window, the first row of the entity that is younger than the window (at most the row itself)."""
    timeline = Timeline(events.start, events.time)
    return {name: timeline.position(events.start, events.time - seconds) for name, seconds in VELOCITY.items()}


def earlier_sum(values: Float, index: Index, first: Index) -> Float:
    """Sum of `values[first:index]` for each row, exact: fixed point with 24 binary digits, whatever lies outside the range."""
    total = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(np.rint(values * _SCALE).astype(np.int64), out=total[1:])
    return (total[index] - total[first]) / _SCALE


def _since(time: Float, previous: Index, valid: NDArray[np.bool_]) -> Float:
    return np.where(valid, time - time[np.maximum(previous, 0)], NEVER_DAYS * DAY)


def _hour_habit(events: Events, index: Index, firsts: dict[str, Index]) -> Iterator[Field]:
    """Mean over the earlier rows of cos(hour - this hour): 1 where they all fell at this hour, -1 at the opposite one; and the day's mean hour."""
    angle = np.mod(events.time, DAY) * (2 * np.pi / DAY)
    cos, sin = np.cos(angle), np.sin(angle)
    for name, first in (("all", events.start), ("1d", firsts["1d"])):
        count = np.maximum(index - first, 1)
        mean_cos, mean_sin = earlier_sum(cos, index, first) / count, earlier_sum(sin, index, first) / count
        yield f"hour_habit_{name}", (cos * mean_cos + sin * mean_sin).astype(np.float32)
    # Of the last day only: where a run of fraud began the night before, the row itself may stand at any hour.
    yield "hour_cos_mean_1d", mean_cos.astype(np.float32)
    yield "hour_sin_mean_1d", mean_sin.astype(np.float32)


def _amount_fields(events: Events, amount: Float, index: Index, firsts: dict[str, Index]) -> Iterator[Field]:
    level = signed_log(amount)
    seen = index - events.start
    count = np.maximum(seen, 1)
    mean = earlier_sum(level, index, events.start) / count
    variance = earlier_sum(level * level, index, events.start) / count - mean * mean
    ratio = np.where(seen > 0, level - mean, 0.0)
    yield "amount_ratio", ratio.astype(np.float32)
    deviation = np.sqrt(np.maximum(variance, 0.0) + _DEVIATION_FLOOR**2)
    yield "amount_z", signed_log(ratio / deviation).astype(np.float32)
    running = pl.DataFrame({"start": events.start, "level": level, "amount": np.clip(amount, -AMOUNT_LIMIT, AMOUNT_LIMIT)}).select(
        pl.col("level").cum_max().over("start"), pl.col("amount").cum_sum().over("start")
    )
    before = np.maximum(index - 1, 0)
    yield "previous_amount_log", np.where(seen > 0, level[before], 0.0).astype(np.float32)
    top = np.where(seen > 0, running["level"].to_numpy()[before], level)
    yield "amount_to_max", (level - top).astype(np.float32)
    total = np.where(seen > 0, running["amount"].to_numpy()[before], 0.0)
    for name, first in firsts.items():
        within = np.where(index > first, total - total[first], 0.0)
        yield f"sum_{name}", signed_log(within).astype(np.float32)
    for name in ("1d", "7d"):
        first = firsts[name]
        within_count = np.maximum(index - first, 1)
        inside = earlier_sum(level, index, first) / within_count
        yield f"mean_shift_{name}", np.where(index > first, inside - mean, 0.0).astype(np.float32)
        if name == "1d":
            yield "amount_mean_1d", inside.astype(np.float32)
            spread = earlier_sum(level * level, index, first) / within_count - inside * inside
            yield "amount_spread_1d", np.sqrt(np.maximum(spread, 0.0)).astype(np.float32)


def _key_fields(name: str, key: Index, events: Events) -> Iterator[Field]:
    """How often and how lately the entity used this value; the amount, and that of the row before, against what it spends there."""
    pair = events.start * (int(key.max(initial=0)) + 2) + key + 1
    order = np.argsort(pair, kind="stable")
    group = pair[order]
    place = np.arange(len(order), dtype=np.int64)
    is_new = np.concatenate((np.ones(1, np.bool_), group[1:] != group[:-1]))[: len(order)]
    begin = np.maximum.accumulate(np.where(is_new, place, 0))
    used = place - begin
    since = _since(events.time[order], place - 1, used > 0)
    yield f"{name}_used", _back(order, np.log1p(used))
    history = (np.arange(len(order), dtype=np.int64) - events.start)[order]
    yield f"{name}_share", _back(order, used / np.maximum(history, 1))
    yield f"{name}_days_since", _back(order, np.log1p(since / DAY))
    if events.amount is None:
        return
    level = signed_log(events.amount)[order]
    count = np.maximum(used, 1)
    mean = earlier_sum(level, place, begin) / count
    ratio = _back(order, np.where(used > 0, level - mean, 0.0))
    yield f"{name}_amount_ratio", ratio
    if name not in events.categorical:
        return
    variance = earlier_sum(level * level, place, begin) / count - mean * mean
    deviation = np.sqrt(np.maximum(variance, 0.0) + _DEVIATION_FLOOR**2)
    score = _back(order, np.where(used > 1, signed_log((level - mean) / deviation), 0.0))
    yield f"{name}_amount_z", score
    for field, values in ((f"previous_{name}_amount_ratio", ratio), (f"previous_{name}_amount_z", score)):
        yield field, np.where(place > events.start, values[np.maximum(place - 1, 0)], np.float32(0.0))


def _back(order: Index, values: Float) -> NDArray[np.float32]:
    out = np.empty(len(order), dtype=np.float32)
    out[order] = values
    return out
