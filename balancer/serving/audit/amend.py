"""Correct or reverse a stored transaction.

What is special: afterwards the statistics of its entity are those of an entity to which the right rows were
sent in the first place, to the last bit. So one wrong amount does not spoil a card for good. What was decided
stays in the audit, and a row is added for the correction. Context fields of rows that are stored already stay
as they were computed; only those of the corrected row that depend on what was corrected are computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, delete, insert, select, text, update

from balancer.data.context_features import ACTIVITY_AMOUNT_FIELDS, context_fields
from balancer.data.past import VELOCITY
from balancer.data.schema import Schema
from balancer.data.score_memory import RECENT
from balancer.devices import torch_threads
from balancer.errors import InputError
from balancer.inference.decision import decide
from balancer.serving.audit.decisions import AMENDED, REVERSED, decided, last_decision, stored_id
from balancer.serving.audit.rebuild import SUMS, Base, Line, Rebuilt, approximate_amount, read_lines
from balancer.serving.audit.stored_inputs import first_read, score_again, stored_inputs
from balancer.serving.errors import MissingError
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.scoring.actions import Actions
from balancer.serving.scoring.batch import active_columns
from balancer.serving.scoring.context_swap import put_rows, stored_labels, stored_rows, swap_labels, take_rows
from balancer.serving.scoring.context_versions import changed
from balancer.serving.scoring.facts import stored_context
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.parsing import Correction, parse_correction
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import challenger_scores, decisions, entities, entity_states, transactions, used_values

_ASIDE = text("UPDATE transactions SET position = -position WHERE entity = :entity AND position > :position")
_CLOSER = text("UPDATE transactions SET position = -position - 1 WHERE entity = :entity AND position < 0")
"""Every position less one. A position is a key, so the rows first get numbers that no row has."""
_UPDATE = text(
    "UPDATE transactions SET time = :time, fields = :fields, "
    + ", ".join(f"{name} = :{name}" for name in SUMS)
    + " WHERE entity = :entity AND position = :position"
)


class Amender:
    """Corrects and reverses the stored transactions of a database.

    Args:
        database: Where the transactions are stored.
        actions: What is to be done with a score.
    """

    def __init__(self, database: Database, actions: Actions) -> None:
        self._database, self._actions = database, actions

    def amend(self, tenant: str, model: LoadedModel, name: str, raw: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
        """Correct columns of a transaction, and score it again at its place in the history.

        Args:
            tenant: Whose transaction.
            model: The model in service.
            name: Id of the transaction.
            raw: The right values by column: the amount, numeric, categorical and context columns.
            origin: Who asked.

        Returns:
            `id`, `changed` (the columns whose value is another now), and the new row of the audit. Without a
            change nothing is stored, and these are those of the last decision.

        Raises:
            MissingError: If the tenant has no such transaction.
            InputError: If a column can't be corrected, or an amount of the entity is not known exactly.
        """
        correction = parse_correction(raw, model.base)
        if not raw:
            raise InputError("the request corrects nothing; give the right values by column, such as the amount")
        with torch_threads(1):  # as scoring does: the same bits
            changes: list[str] = []

            def work(connection: Connection) -> dict[str, Any]:
                found = self._amend(connection, tenant, model, name, correction, origin)
                # An earlier attempt may have corrected it, and its answer was lost.
                changes.extend(column for column in found["changed"] if column not in changes)
                return found | {"changed": changes}

            return self._database.write(work)

    def _amend(
        self, connection: Connection, tenant: str, model: LoadedModel, name: str, correction: Correction, origin: Origin
    ) -> dict[str, Any]:
        schema, name = model.base, stored_id(model.base, name)
        entity, position = _locked(connection, tenant, name)
        lines, base = read_lines(connection, entity, schema)
        place = position - base.position
        changes = _correct(lines[place], correction, schema)
        if not changes:
            return {"id": name, "changed": []} | last_decision(connection, tenant, name)
        if schema.spec.amount is not None and any(line.amount is None for line in lines):
            raise InputError(
                f"the entity of {name!r} has transactions that an older version of balancer stored without their amounts, so {name!r} can't "
                "be corrected; reverse it, and send the right one with another id"
            )
        _check_past(name, lines, place, base, min(position, first_read(model, position)))
        row = transactions.c
        values = {"amount": lines[place].amount, "texts": lines[place].texts}
        connection.execute(update(transactions).where(row.entity == entity["id"], row.position == position).values(values))
        _replace(connection, tenant, entity, model, Rebuilt(schema, lines, base), lines, place, changes)
        scores, alarm, winner = decide(_scores(connection, entity, model, position), model.decision)
        audited = decided(tenant, entity["id"], name, AMENDED, origin, model.name, model.digest) | {
            "score": float(scores[0]),
            "threshold": float(model.decision.threshold),
            "decision": bool(alarm[0]),
            "class": model.schema.classes[int(winner[0])],
            "action": self._actions.of(float(scores[0]), alarm=bool(alarm[0])),
        }
        connection.execute(insert(decisions).values(audited))
        return {"id": name, "changed": changes} | last_decision(connection, tenant, name)

    def reverse(self, tenant: str, model: LoadedModel, name: str, origin: Origin) -> None:
        """Take a transaction back, as if it had never been sent; what was decided stays in the audit.

        Args:
            tenant: Whose transaction.
            model: The model in service.
            name: Id of the transaction.
            origin: Who asked.

        Raises:
            MissingError: If the tenant has no such transaction.
        """
        with torch_threads(1):
            was_there = False

            def work(connection: Connection) -> None:
                nonlocal was_there
                try:
                    self._reverse(connection, tenant, model, name, origin)
                except MissingError:
                    if not was_there:
                        raise
                was_there = True  # an attempt after this one may find it reversed already

            self._database.write(work)

    def _reverse(self, connection: Connection, tenant: str, model: LoadedModel, name: str, origin: Origin) -> None:
        schema, name = model.base, stored_id(model.base, name)
        entity, position = _locked(connection, tenant, name)
        last = last_decision(connection, tenant, name)
        lines, base = read_lines(connection, entity, schema)
        place = position - base.position
        _check_past(name, lines, place, base, position)
        del lines[place]
        for line in lines if schema.spec.amount is not None else ():
            if line.amount is None:  # a row of an older version; its level is known to the precision of its field
                line.amount = approximate_amount(line.fields, schema)
        row = transactions.c
        connection.execute(delete(transactions).where(row.entity == entity["id"], row.position == position))
        connection.execute(_ASIDE, {"entity": entity["id"], "position": position})
        connection.execute(_CLOSER, {"entity": entity["id"]})
        _replace(connection, tenant, entity, model, Rebuilt(schema, lines, base), lines, place)
        scores = challenger_scores.c
        connection.execute(delete(challenger_scores).where(scores.tenant == tenant, scores.transaction == name))
        kept = {key: last[key] for key in ("score", "threshold", "decision", "class", "action")}
        audited = decided(tenant, entity["id"], name, REVERSED, origin, last["model"], last["digest"] or "") | kept
        connection.execute(insert(decisions).values(audited))


def _locked(connection: Connection, tenant: str, name: str) -> tuple[dict[str, Any], int]:
    """Lock the entity of a transaction; its row, and the position of the transaction.

    Raises:
        MissingError: If there is no such transaction.
    """
    row = transactions.c
    chosen = select(row.entity, row.position).where(row.tenant == tenant, row.id == name)
    found = connection.execute(chosen).first()
    locked = None
    if found is not None:
        holder = select(entities).where(entities.c.id == found.entity, entities.c.tenant == tenant)
        locked = connection.execute(holder.with_for_update()).mappings().first()
        found = connection.execute(chosen.where(row.entity == found.entity)).first()  # as it is now that the entity is locked
    if found is None or locked is None:
        raise MissingError(f"there is no transaction {name!r}; it was never stored, or was reversed or erased")
    return dict(locked), int(found.position)


def _check_past(name: str, lines: Sequence[Line], place: int, base: Base, first: int) -> None:
    """Check that what a row and those after it were computed from is still stored.

    Args:
        name: Id of the transaction.
        lines: The stored transactions of its entity.
        place: Which of them it is.
        base: What was before them.
        first: Position of the first row that is read to score it.

    Raises:
        InputError: If the rows before it were purged.
    """
    if not base.position:
        return
    before = lines[max(place - 1, 0)].time
    if place < RECENT or before - max(VELOCITY.values()) < lines[0].time or first < base.position:
        raise InputError(
            f"{name!r} is so old that transactions which it was computed from were purged, so it can't be corrected or reversed; "
            "delete the entity if its history is to be forgotten"
        )


def _correct(line: Line, correction: Correction, schema: Schema) -> list[str]:
    """Put the values of a correction into a line; the columns whose value is another now."""
    changes = []
    if correction.amount is not None and correction.amount != line.amount:
        changes.append(str(schema.spec.amount))
        line.amount = correction.amount
    for column, value in correction.numeric.items():
        place = schema.numeric_fields.index(schema.own_fields[column])
        if not np.array_equal(line.fields[place], np.float32(value), equal_nan=True):
            changes.append(column)
            line.fields[place] = np.float32(value)
    for column, text_ in correction.texts.items():
        if line.texts[column] != text_:
            changes.append(column)
            line.texts[column] = text_
    return changes


def _replace(
    connection: Connection,
    tenant: str,
    entity: dict[str, Any],
    model: LoadedModel,
    rebuilt: Rebuilt,
    lines: Sequence[Line],
    first: int,
    changes: Sequence[str] = (),
) -> None:
    """Store the lines of an entity from the line `first` on, and all that is summed over them.

    Args:
        connection: A transaction that holds the lock of the entity.
        tenant: Whose entity.
        entity: Its row as it is stored; it is changed here.
        model: The model in service.
        rebuilt: The statistics with the lines.
        lines: The lines; the stored rows have their positions already.
        first: Lines before this one stay as they are.
        changes: Columns of the line `first` that were corrected; without any, context fields are kept.
    """
    schema, number = model.base, entity["id"]
    columns = active_columns(model)
    places = range(first, len(lines))
    begin = rebuilt.base.position
    old_rows, old_labels = stored_rows(connection, number, begin + first), stored_labels(connection, number, begin + first)
    new_rows = {row for place in places for row in rebuilt.context_row(place, columns)}
    new_labels = {label for place in places for label in rebuilt.context_label(place)}
    if changes:
        # Its context fields are computed below from what was before it, without later rows of its moment.
        moment = lines[first].time
        kept = {row for row in old_rows & new_rows if row.time != moment}
    else:
        kept = old_rows & new_rows
    touched = {(each.column, each.value) for each in (old_rows ^ new_rows) | (old_rows - kept) | (old_labels ^ new_labels)}
    changed(connection, tenant, touched, rows=True, labels=True)
    take_rows(connection, tenant, number, old_rows - kept)
    values = rebuilt.fields()
    if changes:
        _context_again(connection, tenant, schema, lines[first], changes)
    put_rows(connection, tenant, number, new_rows - kept)
    swap_labels(connection, tenant, number, old_labels, new_labels)
    names = {name: place for place, name in enumerate(schema.numeric_fields) if name in values and name not in schema.own_fields.values()}
    sums, stored = rebuilt.sums(), []
    for place in places:
        line = lines[place]
        for name, column in names.items():
            line.fields[column] = values[name][place]
        written = {"entity": number, "position": begin + place, "time": line.time, "fields": line.fields.tobytes()}
        stored.append(written | {name: each[place] for name, each in sums.items()})
    if stored:
        connection.execute(_UPDATE, stored)
    connection.execute(delete(used_values).where(used_values.c.entity == number))
    used = [each | {"entity": number} for each in rebuilt.used_values()]
    if used:
        connection.execute(insert(used_values), used)
    _save(connection, entity, model, rebuilt, begin + first)


def _context_again(connection: Connection, tenant: str, schema: Schema, line: Line, changes: Sequence[str]) -> None:
    """Compute the context fields of a corrected row that depend on what was corrected, as of its time."""
    spec, found = schema.spec, dict[str, NDArray[np.float32]]()
    past = stored_context(connection, tenant, schema, line.texts, line.time, line.amount)
    for column in spec.context:
        if column in changes:
            found |= dict(past.rates(column))
            found |= dict(context_fields(past, column, schema.numeric_fields))
        elif spec.amount in changes:
            wanted = [f"{column}_{name}" for name in ACTIVITY_AMOUNT_FIELDS[:1]]  # the other one is that of the rows before
            found |= {name: each for name, each in context_fields(past, column, schema.numeric_fields) if name in wanted}
    for place, name in enumerate(schema.numeric_fields):
        if name in found:
            line.fields[place] = found[name][0]


def _save(connection: Connection, entity: dict[str, Any], model: LoadedModel, rebuilt: Rebuilt, position: int) -> None:
    """Write the row of an entity with its new statistics; states and scores of models are computed again."""
    connection.execute(delete(entity_states).where(entity_states.c.entity == entity["id"]))
    scores = score_again(connection, entity, model, position)
    entity |= rebuilt.entity() | {"version": entity["version"] + 1} | scores
    values = {name: value for name, value in entity.items() if name not in ("id", "tenant", "name")}
    connection.execute(update(entities).where(entities.c.id == entity["id"]).values(values))


def _scores(connection: Connection, entity: Mapping[str, Any], model: LoadedModel, place: int) -> NDArray[np.floating]:
    """Class probabilities (1, K) of the stored row at a position, with the rows before it."""
    values = stored_inputs(connection, entity, model, first_read(model, place), place).values
    if model.stream is None:
        return model.step(values[-1], None)[0]
    return model.step(values[-1], model.stream.read(values[:-1], place) if place else model.stream.start())[0]
