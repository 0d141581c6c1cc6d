"""The first stage of a detector's trees, and the scores of an entity's earlier rows.

What is special: the formulas are those of a table (`balancer.data.score_memory`). The cost of a row does not
grow with its history, because an entity keeps its last log-odds, and every transaction the sum of the
probabilities before it. They depend on the trees. When others come into service, the scores of an entity are
computed again from its stored fields, once, at its next transaction. Their bits are then those of an entity
whose rows were all sent to the new model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from balancer.data.past import SCALE, Float, fixed
from balancer.data.score_memory import RECENT, ScorePast, TableScores, clipped, memory_fields, probability
from balancer.data.timeline import Index
from balancer.inference.tree_stages import fold_of, time_folds
from balancer.serving.scoring.history import Firsts, earlier_parts
from balancer.serving.scoring.registry import LoadedModel
from balancer.serving.scoring.row import Row

AT_ONCE = 10_000
"""Stored rows that are read at once, which limits the memory."""
_STORE = text("UPDATE transactions SET scores = :scores, sum_score = :sum_score WHERE entity = :entity AND position = :position")


class Scored(NamedTuple):
    """What the first stage gives to a row."""

    fields: NDArray[np.float32]
    """(S,) score fields."""
    logit: float
    """Clipped log-odds, for the memory of the entity."""


class RowScores:
    """The scores before one row (`balancer.data.score_memory.ScorePast`, N = 1), from the row of its entity.

    Args:
        entity: The row of the entity.
        firsts: Of each window, from `window_firsts`.
    """

    def __init__(self, entity: Mapping[str, Any], firsts: Firsts) -> None:
        self.seen: Index = np.array([entity["rows"]])
        self._total, self._firsts = entity["sum_score"], firsts
        self._logits = _logits(entity).astype(np.float64)

    def logit(self, back: int) -> Float:
        """See `ScorePast`."""
        return self._logits[-back, None] if back <= len(self._logits) else np.zeros(1)

    def count(self, window: str) -> Index:
        """See `ScorePast`."""
        count: Index = self.seen - self._firsts[window]["position"]
        return count

    def probability(self, window: str) -> Float:
        """See `ScorePast`."""
        return np.array([self._total - self._firsts[window]["sum_score"]]) / SCALE


def first_stage(model: LoadedModel, entity: Mapping[str, Any], row: Row, firsts: Firsts, base: NDArray[np.float32]) -> Scored:
    """Score a row by the first stage, with the memory of its entity.

    Args:
        model: A model with trees.
        entity: The row of the entity; its scores are those of these trees (`refresh`).
        row: The transaction.
        firsts: Of each window, from `window_firsts`.
        base: (C,) input of the first stage.
    """
    logit = _logit(model, base[None], np.array([row.time]), row.entity)
    fields = _fields(model, RowScores(entity, firsts), logit)
    return Scored(fields[0], float(clipped(logit)[0]))


def refresh(connection: Connection, entity: dict[str, Any], name: str, model: LoadedModel) -> None:
    """Compute the scores of the stored rows of an entity again, if they are not those of the model's trees.

    Args:
        connection: A transaction that writes.
        entity: The row of the entity; it is changed here, and `save_entity` writes it.
        name: Name of the entity.
        model: The model in service.
    """
    if model.first_stage is None or not entity["rows"] or entity["first_stage"] == model.first_stage:
        return
    times, parts = [], []
    for rows in earlier_parts(connection, entity["id"], AT_ONCE):
        base = np.stack([model.encoded(np.frombuffer(row.fields, np.float32), row.texts) for row in rows])
        times.append(np.array([row.time for row in rows]))
        parts.append(_logit(model, base, times[-1], name))
    time, logit = np.concatenate(times), np.concatenate(parts)
    fields = _fields(model, TableScores(np.zeros(len(time), np.int64), time, logit), logit)
    kept = clipped(logit)
    total = np.concatenate((np.zeros(1, np.int64), np.cumsum(fixed(probability(kept)))))
    connection.execute(
        _STORE,
        [
            {"scores": scores.tobytes(), "sum_score": before, "entity": entity["id"], "position": position}
            for position, (scores, before) in enumerate(zip(fields, total[:-1].tolist(), strict=True))
        ],
    )
    entity |= {"first_stage": model.first_stage, "sum_score": int(total[-1]), "last_logits": _packed(kept)}


def remember(entity: dict[str, Any], model: LoadedModel, scored: Scored | None) -> None:
    """Add a row to the memory of its entity; a model without trees leaves nothing to remember.

    Args:
        entity: The row of the entity; it is changed here, and `save_entity` writes it.
        model: The model in service.
        scored: What its first stage gave to the row; None without trees.
    """
    if scored is None:
        entity |= {"first_stage": None, "sum_score": 0, "last_logits": None}
        return
    logit = np.array([scored.logit])
    entity |= {
        "first_stage": model.first_stage,
        "sum_score": entity["sum_score"] + int(fixed(probability(logit))[0]),
        "last_logits": _packed(np.concatenate((_logits(entity), logit))),
    }


def _logit(model: LoadedModel, base: NDArray[np.float32], time: Float, entity: str) -> Float:
    """Log-odds (n,) of rows (n, C) of an entity by the first stage."""
    stages = model.detector.stages
    assert stages is not None
    folds = len(stages.folds)
    if model.schema.spec.entity is None:
        return stages.first_logit(base, time, time_folds(time, folds))
    return stages.first_logit(base, time, np.full(len(time), fold_of(entity, folds)))


def _fields(model: LoadedModel, past: ScorePast, logit: Float) -> NDArray[np.float32]:
    """The score fields (n, S), from the log-odds (n,) of the rows and of those before them."""
    columns = [clipped(logit).astype(np.float32)]
    if len(model.schema.numeric_fields) > len(model.base.numeric_fields) + 1:
        columns += [values for _, values in memory_fields(past)]
    return np.stack(columns, axis=1)


def _logits(entity: Mapping[str, Any]) -> NDArray[np.float32]:
    return np.frombuffer(entity["last_logits"] or b"", np.float32)


def _packed(logits: NDArray[np.floating]) -> bytes:
    return logits[-RECENT:].astype(np.float32).tobytes()
