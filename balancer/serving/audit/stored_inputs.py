"""Read what a model reads of the stored transactions of an entity, and score them by its first stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from balancer.data.past import fixed
from balancer.data.score_memory import RECENT, TableScores, clipped, probability
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.scoring.model_memory import STORE_SCORES, StoredRow, first_logit, full_input, score_fields, stored_base, stored_rows
from balancer.serving.storage.driver import Driver
from balancer.serving.storage.tables import transactions


class StoredInputs(NamedTuple):
    """Stored rows of an entity, and the input of a model for them."""

    rows: Sequence[StoredRow]
    """n rows in order."""
    values: NDArray[np.float32]
    """(n, C) all fields."""


def first_read(model: LoadedModel, place: int) -> int:
    """Position of the first row that is read to score the row at a position from the stored rows."""
    return place if model.stream is None or not place else min(place, model.stream.first_needed(place - 1))


def stored_inputs(connection: Connection, entity: Mapping[str, Any], model: LoadedModel, first: int, last: int) -> StoredInputs:
    """Read the rows at positions `first` to `last`.

    Args:
        connection: A transaction.
        entity: The row of the entity.
        model: The model; its score fields are computed again if those of other trees are stored.
        first: The first position.
        last: The last position.
    """
    driver = Driver(connection)
    again = model.first_stage is not None and entity["first_stage"] != model.first_stage
    rows = [row for row in stored_rows(driver, entity["id"], 0 if again else first) if row.position <= last]
    scores = None
    if again:
        base = stored_base(model, rows)
        time = np.array([row.time for row in rows])
        logit = first_logit(model, base, time, [entity["name"]] * len(rows))
        scores = score_fields(model, TableScores(np.zeros(len(rows), np.int64), time, logit), logit)
        scores = scores[[row.position >= first for row in rows]]
        rows = [row for row in rows if row.position >= first]
    return StoredInputs(rows, full_input(model, rows, scores))


def score_again(connection: Connection, entity: Mapping[str, Any], model: LoadedModel, position: int) -> dict[str, Any]:
    """Compute the score fields of stored rows again whose fields have changed.

    Args:
        connection: A transaction that writes.
        entity: The row of the entity. If it names other trees, all of its rows are scored.
        model: The model in service.
        position: The first row whose fields have changed.

    Returns:
        The columns of the row of the entity that depend on it.
    """
    nothing = {"first_stage": None, "last_logits": None, "sum_score": 0}
    driver = Driver(connection)
    rows = [] if model.first_stage is None else stored_rows(driver, entity["id"], 0)
    if not rows:
        return nothing
    kept = sum(row.position < position for row in rows) if entity["first_stage"] == model.first_stage else 0
    time = np.array([row.time for row in rows])
    logit = np.empty(len(rows))
    if kept:  # as the memory keeps them, clipped and with single precision
        logit[:kept] = [np.frombuffer(row.scores or b"", np.float32)[0] for row in rows[:kept]]
    if kept < len(rows):
        base = stored_base(model, rows[kept:])
        logit[kept:] = first_logit(model, base, time[kept:], [entity["name"]] * (len(rows) - kept))
    fields = score_fields(model, TableScores(np.zeros(len(rows), np.int64), time, logit), logit)
    added = fixed(probability(clipped(logit)))
    column = select(transactions.c.sum_score).where(transactions.c.entity == entity["id"], transactions.c.position == rows[0].position)
    begin = int(connection.execute(column).scalar_one()) if kept else 0
    total = np.cumsum(np.concatenate(([begin], added))).tolist()
    changes = [
        {"scores": fields[place].tobytes(), "sum_score": total[place], "entity": entity["id"], "position": rows[place].position}
        for place in range(kept, len(rows))
    ]
    if changes:
        driver.many(STORE_SCORES, changes)
    last = clipped(logit)[-RECENT:].astype(np.float32).tobytes()
    return {"first_stage": model.first_stage, "last_logits": last, "sum_score": total[-1]}
