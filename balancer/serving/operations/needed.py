"""Which old rows and labels of entities and context values later scores still depend on.

A row is old if its time is at most a moment, the horizon. Later rows are those whose time is later than the
horizon by `least_age` or more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Double, select, text

from balancer.data.context_past import ACTIVITY_WINDOWS, RECENT_LABELS
from balancer.data.past import VELOCITY
from balancer.data.risk import WINDOW_DAYS
from balancer.data.score_memory import RECENT
from balancer.data.spec import DAY
from balancer.serving.models.registry import LoadedModel
from balancer.serving.scoring.spans import CONTEXT, EVER
from balancer.serving.storage.tables import entity_states, transactions

LONGEST_WINDOW = max(VELOCITY.values())
"""Seconds of the longest window over the rows of an entity."""
_HOUR = 3600.0

_LAST_ROW = text(f"SELECT MAX(time) AS time FROM context_rows WHERE {CONTEXT} AND time <= :horizon").columns(time=Double)
_FRAUDS = text(f"SELECT MIN(time) AS first, MAX(time) AS last FROM labelled WHERE {CONTEXT} AND fraud = TRUE AND time <= :horizon").columns(
    first=Double, last=Double
)
_LEGITIMATE = text(f"SELECT MAX(time) AS time FROM labelled WHERE {CONTEXT} AND fraud = FALSE AND time <= :until").columns(time=Double)
_TENTH = text(
    f"SELECT time FROM labelled WHERE {CONTEXT} AND time <= :horizon ORDER BY time DESC LIMIT 1 OFFSET {RECENT_LABELS[-1] - 1}"
).columns(time=Double)


def least_age(models: Sequence[LoadedModel]) -> float:
    """Return the smallest age, in seconds, from which rows may be deleted: the longest window of the models.

    It is a whole number of days. The windows of labels begin a label delay before a row, at a full hour.
    """
    delay = max(model.schema.spec.label_delay for model in models)
    longest = max(LONGEST_WINDOW, max(ACTIVITY_WINDOWS.values()), max(WINDOW_DAYS) * DAY + delay + _HOUR)
    return float(math.ceil(longest / DAY) * DAY)


def first_kept(connection: Connection, entity: Mapping[str, Any], models: Sequence[LoadedModel], horizon: float) -> int:
    """Return the position of the first row of an entity that is kept.

    Every row that is not old keeps all that its fields and its score were computed from, so that it can be
    computed again: the rows that the network reads, and the rows of the windows and of the score memory
    before those. An entity without a row that is not old keeps none.

    Args:
        connection: A transaction.
        entity: The row of the entity.
        models: The models that may score it.
        horizon: The horizon.
    """
    if entity["last_time"] is None or entity["last_time"] <= horizon:
        return int(entity["rows"])
    columns = transactions.c
    own = columns.entity == entity["id"]
    young = connection.execute(
        select(columns.position).where(own, columns.time > horizon).order_by(columns.time, columns.position).limit(1)
    ).scalar_one()
    needed = [young] + [model.stream.first_needed(max(young - 1, 0)) for model in models if model.stream is not None]
    states = entity_states.c
    for rows in connection.execute(select(states.rows).where(states.entity == entity["id"])).scalars():
        needed += [rows, *(model.stream.next_begins(rows) for model in models if model.stream is not None)]
    first = max(0, min(needed))
    begin = connection.execute(
        select(columns.time).where(own, columns.position >= first).order_by(columns.position).limit(1)
    ).scalar_one_or_none()
    bound = horizon if begin is None else min(horizon, begin - LONGEST_WINDOW)
    within = connection.execute(
        select(columns.position).where(own, columns.time > bound).order_by(columns.time, columns.position).limit(1)
    ).scalar_one()
    kept: int = max(0, min(within, first - RECENT))
    return kept


class Context(NamedTuple):
    """A value of a context column."""

    tenant: str
    column: str
    value: str


@dataclass(frozen=True)
class NeededOfContext:
    """The old rows and labels of a context value that later rows depend on."""

    last_row: float
    """Time of its last old row."""
    first_fraud: float
    """Time of its first fraud."""
    labels_from: float
    """Old labels from this time on are counted: in the last labels, since the last fraud, or in its run."""

    def needs_row(self, time: float) -> bool:
        """Whether the time of the last row before a later row may be this one."""
        return time >= self.last_row

    def needs_label(self, time: float) -> bool:
        """Whether a later row sees this label."""
        return time >= self.labels_from or time == self.first_fraud

    @classmethod
    def read(cls, connection: Connection, context: Context, horizon: float) -> NeededOfContext:
        """Read them; what is kept because of them does not change them."""
        values: dict[str, Any] = {**context._asdict(), "horizon": horizon}
        last_row = connection.execute(_LAST_ROW, values).scalar()
        first, last = connection.execute(_FRAUDS, values).one()
        labels_from = EVER  # without a fraud, all labels are counted
        if last is not None:
            # The run of frauds begins after the last legitimate row before its last fraud.
            legitimate = connection.execute(_LEGITIMATE, values | {"until": last}).scalar()
            tenth = connection.execute(_TENTH, values).scalar()
            labels_from = min(first if legitimate is None else legitimate, EVER if tenth is None else tenth)
        return cls(math.inf if last_row is None else last_row, math.inf if first is None else first, labels_from)
