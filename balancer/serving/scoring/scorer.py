"""Score transactions one by one and store them with their answers, a request in one database transaction.

Order, late, repeated and contradicting transactions:

- The effective time of a transaction is not before the last one of its entity. One that arrives late is
    scored as if it were at that time (`late_by` is the difference), because later transactions have already
    been scored. Within a request, transactions are first sorted by time.
- A transaction whose id is already stored gets the earlier answer (`repeated`) and does not count again. With
    other content it is refused, and the whole request with it.
- A transaction whose time is in the future, by the clock of the service, is refused: all later ones of its
    entity would be late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, insert, select

from balancer.devices import torch_threads
from balancer.inference.decision import decide
from balancer.inference.streaming import RowState
from balancer.serving.errors import ConflictError
from balancer.serving.scoring.actions import action
from balancer.serving.scoring.context_past import lock_values
from balancer.serving.scoring.history import (
    Row,
    active_columns,
    append,
    earlier_rows,
    lock_entity,
    numeric_fields,
    save_entity,
    window_firsts,
)
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.registry import LoadedModel
from balancer.serving.scoring.score_memory import first_stage, refresh, remember
from balancer.serving.scoring.state import pack, unpack
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import decisions, transactions

Answer = dict[str, Any]
NO_NETWORK = "the scores of this model come from boosted trees alone, so there is no attention to list"


class ScoringResult(NamedTuple):
    """The answers to the transactions of a request."""

    answers: list[Answer]
    """One answer per transaction, in the order of the request."""
    values: dict[str, np.ndarray]
    """(C,) input of the model by id, of transactions that were not stored before."""


class Scorer:
    """Scores transactions with the history in a database.

    Args:
        database: Where the transactions are stored.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def score(
        self, tenant: str, model: LoadedModel, rows: Sequence[Row], *, explain: int = 0, origin: Origin | None = None
    ) -> ScoringResult:
        """Score and store transactions, all of them or none.

        Args:
            tenant: Whose transactions.
            model: The model in service.
            rows: Transactions from `parse_transaction`.
            explain: Number of earlier transactions with the most attention to list.
            origin: Where the request came from; None: from this process.

        Raises:
            ConflictError: If an id is already stored with other content, or occurs twice with different
                content.
        """
        digests: dict[str, str] = {}
        for row in rows:
            if digests.setdefault(row.id, row.digest) != row.digest:
                raise ConflictError(f"the id {row.id!r} occurs twice in the request with different content")
        with torch_threads(1):  # as `balancer score --streaming` does: the same bits
            return self._database.write(lambda connection: self._score(connection, tenant, model, rows, explain, origin or Origin()))

    def _score(
        self, connection: Connection, tenant: str, model: LoadedModel, rows: Sequence[Row], explain: int, origin: Origin
    ) -> ScoringResult:
        # All requests lock entities in the same order, so that two requests never wait for each other.
        entities = {name: lock_entity(connection, tenant, name) for name in sorted({row.entity for row in rows})}
        columns = active_columns(model.base)
        lock_values(connection, tenant, ((column, row.texts[column]) for row in rows for column in columns))
        answers = self._stored_answers(connection, tenant, {row.id: row for row in rows})
        repeated = set(answers)
        states: dict[str, RowState | None] = {}
        read: dict[str, np.ndarray] = {}
        for number in sorted(range(len(rows)), key=lambda each: rows[each].sent_time):
            row = rows[number]
            if row.id in answers:
                continue
            entity = entities[row.entity]
            if entity["rows"]:
                row = replace(row, time=max(row.time, entity["last_time"]))
            if row.entity not in states:
                refresh(connection, entity, row.entity, model)
                states[row.entity] = self._state(connection, entity, model)
            firsts = window_firsts(connection, entity, row.time)
            numeric = numeric_fields(connection, tenant, entity, row, model.base, firsts)
            values, scored = model.encoded(numeric, row.texts), None
            if model.first_stage is not None:
                scored = first_stage(model, entity, row, firsts, values)
                values = np.concatenate((scored.fields, values))
            scores, states[row.entity] = model.step(values, states[row.entity])
            answer = _decision(scores, model) | {"id": row.id, "late_by": row.time - row.sent_time}
            if explain:
                answer |= self._most_attention(connection, entity, model, values, explain)
            append(connection, tenant, entity, row, numeric, answer, columns, None if scored is None else scored.fields)
            remember(entity, model, scored)
            connection.execute(insert(decisions), _audited(tenant, entity["id"], answer, model, origin))
            answers[row.id], read[row.id] = answer, values
        for name, state in states.items():
            entities[name] |= {"model": model.digest, "state": None if state is None else pack(state)}
            save_entity(connection, entities[name])
        answered: set[str] = set()
        in_order = []
        for row in rows:
            in_order.append(answers[row.id] | {"repeated": row.id in repeated or row.id in answered})
            answered.add(row.id)
        return ScoringResult(in_order, read)

    def _stored_answers(self, connection: Connection, tenant: str, rows: Mapping[str, Row]) -> dict[str, Answer]:
        columns = transactions.c
        found = connection.execute(
            select(columns.id, columns.digest, columns.answer).where(columns.tenant == tenant, columns.id.in_(list(rows)))
        )
        answers = {}
        for name, digest, answer in found:
            if digest != rows[name].digest:
                raise ConflictError(f"the id {name!r} is already stored with other content; give every transaction its own id")
            answers[name] = answer
        return answers

    def _state(self, connection: Connection, entity: Mapping[str, Any], model: LoadedModel) -> RowState | None:
        """Read the state of the network after the stored rows of an entity; None without a network.

        The state is computed from the rows if another model has written it.
        """
        if model.stream is None:
            return None
        position = entity["rows"]
        if position == 0:
            return model.stream.start()
        if entity["model"] == model.digest and entity["state"] is not None:
            state = unpack(entity["state"], position, model.stream)
            if state is not None:
                return state
        _, values = self._earlier(connection, entity, model, model.stream.first_needed(position - 1))
        return model.stream.read(values, position)

    def _earlier(
        self, connection: Connection, entity: Mapping[str, Any], model: LoadedModel, first: int
    ) -> tuple[Sequence[Any], np.ndarray]:
        """Read the m stored rows of an entity from position `first` on, and their model input (m, C)."""
        rows = earlier_rows(connection, entity["id"], first)
        width = len(model.schema.numeric_fields) + len(model.schema.categorical_fields)
        if not rows:
            return rows, np.empty((0, width), np.float32)
        values = np.stack([model.encoded(np.frombuffer(row.fields, np.float32), row.texts) for row in rows])
        if model.first_stage is not None:
            values = np.concatenate((np.stack([np.frombuffer(row.scores, np.float32) for row in rows]), values), axis=1)
        return rows, values

    def _most_attention(
        self, connection: Connection, entity: Mapping[str, Any], model: LoadedModel, values: np.ndarray, count: int
    ) -> dict[str, Any]:
        """List the earlier rows with the most attention of a new row, whose input is `values` (C,).

        Without a network none are listed, and `note` says so.
        """
        if model.stream is None:
            return {"weighed_most": [], "note": NO_NETWORK}
        if not entity["rows"]:
            return {"weighed_most": []}
        rows, earlier = self._earlier(connection, entity, model, model.stream.first_needed(entity["rows"]))
        if not rows:
            return {"weighed_most": []}
        weight = model.stream.attended(np.concatenate((earlier, values[None])))[:-1]
        top = np.argsort(-weight, kind="stable")[:count]
        return {"weighed_most": [{"id": rows[place].id, "time": rows[place].time, "weight": float(weight[place])} for place in top]}


def _decision(scores: np.ndarray, model: LoadedModel) -> Answer:
    """Turn class probabilities (1, K) into the columns that `balancer score` writes."""
    score, alarm, winner = decide(scores, model.decision)
    return {
        "score": float(score[0]),
        "decision": bool(alarm[0]),
        "class": model.schema.classes[int(winner[0])],
        "threshold": float(model.decision.threshold),
        "model": model.name,
    }


def _audited(tenant: str, entity: int, answer: Answer, model: LoadedModel, origin: Origin) -> dict[str, Any]:
    """The row of `decisions` for an answer."""
    return {
        "entity": entity,
        "tenant": tenant,
        "transaction": answer["id"],
        "kind": "scored",
        "received": origin.received,
        "key": origin.key,
        "request": origin.request,
        "model": model.name,
        "digest": model.digest,
        "action": action(alarm=answer["decision"]),
        **{name: answer[name] for name in ("score", "threshold", "decision", "class")},
    }
