"""Score memory: what an earlier model thought of the earlier rows of the same entity.

What is special: the fields need no label, so they work at once where labels take weeks. They are computed
from the log-odds that the first stage of a detector gave to strictly earlier rows of the entity, read through
an interface (`ScorePast`) as all facts about the past are. A table and the service therefore give the same
bits. Sums of probabilities are exact, in fixed point; a row costs the same however long the history is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from balancer.data.features import Field
from balancer.data.past import VELOCITY, Float, earlier_sum
from balancer.data.timeline import Index, Moments, Timeline

STAGE1_LOGIT = "stage1_logit"
"""Field with the log-odds of fraud that the first stage gives to the row itself."""
LIMIT = 12.0
"""Log-odds are clipped to this in both directions; without an earlier row the fields hold the lower limit."""
RECENT = 10
"""Log-odds of this many earlier rows are remembered one by one."""
LAST = (1, 2, 3)
"""Which of them are fields."""
TOP = (3, 10)
"""Numbers of earlier rows of which the highest log-odds are fields."""
WINDOWS = ("1d", "7d", "30d")
"""Windows of the sums of probabilities, of `VELOCITY`."""


class ScorePast(Protocol):
    """First-stage scores of the rows of the same entity before each of N rows; all arrays are (N,)."""

    seen: Index
    """Number of earlier rows of the entity."""

    def logit(self, back: int) -> Float:
        """Clipped log-odds of the row `back` places before, 1 to `RECENT`; undefined where there is none."""

    def count(self, window: str) -> Index:
        """Count the earlier rows inside the window."""

    def probability(self, window: str) -> Float:
        """Sum the probabilities of the earlier rows inside the window."""


def clipped(logit: NDArray[np.floating]) -> Float:
    """Log-odds as the memory keeps them: (N,) from -`LIMIT` to `LIMIT`, with the precision of float32."""
    return np.clip(np.asarray(logit, dtype=np.float32), np.float32(-LIMIT), np.float32(LIMIT)).astype(np.float64)


def probability(logit: Float) -> Float:
    """Probability of clipped log-odds."""
    return 1.0 / (1.0 + np.exp(-logit))


def memory_names(has_entity: bool, *, timed: bool = True) -> tuple[str, ...]:
    """Names of the score fields of a table, `STAGE1_LOGIT` first; without an entity it is the only one.

    Without times (`timed` False) there are no windows.
    """
    if not has_entity:
        return (STAGE1_LOGIT,)
    empty = TableScores(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    return (STAGE1_LOGIT, *(name for name, _ in memory_fields(empty, timed=timed)))


def memory_fields(past: ScorePast, *, timed: bool = True) -> Iterator[Field]:
    """Compute the fields of the earlier scores of the entity.

    Args:
        past: Scores of the earlier rows.
        timed: Whether the rows have times, and so windows.

    Yields:
        Name and (N,) float32 values of each field.
    """
    top = np.full(len(past.seen), -LIMIT)
    for back in range(1, RECENT + 1):
        earlier = np.where(past.seen >= back, past.logit(back), -LIMIT)
        top = np.maximum(top, earlier)
        if back in LAST:
            yield f"stage1_previous_{back}", earlier.astype(np.float32)
        if back in TOP:
            yield f"stage1_highest_{back}", top.astype(np.float32)
    for window in WINDOWS if timed else ():
        total, count = past.probability(window), past.count(window)
        yield f"stage1_sum_{window}", np.log1p(total).astype(np.float32)
        yield f"stage1_mean_{window}", (total / np.maximum(count, 1)).astype(np.float32)


class TableScores:
    """The scores before all rows of a table at once (`ScorePast`).

    Args:
        start: (N,) index of the first row of the entity; rows are sorted by (entity, time, input order).
        time: (N,) seconds.
        logit: (N,) log-odds of the first stage.
    """

    def __init__(self, start: Index, time: Float, logit: NDArray[np.floating]) -> None:
        self._logit, self._index = clipped(logit), np.arange(len(time), dtype=np.int64)
        self.seen = self._index - start
        moments = Moments.of(time)
        timeline = Timeline(start, moments)
        self._first = {window: timeline.position(start, moments.minus(VELOCITY[window])) for window in WINDOWS}

    def logit(self, back: int) -> Float:
        """See `ScorePast`."""
        return self._logit[np.maximum(self._index - back, 0)]

    def count(self, window: str) -> Index:
        """See `ScorePast`."""
        return self._index - self._first[window]

    def probability(self, window: str) -> Float:
        """See `ScorePast`."""
        return earlier_sum(probability(self._logit), self._index, self._first[window])
