"""What a worker remembers of an entity: statistics, the rows of its windows, the states of its models.

What is special: the database is the truth, and this is a copy that saves reading it. A copy holds as long as
the entity has the same version and number of rows there. Where another worker has added rows, they are read
and the copy continues; where anything else has changed, all is read again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from balancer.data.past import AMOUNT_LIMIT, VELOCITY
from balancer.inference.streaming import RowState, RowStream
from balancer.serving.storage.driver import Driver

MOST_ROWS = 5_000
"""Rows in the windows that are read at once. Up to twice as many are remembered."""
MOST_VALUES = 2_000
"""Values that are read at once. Up to twice as many are remembered; others are read when they occur."""
LONGEST = max(VELOCITY.values())
EVER = -math.inf
SUMS = ("sum_cos", "sum_sin", "sum_level", "sum_square", "sum_amount")
"""Sums over the earlier rows of an entity: in fixed point, but that of the amounts."""
_NO_SUMS = (0, 0, 0, 0, 0.0)

STATISTICS = {
    **dict.fromkeys(("id", "rows"), "whole"),
    **dict.fromkeys(("first_time", "last_time", "last_gap", "last_level", "top_level"), "float"),
    "last_fields": "bytes",
    **dict.fromkeys(SUMS[:-1], "whole"),
    SUMS[-1]: "float",
    "first_stage": "text",
    "last_logits": "bytes",
    "sum_score": "whole",
}
"""Columns of `entities` that change with a row, and their kinds."""
_STATISTICS = ", ".join(f'"{name}"' for name in STATISTICS)
_READ = f"SELECT {_STATISTICS} FROM entities WHERE id = :entity"
_ROW = f"position, time, {', '.join(SUMS)}, sum_score"
_WINDOW = f"SELECT {_ROW} FROM transactions WHERE entity = :entity AND time > :after ORDER BY time DESC, position DESC LIMIT {MOST_ROWS}"
_ADDED = f"SELECT {_ROW} FROM transactions WHERE entity = :entity AND position >= :first ORDER BY position"
_FIRST = f"SELECT {_ROW} FROM transactions WHERE entity = :entity AND time > :bound ORDER BY time, position LIMIT 1"
_VALUES = f'SELECT "column", value, used, last_time, sum_level, sum_square FROM used_values WHERE entity = :entity LIMIT {MOST_VALUES + 1}'
_VALUE = 'SELECT used, last_time, sum_level, sum_square FROM used_values WHERE entity = :entity AND "column" = :column AND value = :value'

Sums = tuple[int, int, int, int, float]


class First(NamedTuple):
    """The first row of a window: its position, and the sums before it."""

    position: int
    sums: Sums


@dataclass
class Used:
    """`balancer.data.past.KeyPast` of one value, with sums in fixed point."""

    used: int = 0
    last_time: float = 0.0
    level: int = 0
    square: int = 0


@dataclass
class ModelMemory:
    """What the next row of an entity needs of the scores and states that one model gave to earlier rows."""

    state: RowState | None
    """State of the network; None without one."""
    stream: RowStream | None = None
    """What reads the rows: a state belongs to this object, and not to another one of the same run."""
    decides: bool = False
    """Whether its scores are those that are stored with the rows."""
    snapshot: int = 0
    """Rows of the entity after which the state in the database was written; 0: none was."""
    total: int = 0
    """Sum of the probabilities of the first stage, in fixed point."""
    logits: list[float] = field(default_factory=list)
    """Its last log-odds, clipped, the latest last."""
    begin: int = 0
    """Position of the first row in `before`."""
    before: list[int] = field(default_factory=list)
    """Sum of the probabilities before each row."""


class EntityMemory:
    """The statistics of an entity (see `balancer.serving.storage.tables.entities`).

    Args:
        entity: Id in the database.
        name: Name of the entity.
        version: Its version there.

    Attributes:
        rows: Number of rows, with those of the running batch.
        begin: Position of the first remembered row.
        read_scores: Sum of the probabilities before each remembered row; None once a row was added.
        models: By digest of the model.
    """

    def __init__(self, entity: int, name: str, version: int) -> None:
        self.id, self.name, self.version = entity, name, version
        self.rows = 0
        self.first_time = self.last_time = self.last_gap = self.last_level = self.top_level = 0.0
        self.last_fields: NDArray[np.float32] | None = None
        self.sums: Sums = _NO_SUMS
        self.first_stage: str | None = None
        self.last_logits: bytes | None = None
        self.sum_score = 0
        self.read_scores: list[int] | None = []
        self.models: dict[str, ModelMemory] = {}
        self.changed: dict[tuple[str, str], Used] = {}
        self._since, self.begin = EVER, 0
        self._times: list[float] = []
        self._before: list[Sums] = []
        self._used: dict[tuple[str, str], Used] = {}
        self._knows_values = True

    @classmethod
    def read(cls, driver: Driver, entity: int, name: str, version: int) -> EntityMemory:
        """Read an entity that has rows."""
        memory = cls(entity, name, version)
        memory._read_statistics(driver)
        memory._since = memory.last_time - LONGEST
        found = driver.rows(_WINDOW, {"entity": entity, "after": memory._since})
        if len(found) == MOST_ROWS:  # there may be earlier rows at the time of the first
            memory._since = found[-1][1]
            found = [row for row in found if row[1] > memory._since]
        memory.begin = found[-1][0] if found else memory.rows
        memory.read_scores = memory._add_read(reversed(found))
        values = driver.rows(_VALUES, {"entity": entity})
        memory._knows_values = len(values) <= MOST_VALUES
        memory._used = {(row[0], row[1]): Used(int(row[2]), row[3], int(row[4]), int(row[5])) for row in values[:MOST_VALUES]}
        return memory

    def catch_up(self, driver: Driver) -> list[int]:
        """Read the rows that another worker has added.

        Returns:
            Sum of the probabilities before each of them.
        """
        found = driver.rows(_ADDED, {"entity": self.id, "first": self.rows})
        self._read_statistics(driver)
        self._used, self._knows_values = {}, False
        return self._add_read(found)

    def _read_statistics(self, driver: Driver) -> None:
        row = dict(zip(STATISTICS, driver.rows(_READ, {"entity": self.id})[0], strict=True))
        self.rows = int(row["rows"])
        for name in ("first_time", "last_time", "last_gap", "last_level", "top_level"):
            setattr(self, name, row[name] or 0.0)
        self.last_fields = np.frombuffer(row["last_fields"], np.float32) if row["last_fields"] else None
        self.sums = (int(row["sum_cos"]), int(row["sum_sin"]), int(row["sum_level"]), int(row["sum_square"]), row["sum_amount"])
        self.first_stage, self.last_logits, self.sum_score = row["first_stage"], row["last_logits"], int(row["sum_score"])

    def _add_read(self, found: Iterable[tuple[Any, ...]]) -> list[int]:
        scores = []
        for _, time, cos, sin, level, square, amount, score in found:
            self._times.append(time)
            self._before.append((int(cos), int(sin), int(level), int(square), amount))
            scores.append(int(score))
        return scores

    @property
    def size(self) -> int:
        """About how many bytes it needs."""
        states = sum(memory.state.nbytes for memory in self.models.values() if memory.state is not None)
        lists = sum(40 * len(memory.before) for memory in self.models.values())
        return 3_000 + 250 * len(self._times) + 600 * len(self._used) + states + lists

    def first(self, driver: Driver, bound: float) -> First:
        """Return the first row after `bound`; without one, the next row of the entity."""
        if self.rows == 0 or self.last_time <= bound:
            return First(self.rows, self.sums)
        if self.first_time > bound and self.begin == 0:
            return First(0, _NO_SUMS)
        place = bisect_right(self._times, bound)
        if bound < self._since:
            found = driver.rows(_FIRST, {"entity": self.id, "bound": bound})
            if found:
                position, _, cos, sin, level, square, amount, _ = found[0]
                if position < self.begin + place:
                    return First(position, (int(cos), int(sin), int(level), int(square), amount))
        return First(self.begin + place, self._before[place])

    def used(self, driver: Driver, column: str, value: str) -> Used:
        """Return what is known of a value of a column (`value_key`)."""
        found = self._used.get((column, value))
        if found is None:
            found = Used()
            if not self._knows_values:
                stored = driver.rows(_VALUE, {"entity": self.id, "column": column, "value": value})
                if stored:
                    used, last_time, level, square = stored[0]
                    found = Used(int(used), last_time, int(level), int(square))
            self._used[column, value] = found
        return found

    def add(
        self, time: float, amount: float | None, level: float, added: tuple[int, int, int, int], values: Sequence[tuple[str, str]]
    ) -> None:
        """Add a row of the running batch.

        Args:
            time: Effective time in seconds.
            amount: Its amount, or None.
            level: Level of the amount; 0 without one.
            added: Cosine, sine, level and square of the row in fixed point.
            values: Columns and values (`value_key`).
        """
        self._times.append(time)
        self._before.append(self.sums)
        self.read_scores = None
        if self.rows == 0:
            self.first_time, self.last_gap, self.top_level = time, 0.0, level
        else:
            self.last_gap, self.top_level = time - self.last_time, max(self.top_level, level)
        self.last_time, self.last_level = time, level
        cos, sin, levels, squares, amounts = self.sums
        clipped = min(max(amount or 0.0, -AMOUNT_LIMIT), AMOUNT_LIMIT)
        self.sums = (cos + added[0], sin + added[1], levels + added[2], squares + added[3], amounts + clipped)
        for key in values:
            used = self._used.get(key)
            if used is None:
                used = self._used[key] = Used()
            used.used += 1
            used.last_time = time
            used.level += added[2]
            used.square += added[3]
            self.changed[key] = used
        self.rows += 1

    def statistics(self) -> tuple[Any, ...]:
        """The values of the columns `STATISTICS`."""
        fields = None if self.last_fields is None else self.last_fields.tobytes()
        times = (self.first_time, self.last_time, self.last_gap, self.last_level, self.top_level)
        return (self.id, self.rows, *times, fields, *self.sums, self.first_stage, self.last_logits, self.sum_score)

    def written(self) -> None:
        """Note that the running batch is in the database, and forget what is too much."""
        self.changed.clear()
        if len(self._used) > 2 * MOST_VALUES:
            self._used, self._knows_values = {}, False
        if len(self._times) <= 2 * MOST_ROWS:
            return
        # What the windows need of earlier rows is read where it is needed.
        drop = max(bisect_right(self._times, self.last_time - LONGEST), len(self._times) - MOST_ROWS)
        if drop:
            self._since = self._times[drop - 1]
            self.begin += drop
            del self._times[:drop], self._before[:drop]
            for memory in self.models.values():
                gone = self.begin - memory.begin
                if gone > 0 and memory.decides:  # those of a challenger are stored nowhere
                    del memory.before[:gone]
                    memory.begin += gone


def score_before(memory: ModelMemory, position: int) -> int | None:
    """Sum of the probabilities before the row at `position`, or the next row; None if it is too old."""
    place = position - memory.begin
    if place < 0:
        return None
    return memory.total if place >= len(memory.before) else memory.before[place]


def sums_of(rows: Sequence[First]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Positions (n,), sums in fixed point (n, 4) and sums of amounts (n,) of the first rows of windows."""
    positions = np.array([row.position for row in rows], np.int64)
    return positions, np.array([row.sums[:4] for row in rows], np.int64), np.array([row.sums[4] for row in rows])
