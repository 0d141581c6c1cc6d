"""Read what a model needs of the earlier rows of an entity: its scores, and the state of its network.

What is special: the state is a copy of what the stored rows determine. A snapshot of it is in the database
after every `SNAPSHOT_ROWS` rows; what came later is read from the rows, as it is after another model has come
into service. The bits are the same either way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from balancer.data.past import SCALE, Float, fixed
from balancer.data.score_memory import RECENT, ScorePast, TableScores, clipped, memory_fields, probability
from balancer.data.timeline import Index
from balancer.inference.streaming import RowState
from balancer.inference.tree_stages import fold_of, time_folds
from balancer.serving.models.registry import LoadedModel
from balancer.serving.scoring.entity_memory import EntityMemory, ModelMemory
from balancer.serving.scoring.state import pack, unpack
from balancer.serving.storage.driver import Driver

SNAPSHOT_ROWS = 64
"""Rows of an entity between two snapshots of its state."""
AT_ONCE = 10_000
"""Rows that are read at once where all of an entity are needed, which limits the memory."""
_ROWS = "SELECT position, id, time, fields, scores, texts FROM transactions WHERE entity = :entity AND position >= :first ORDER BY position"
_PAGE = f"{_ROWS} LIMIT {AT_ONCE}"
STORE_SCORES = "UPDATE transactions SET scores = :scores, sum_score = :sum_score WHERE entity = :entity AND position = :position"
_SNAPSHOT = 'SELECT "rows", state FROM entity_states WHERE entity = :entity AND model = :model'


class StoredRow(NamedTuple):
    """A stored transaction."""

    position: int
    id: str
    time: float
    fields: bytes
    scores: bytes | None
    texts: dict[str, str | None]


@dataclass
class Scores:
    """Statistics of the scores before n rows (`balancer.data.score_memory.ScorePast`)."""

    seen: Index
    logits: Float
    """(n, `RECENT`) clipped log-odds of the rows before, the latest first."""
    counts: dict[str, Index]
    sums: dict[str, Index]
    """(n,) sum of the probabilities by window, in fixed point."""

    def logit(self, back: int) -> Float:
        """See `ScorePast`."""
        return self.logits[:, back - 1]

    def count(self, window: str) -> Index:
        """See `ScorePast`."""
        return self.counts[window]

    def probability(self, window: str) -> Float:
        """See `ScorePast`."""
        return self.sums[window] / SCALE


def stored_rows(driver: Driver, entity: int, first: int, *, page: bool = False) -> list[StoredRow]:
    """Read the rows of an entity in order, from position `first` on: all, or a `page` of `AT_ONCE`."""
    found = driver.rows(_PAGE if page else _ROWS, {"entity": entity, "first": first})
    return [StoredRow(row[0], row[1], row[2], row[3], row[4], _texts(row[5])) for row in found]


def _texts(stored: Any) -> dict[str, str | None]:
    """A JSON column, which the driver of PostgreSQL has already decoded."""
    found: dict[str, str | None] = json.loads(stored) if isinstance(stored, str) else stored
    return found


def first_logit(model: LoadedModel, base: NDArray[np.float32], time: Float, entities: Sequence[str]) -> Float:
    """Log-odds (n,) of rows (n, C) by the first stage, given their times and the names of their entities."""
    stages = model.detector.stages
    assert stages is not None
    folds = len(stages.folds)
    if model.schema.spec.entity is None:
        return stages.first_logit(base, time, time_folds(time, folds))
    known = {name: fold_of(name, folds) for name in set(entities)}
    return stages.first_logit(base, time, np.array([known[name] for name in entities]))


def score_fields(model: LoadedModel, past: ScorePast, logit: Float) -> NDArray[np.float32]:
    """The score fields (n, S), from the log-odds (n,) of the rows and of those before them."""
    columns = [clipped(logit).astype(np.float32)]
    if len(model.schema.numeric_fields) > len(model.base.numeric_fields) + 1:
        columns += [values for _, values in memory_fields(past)]
    return np.stack(columns, axis=1)


def open_memory(driver: Driver, entity: EntityMemory, model: LoadedModel, *, decides: bool) -> ModelMemory:
    """Read the memory of a model for an entity from what is stored.

    Args:
        driver: A transaction that writes.
        entity: The entity, as it was just read.
        model: The model.
        decides: Whether its scores are those that are stored with the rows. If the stored ones are those of
            other trees, they are computed again, once.
    """
    memory = ModelMemory(None, model.stream, decides)
    fields: NDArray[np.float32] | None = None
    if model.first_stage is not None and entity.rows:
        if decides and entity.first_stage == model.first_stage:
            memory.total = entity.sum_score
            memory.logits = np.frombuffer(entity.last_logits or b"", np.float32).astype(np.float64).tolist()
            memory.begin, memory.before = entity.begin, list(entity.read_scores or ())
        else:
            fields = _scored_again(driver, entity, model, memory, store=decides)
    if model.stream is None:
        return memory
    if not entity.rows:
        memory.state = model.stream.start()
        return memory
    found = driver.rows(_SNAPSHOT, {"entity": entity.id, "model": model.digest}) if decides else []
    if found and entity.rows - found[0][0] < 4 * SNAPSHOT_ROWS:
        position = int(found[0][0])
        begin = model.stream.next_begins(position)
        rows = stored_rows(driver, entity.id, begin)
        state = None
        if not rows or rows[0].position == begin:
            values = full_input(model, rows)
            state = unpack(bytes(found[0][1]), position, model.stream, values[: position - begin])
        if state is not None:
            memory.snapshot, memory.state = position, _advanced(model, state, values[position - begin :])
            return memory
    rows = stored_rows(driver, entity.id, model.stream.first_needed(entity.rows - 1))
    memory.state = model.stream.read(full_input(model, rows, None if fields is None else fields[len(fields) - len(rows) :]), entity.rows)
    return memory


def catch_up(driver: Driver, entity: EntityMemory, model: LoadedModel, memory: ModelMemory, known: int, scores: Sequence[int]) -> bool:
    """Continue a memory over rows that another worker has added and scored by the same model.

    Args:
        driver: A transaction.
        entity: The entity, which has caught up already.
        model: The model, which decided those rows.
        memory: Its memory after `known` rows.
        known: Number of rows before.
        scores: Sum of the probabilities before each of the other rows.

    Returns:
        Whether it is the memory of all rows now.
    """
    if not memory.decides or entity.first_stage != model.first_stage or entity.rows - known > SNAPSHOT_ROWS:
        return False
    if model.first_stage is not None and scores[0] != memory.total:
        return False  # other models have scored the rows in between, and the sums begin elsewhere
    if model.first_stage is not None:
        memory.total = entity.sum_score
        memory.logits = np.frombuffer(entity.last_logits or b"", np.float32).astype(np.float64).tolist()
        memory.before.extend(scores)
    if model.stream is not None and memory.state is not None:
        memory.state = _advanced(model, memory.state, full_input(model, stored_rows(driver, entity.id, known)))
    return True


def scored_again(driver: Driver, entity: EntityMemory, model: LoadedModel) -> NDArray[np.float32]:
    """Compute the score fields (n, S) of all stored rows of an entity by a model that did not decide them."""
    return _scored_again(driver, entity, model, ModelMemory(None), store=False)


def snapshot(memory: ModelMemory) -> bytes | None:
    """The bytes of a state; None without a network."""
    return None if memory.state is None else pack(memory.state)


def full_input(model: LoadedModel, rows: Sequence[StoredRow], fields: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """The input (n, C) of a model for stored rows; score fields (n, S) are given or are the stored ones."""
    width = len(model.schema.numeric_fields) + len(model.schema.categorical_fields)
    if not rows:
        return np.empty((0, width), np.float32)
    values = stored_base(model, rows)
    if model.first_stage is None:
        return values
    if fields is None:
        fields = np.stack([np.frombuffer(row.scores or b"", np.float32) for row in rows])
    return np.concatenate((fields, values), axis=1)


def stored_base(model: LoadedModel, rows: Sequence[StoredRow]) -> NDArray[np.float32]:
    """The input (n, C) of a model for stored rows, without score fields."""
    return model.base_input(np.stack([np.frombuffer(row.fields, np.float32) for row in rows]), [row.texts for row in rows])


def _scored_again(driver: Driver, entity: EntityMemory, model: LoadedModel, memory: ModelMemory, *, store: bool) -> NDArray[np.float32]:
    """Compute the scores of all rows of an entity by the first stage of a model.

    Returns:
        (n, S) their score fields.
    """
    positions: list[int] = []
    times, logits = [], []
    while page := stored_rows(driver, entity.id, positions[-1] + 1 if positions else 0, page=True):
        positions += [row.position for row in page]
        times.append(np.array([row.time for row in page]))
        logits.append(first_logit(model, stored_base(model, page), times[-1], [entity.name] * len(page)))
    time, logit = np.concatenate(times), np.concatenate(logits)
    fields = score_fields(model, TableScores(np.zeros(len(time), np.int64), time, logit), logit)
    kept = clipped(logit)
    total = np.concatenate((np.zeros(1, np.int64), np.cumsum(fixed(probability(kept)))))
    memory.begin, memory.before, memory.total = positions[0], total[:-1].tolist(), int(total[-1])
    memory.logits = kept[-RECENT:].tolist()
    if store:
        changes: list[dict[str, Any]] = [
            {"scores": one.tobytes(), "sum_score": before, "entity": entity.id, "position": position}
            for position, one, before in zip(positions, fields, memory.before, strict=True)
        ]
        driver.many(STORE_SCORES, changes)
    return fields


def _advanced(model: LoadedModel, state: RowState, values: NDArray[np.float32]) -> RowState:
    assert model.stream is not None
    for row in values:
        _, state = model.stream.advance(row, state)
    return state
