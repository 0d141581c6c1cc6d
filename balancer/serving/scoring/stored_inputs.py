"""Read what a model reads of the stored transactions of an entity, without changing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from balancer.data.score_memory import TableScores
from balancer.serving.scoring.loaded_model import LoadedModel
from balancer.serving.scoring.model_memory import StoredRow, base_input, first_logit, full_input, score_fields, stored_rows
from balancer.serving.storage.driver import Driver


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
        base = base_input(model, np.stack([np.frombuffer(row.fields, np.float32) for row in rows]), [row.texts for row in rows])
        time = np.array([row.time for row in rows])
        logit = first_logit(model, base, time, [entity["name"]] * len(rows))
        scores = score_fields(model, TableScores(np.zeros(len(rows), np.int64), time, logit), logit)[first:]
        rows = rows[first:]
    return StoredInputs(rows, full_input(model, rows, scores))
