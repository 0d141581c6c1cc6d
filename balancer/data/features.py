"""Causal fields of a transaction: of the row alone, and relative to the history of its entity.

What is special: a row depends only on strictly earlier rows of its entity (among rows with the same time, on
those that come first in the table), exact to the last bit. The formulas read the statistics of those rows
through an interface (`balancer.data.past`), so a table and the service share them. Fields grow at most
logarithmically.

Sources: velocity and customer windows after Le Borgne et al., Fraud Detection Handbook, chapter 3; the hour
habit after Correa Bahnsen et al. 2016 (periodic behaviour of time), here as a mean cosine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from balancer.data.past import VELOCITY, Float, KeyPast, Past, quantities, signed_log
from balancer.data.spec import DAY

NEVER_DAYS = 3650.0
"""Value of "days since" fields where something never happened before."""
_DEVIATION_FLOOR = 0.1
"""Added to standard deviations (in quadrature), so that z-scores stay finite."""

ROW_FIELDS = ("amount_log", "hour", "hour_sin", "hour_cos", "weekday")
"""Names of the fields of `row_fields`."""
GROWING = ("history_count", "history_days")
"""Fields that grow with the time that a table covers, whatever its rows are."""

Field = tuple[str, NDArray[np.float32]]


def deviation(variance: Float) -> Float:
    """Compute a standard deviation that is never 0 from a variance, which rounding may have made negative."""
    return np.sqrt(np.maximum(variance, 0.0) + _DEVIATION_FLOOR**2)


def row_fields(time: Float | None, amount: Float | None) -> Iterator[Field]:
    """Compute the fields of the row alone: amount, hour of the day, day of the week.

    Args:
        time: (N,) seconds; None for a table without a time, whose rows only have an order.
        amount: (N,) finite amounts, or None where the table has none.

    Yields:
        Name and (N,) float32 values of each field.
    """
    if amount is not None:
        yield "amount_log", signed_log(amount).astype(np.float32)
    if time is None:
        return
    hour = np.mod(time, DAY) / 3600.0
    yield "hour", hour.astype(np.float32)
    yield "hour_sin", np.sin(hour * (np.pi / 12)).astype(np.float32)
    yield "hour_cos", np.cos(hour * (np.pi / 12)).astype(np.float32)
    # 1970-01-01 was a Thursday: Monday is 0.
    yield "weekday", np.mod(np.floor(time / DAY) + 3, 7).astype(np.float32)


def entity_fields(past: Past, *, timed: bool = True) -> Iterator[Field]:
    """Compute the fields of the row relative to the earlier rows of its entity.

    Args:
        past: Statistics of the earlier rows.
        timed: Whether the rows have times. Otherwise only fields that follow from their order are computed.

    Yields:
        Name and (N,) float32 values of each field.
    """
    seen = past.seen
    yield "is_first", (seen == 0).astype(np.float32)
    if timed:
        yield from _timed_fields(past)
    else:
        yield "history_count", np.log1p(seen).astype(np.float32)
    level = None if past.amount is None else signed_log(past.amount)
    if level is not None:
        yield from _amount_fields(past, level, timed=timed)
    for names, key in past.key_groups():
        yield from _key_fields(names, key, past, level, timed=timed)


def _timed_fields(past: Past) -> Iterator[Field]:
    """How long the history is, how recent the rows before are, and how many there are in each window."""
    seen = past.seen
    gap = np.where(seen > 0, past.time - past.previous_time, NEVER_DAYS * DAY)
    yield "gap_log", np.log1p(gap).astype(np.float32)
    yield "history_count", np.log1p(seen).astype(np.float32)
    age = past.time - past.first_time
    yield "history_days", np.log1p(age / DAY).astype(np.float32)
    mean_gap = age / np.maximum(seen, 1)
    # The first row of an entity has no gap: `previous_gap` may hold the distance to a row of another entity.
    yield "previous_gap_log", np.where(seen > 1, np.log1p(np.where(seen > 1, past.previous_gap, 0.0)), 0.0).astype(np.float32)
    yield "previous_hour", np.where(seen > 0, np.mod(past.previous_time, DAY) / 3600.0, 0.0).astype(np.float32)
    yield "gap_ratio", np.where(seen > 1, np.log1p(gap) - np.log1p(mean_gap), 0.0).astype(np.float32)
    for name in VELOCITY:
        yield f"count_{name}", np.log1p(past.count(name)).astype(np.float32)
    yield from _hour_habit(past)


def _hour_habit(past: Past) -> Iterator[Field]:
    """Compare the hour of the row with the hours of the earlier rows.

    The habit is the mean over the earlier rows of cos(hour - this hour): 1 where all were at this hour, -1
    where all were twelve hours away.
    """
    circle = quantities(past.time, None)
    for name, window in (("all", None), ("1d", "1d")):
        count = np.maximum(past.seen if window is None else past.count(window), 1)
        mean_cos, mean_sin = past.sum("cos", window) / count, past.sum("sin", window) / count
        yield f"hour_habit_{name}", (circle["cos"] * mean_cos + circle["sin"] * mean_sin).astype(np.float32)
    # The mean hour of the last day only: a series of frauds that began the night before may continue at any
    # hour.
    yield "hour_cos_mean_1d", mean_cos.astype(np.float32)
    yield "hour_sin_mean_1d", mean_sin.astype(np.float32)


def _amount_fields(past: Past, level: Float, *, timed: bool) -> Iterator[Field]:
    """Compare the amount with earlier amounts of the entity: mean, deviation, maximum, windows."""
    seen = past.seen
    count = np.maximum(seen, 1)
    mean = past.sum("level", None) / count
    variance = past.sum("square", None) / count - mean * mean
    ratio = np.where(seen > 0, level - mean, 0.0)
    yield "amount_ratio", ratio.astype(np.float32)
    yield "amount_z", signed_log(ratio / deviation(variance)).astype(np.float32)
    yield "previous_amount_log", np.where(seen > 0, past.previous_level, 0.0).astype(np.float32)
    yield "amount_to_max", (level - np.where(seen > 0, past.top_level, level)).astype(np.float32)
    if not timed:
        return
    for name in VELOCITY:
        within = np.where(past.count(name) > 0, past.amounts(name), 0.0)
        yield f"sum_{name}", signed_log(within).astype(np.float32)
    for name in ("1d", "7d"):
        any_inside = past.count(name) > 0
        within_count = np.maximum(past.count(name), 1)
        inside = past.sum("level", name) / within_count
        yield f"mean_shift_{name}", np.where(any_inside, inside - mean, 0.0).astype(np.float32)
        if name == "1d":
            yield "amount_mean_1d", inside.astype(np.float32)
            spread = past.sum("square", name) / within_count - inside * inside
            yield "amount_spread_1d", np.sqrt(np.maximum(spread, 0.0)).astype(np.float32)


def _key_fields(names: Sequence[str], key: KeyPast, past: Past, level: Float | None, *, timed: bool) -> Iterator[Field]:
    """How often and how recently the entity used the values of K columns; the arrays of `key` are (K, N).

    With amounts, also this amount and the previous one relative to the amounts of the entity at this value.
    """
    used, last_time, level_sum, square_sum = key
    share = (used / np.maximum(past.seen, 1)).astype(np.float32)
    log_used = np.log1p(used).astype(np.float32)
    days: NDArray[np.float32] | None = None
    if timed:
        days = np.log1p(np.where(used > 0, past.time - last_time, NEVER_DAYS * DAY) / DAY).astype(np.float32)
    ratios: NDArray[np.float32] | None = None
    if level is not None:
        count = np.maximum(used, 1)
        mean = level_sum / count
        ratios = np.where(used > 0, level - mean, 0.0).astype(np.float32)
        if any(name in past.categorical for name in names):
            variance = square_sum / count - mean * mean
            scores = np.where(used > 1, signed_log((level - mean) / deviation(variance)), 0.0).astype(np.float32)
    for place, name in enumerate(names):
        yield f"{name}_used", log_used[place]
        yield f"{name}_share", share[place]
        if days is not None:
            yield f"{name}_days_since", days[place]
        if ratios is None:
            continue
        yield f"{name}_amount_ratio", ratios[place]
        if name not in past.categorical:
            continue
        yield f"{name}_amount_z", scores[place]
        for field, values in ((f"{name}_amount_ratio", ratios[place]), (f"{name}_amount_z", scores[place])):
            yield f"previous_{field}", np.where(past.seen > 0, past.previous(field, values), np.float32(0.0))
