"""Which fields of a row say nothing because there is no earlier row, and how to say so.

What is special: a field of earlier rows holds 0 where there are none. Read as a value that would be false,
such as an amount of 0.00 of a previous transaction that does not exist. Other fields count the earlier rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from balancer.data.context_past import ACTIVITY_WINDOWS, LEVEL_WINDOW
from balancer.data.past import VELOCITY
from balancer.data.risk import WINDOW_DAYS
from balancer.data.schema import Schema
from balancer.data.score_memory import LAST, TOP, WINDOWS
from balancer.data.words import period, spoken

COUNT = "history_count"
"""Field with the number of earlier rows of the entity (log)."""


@dataclass(frozen=True)
class Absence:
    """What a field says where something that it reads does not exist."""

    count: str
    """Name of a field with log(1 + number of what is read)."""
    least: int
    """With fewer than this there is nothing to read."""
    words: str
    """Said in place of the field and its value."""

    def holds(self, row: Mapping[str, float]) -> bool:
        """Whether it is so in a row, given as its fields by name."""
        count = row.get(self.count)
        return count is not None and count < math.log1p(self.least - 0.5)


def absences(schema: Schema) -> dict[str, tuple[Absence, ...]]:
    """What each field of earlier rows says where there are none, by its name, the most general first."""
    found: dict[str, tuple[Absence, ...]] = {}
    for name, *said in _listed(schema):
        found[name] = (*found.get(name, ()), *said)
    return found


def _listed(schema: Schema) -> Iterator[tuple[str, *tuple[Absence, ...]]]:
    spec = schema.spec
    if spec.entity is not None:
        this = f"this {spoken(spec.entity)}"
        first, second = Absence(COUNT, 1, f"no earlier transaction of {this}"), Absence(COUNT, 2, f"only one earlier transaction of {this}")
        for name in _of_one_row():
            yield name, first
        for name in ("previous_gap_log", "gap_ratio", "amount_z"):
            yield name, first, second
        for window, seconds in VELOCITY.items():
            recent = Absence(f"count_{window}", 1, f"no transaction of {this} in the last {period(seconds)}")
            yield f"count_{window}", first
            yield f"sum_{window}", first, recent
            for name in (f"mean_shift_{window}", *((f"stage1_mean_{window}", f"stage1_sum_{window}") if window in WINDOWS else ())):
                yield name, first, recent
            if window == "1d":
                for name in ("hour_habit_1d", "hour_cos_mean_1d", "hour_sin_mean_1d", "amount_mean_1d", "amount_spread_1d"):
                    yield name, first, recent
        for back in LAST[1:]:
            yield f"stage1_previous_{back}", first, Absence(COUNT, back, f"fewer than {back} earlier transactions of {this}")
        for column in dict.fromkeys((*spec.categorical, *spec.context)):
            never = Absence(f"{column}_used", 1, f"no earlier transaction of {this} with this {spoken(column)}")
            yield f"{column}_used", first, never
            for name in ("share", "days_since", "amount_ratio"):
                yield f"{column}_{name}", first, never
            yield f"{column}_amount_z", first, never, Absence(f"{column}_used", 2, never.words.replace("no earlier", "only one earlier"))
            for name in ("ratio", "z"):
                yield f"previous_{column}_amount_{name}", first
    for column in spec.context:
        this = f"this {spoken(column)}"
        for days in WINDOW_DAYS:
            none = Absence(f"{column}_count_{days}d", 1, f"no known label of {this} in a window of {days} {'day' if days == 1 else 'days'}")
            yield f"{column}_fraud_rate_{days}d", none
        last = ACTIVITY_WINDOWS[LEVEL_WINDOW]
        quiet = Absence(f"{column}_rows_{LEVEL_WINDOW}", 1, f"no transaction of {this} in the last {period(last)}")
        yield f"{column}_level_shift_{LEVEL_WINDOW}", quiet


def _of_one_row() -> tuple[str, ...]:
    """Fields that read at least one earlier row of the entity."""
    of_scores = (f"stage1_previous_{LAST[0]}", *(f"stage1_highest_{number}" for number in TOP))
    of_times = ("gap_log", "history_days", "previous_hour", "hour_habit_all")
    return ("is_first", COUNT, *of_times, "amount_ratio", "previous_amount_log", "amount_to_max", *of_scores)
