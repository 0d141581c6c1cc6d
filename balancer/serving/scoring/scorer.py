"""Transactions in, decisions out: read, put in order, scored one by one, stored with their answers in one database transaction.

What a transaction is judged by, and what becomes of late, repeated and contradicting ones:

- It counts at its time, but not before the entity's last one: one that comes late is judged as if it happened then (`late_by` says how late it was), since
  what came after it has been judged already. Within one request transactions are put in order of time first.
- One whose id was stored before gets the answer of then (`repeated`), and nothing is counted; with other content it is refused, and with it the whole
  request.
- One from the future, by the service's clock, is refused: all later ones of the entity would be late.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, delete, select, update

from balancer.data.schema import Schema
from balancer.data.spec import nearest
from balancer.devices import torch_threads
from balancer.errors import InputError
from balancer.inference.decision import decide
from balancer.inference.streaming import RowState
from balancer.serving.errors import ConflictError, MissingError
from balancer.serving.scoring.history import Row, append, count_label, earlier_rows, lock_entity, numeric_fields, save_entity
from balancer.serving.scoring.registry import LoadedModel
from balancer.serving.scoring.state import pack, unpack
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import entities, labelled, labelled_hours, transactions

Answer = dict[str, Any]


class Judged(NamedTuple):
    """What became of some transactions."""

    answers: list[Answer]
    """In the order they came."""
    values: dict[str, np.ndarray]
    """By id, what the model read (C,) of those that were not stored before."""


LATEST = 1e11
"""Seconds; a number beyond is surely in milliseconds."""
LONGEST_TEXT = 1_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_row(raw: Mapping[str, Any], schema: Schema, where: str, now: float, tolerance: float) -> Row:
    """Check one transaction, by the columns of the table the model was trained on.

    Args:
        raw: values by column, further ones are left out; `id` names the transaction where the table has no id column.
        schema: of the model.
        where: what to call the transaction in messages.
        now: the service's clock, seconds since 1970.
        tolerance: seconds by which a time may be ahead of it.

    Raises:
        InputError: A column is missing, or a value can't be used.
    """
    spec = schema.spec
    key = spec.id or "id"
    known = [name for name in spec.columns() if name != spec.label]
    for name in known:
        if name not in raw and name != spec.id:
            remedy = "null where it is not known" if name in _optional(schema) else "a value"
            raise InputError(f"{where}: column {name!r} is missing; give {remedy}")
    moment = _time(raw[spec.time], f"{where}: column {spec.time!r}")
    if moment > now + tolerance:
        raise InputError(
            f"{where}: column {spec.time!r} lies {moment - now:.0f} s ahead of the service's clock, more than {tolerance:g} s; mend the sender's clock"
        )
    amount = None if spec.amount is None else _number(raw[spec.amount], f"{where}: column {spec.amount!r}", math.inf)
    number = {
        name: math.nan if raw[name] is None else _number(raw[name], f"{where}: column {name!r}", float(np.finfo(np.float32).max))
        for name in spec.numeric
    }
    texts = {
        name: None if raw[name] is None else _text(raw[name], f"{where}: column {name!r}")
        for name in dict.fromkeys((*spec.categorical, *spec.context))
    }
    given = None if raw.get(key) is None else _text(raw[key], f"{where}: column {key!r}")
    name = given or uuid.uuid4().hex
    entity = name if spec.entity is None else _text(raw[spec.entity], f"{where}: column {spec.entity!r}")
    digest = hashlib.sha256(json.dumps([entity, moment, amount, list(number.values()), texts]).encode()).hexdigest()
    return Row(name, entity, moment, moment, amount, number, texts, digest)


class Scorer:
    """Scores for one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def score(self, tenant: str, model: LoadedModel, rows: Sequence[Row], *, explain: int = 0) -> Judged:
        """The answers to `rows`, in their order; all of them are stored, or none.

        Args:
            tenant: whose entities they are.
            model: what judges.
            rows: as `read_row` gives them.
            explain: how many earlier transactions that weighed most to name.

        Raises:
            ConflictError: An id was stored with other content, or stands twice in the request with different content.
        """
        digests: dict[str, str] = {}
        for row in rows:
            if digests.setdefault(row.id, row.digest) != row.digest:
                raise ConflictError(f"the id {row.id!r} stands twice in the request, with different content")
        with torch_threads(1):  # as `balancer score --streaming` does: the same bits
            return self._database.write(lambda connection: self._score(connection, tenant, model, rows, explain))

    def _score(self, connection: Connection, tenant: str, model: LoadedModel, rows: Sequence[Row], explain: int) -> Judged:
        # In one order for all, so that two requests never wait for each other.
        held = {name: lock_entity(connection, tenant, name) for name in sorted({row.entity for row in rows})}
        answers = self._stored(connection, tenant, {row.id: row for row in rows})
        repeated = set(answers)
        states: dict[str, RowState] = {}
        read: dict[str, np.ndarray] = {}
        for number in sorted(range(len(rows)), key=lambda each: rows[each].sent_time):
            row = rows[number]
            if row.id in answers:
                continue
            entity = held[row.entity]
            if entity["rows"]:
                row = replace(row, time=max(row.time, entity["last_time"]))
            if row.entity not in states:
                states[row.entity] = self._state(connection, entity, model)
            numeric = numeric_fields(connection, tenant, entity, row, model.schema)
            values = model.encoded(numeric, row.texts)
            probability, states[row.entity] = model.stream.step(values, states[row.entity])
            answer = decided(probability, model) | {"id": row.id, "late_by": row.time - row.sent_time}
            if explain:
                answer["weighed_most"] = self._explained(connection, entity, model, values, explain)
            append(connection, tenant, entity, row, numeric, answer)
            answers[row.id], read[row.id] = answer, values
        for name, state in states.items():
            held[name] |= {"model": model.digest, "state": pack(state)}
            save_entity(connection, held[name])
        told: set[str] = set()
        out = []
        for row in rows:
            out.append(answers[row.id] | {"repeated": row.id in repeated or row.id in told})
            told.add(row.id)
        return Judged(out, read)

    def _stored(self, connection: Connection, tenant: str, rows: Mapping[str, Row]) -> dict[str, Answer]:
        columns = transactions.c
        found = connection.execute(
            select(columns.id, columns.digest, columns.answer).where(columns.tenant == tenant, columns.id.in_(list(rows)))
        )
        answers = {}
        for name, digest, answer in found:
            if digest != rows[name].digest:
                raise ConflictError(f"the id {name!r} was stored before with other content; give each transaction an id of its own")
            answers[name] = answer
        return answers

    def _state(self, connection: Connection, entity: Mapping[str, Any], model: LoadedModel) -> RowState:
        """What the model remembers of the entity; read again from its stored rows where another model was in service since."""
        position = entity["rows"]
        if position == 0:
            return model.stream.start()
        if entity["model"] == model.digest and entity["state"] is not None:
            state = unpack(entity["state"], position, model.stream)
            if state is not None:
                return state
        return model.stream.read(self._encoded(connection, entity, model, model.stream.first_needed(position - 1)), position)

    def _encoded(self, connection: Connection, entity: Mapping[str, Any], model: LoadedModel, first: int) -> np.ndarray:
        """(m, C) what the model reads of the entity's rows from `first` on."""
        rows = earlier_rows(connection, entity["id"], first)
        values = [model.encoded(np.frombuffer(row.fields, np.float32), row.texts) for row in rows]
        width = len(model.schema.numeric_fields) + len(model.schema.categorical_fields)
        return np.stack(values) if values else np.empty((0, width), np.float32)

    def _explained(
        self, connection: Connection, entity: Mapping[str, Any], model: LoadedModel, values: np.ndarray, count: int
    ) -> list[dict[str, Any]]:
        first = model.stream.first_needed(entity["rows"])
        rows = earlier_rows(connection, entity["id"], first) if entity["rows"] else []
        if not rows:
            return []
        earlier = [model.encoded(np.frombuffer(row.fields, np.float32), row.texts) for row in rows]
        weight = model.stream.attended(np.stack([*earlier, values]))[:-1]
        top = np.argsort(-weight, kind="stable")[:count]
        return [{"id": rows[place].id, "time": rows[place].time, "weight": float(weight[place])} for place in top]

    def label(self, tenant: str, schema: Schema, labels: Mapping[str, str | None]) -> list[str]:
        """Store what transactions turned out to be, by id; None takes a label back. Returns the ids that are not stored here.

        Raises:
            InputError: A label is no class of the model.
        """
        for name, label in labels.items():
            if label is not None and label not in schema.classes:
                raise InputError(f"the label of {name!r} is {label!r}; {nearest(label, schema.classes)}")

        def work(connection: Connection) -> list[str]:
            columns = transactions.c
            wanted = select(columns.tenant, columns.id, columns.entity, columns.position, columns.time, columns.texts)
            found = connection.execute(
                wanted.where(columns.tenant == tenant, columns.id.in_(list(labels))).order_by(columns.id).with_for_update()
            ).all()
            for row in found:
                label = labels[row.id]
                connection.execute(
                    update(transactions)
                    .where(columns.entity == row.entity, columns.position == row.position)
                    .values(label=label, labelled=None if label is None else time.time())
                )
                count_label(connection, row, schema.spec.context, None if label is None else label != schema.classes[0])
            return sorted(set(labels) - {row.id for row in found})

        return self._database.write(work)

    def entity(self, tenant: str, name: str, limit: int) -> dict[str, Any]:
        """What is stored of an entity, with its latest transactions; MissingError where it is unknown to the tenant."""

        def work(connection: Connection) -> dict[str, Any]:
            found = connection.execute(select(entities).where(entities.c.tenant == tenant, entities.c.name == name)).mappings().first()
            if found is None:
                raise MissingError(f"there is no entity {name!r}")
            columns = transactions.c
            latest = connection.execute(
                select(columns.id, columns.time, columns.answer, columns.label)
                .where(columns.entity == found["id"])
                .order_by(columns.position.desc())
                .limit(limit)
            )
            rows = [{"id": each.id, "time": each.time, "score": each.answer["score"], "label": each.label} for each in latest]
            return {"entity": name, "transactions": found["rows"], "last_time": found["last_time"], "latest": rows}

        return self._database.read(work)

    def forget(self, tenant: str, name: str) -> None:
        """Erase an entity and all its transactions; MissingError where it is unknown to the tenant."""

        def work(connection: Connection) -> None:
            chosen = select(entities.c.id).where(entities.c.tenant == tenant, entities.c.name == name).with_for_update()
            found = connection.execute(chosen).scalar()
            if found is None:
                raise MissingError(f"there is no entity {name!r}")
            gone = connection.execute(
                select(labelled).where(labelled.c.entity == found).order_by(labelled.c.column, labelled.c.value)
            ).all()
            for row in gone:
                here = labelled_hours.c
                connection.execute(
                    update(labelled_hours)
                    .where(here.tenant == tenant, here.column == row.column, here.value == row.value, here.hour == int(row.time // 3600))
                    .values(known=here.known - 1, frauds=here.frauds - int(row.fraud))
                )
            connection.execute(delete(entities).where(entities.c.id == found))

        self._database.write(work)


def decided(probability: np.ndarray, model: LoadedModel) -> Answer:
    """The answer to class probabilities (K,), as `balancer score` writes it."""
    score, alarm, winner = decide(probability[None], model.decision)
    return {
        "score": float(score[0]),
        "decision": bool(alarm[0]),
        "class": model.schema.classes[int(winner[0])],
        "threshold": float(model.decision.threshold),
        "model": model.name,
    }


def _optional(schema: Schema) -> tuple[str, ...]:
    spec = schema.spec
    return tuple(name for name in (*spec.numeric, *spec.categorical, *spec.context) if name not in (spec.entity, spec.amount, spec.time))


def _number(value: Any, where: str, most: float) -> float:
    if isinstance(value, str):
        try:
            value = float(value.strip())
        except ValueError:
            raise InputError(f"{where} is text, not a number; write a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} is {'null' if value is None else type(value).__name__}, not a number; give a finite number")
    if abs(value) > 1e308 or not math.isfinite(value):
        raise InputError(f"{where} is not finite; give a finite number")
    if abs(value) > most:
        raise InputError(f"{where} is beyond the range of 32-bit floats; scale it as in training")
    return float(value)


def _text(value: Any, where: str) -> str:
    """As a table's column becomes text: 3 and "3" are the same."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float) or value == "":
        raise InputError(
            f"{where} is {'null' if value is None else 'empty' if value == '' else type(value).__name__}; give a text or a number"
        )
    text = str(value)
    if len(text) > LONGEST_TEXT or "\x00" in text or not text.isprintable():
        raise InputError(f"{where} is no printable text of at most {LONGEST_TEXT} characters")
    return text


def _time(value: Any, where: str) -> float:
    """Seconds since 1970 of an ISO 8601 text (UTC where no zone is given), or a number of seconds as it is."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip())
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return ((moment - _EPOCH) // timedelta(microseconds=1)) / 1e6
        except (ValueError, OverflowError):
            raise InputError(f"{where} can't be read as a time; write it as 2026-05-31T13:45:00, or as a number of seconds") from None
    seconds = _number(value, where, math.inf)
    if abs(seconds) > LATEST:
        raise InputError(f"{where} lies beyond the year 5000 as seconds; convert milliseconds to seconds")
    return seconds
