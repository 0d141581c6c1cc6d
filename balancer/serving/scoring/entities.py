"""The stored transactions: add labels, show an entity, delete an entity."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, select, update

from balancer.data.schema import Schema
from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.serving.errors import MissingError
from balancer.serving.scoring.context_risk import count_label
from balancer.serving.scoring.context_swap import stored_labels, stored_rows, swap_labels, take_rows
from balancer.serving.scoring.context_versions import changed
from balancer.serving.storage.current_score import current_score
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import entities, transactions
from balancer.tables.options import NORMAL
from balancer.tables.values import normal_text

LabelValue = str | int | float | bool | None
"""A class of a model as a client writes it, in the type of its column; None is no label."""


class Entities:
    """Labels, shows and deletes the stored transactions of a database.

    Args:
        database: Where the transactions are stored.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def label(self, tenant: str, schema: Schema, labels: Mapping[str, LabelValue]) -> list[str]:
        """Store the labels of transactions.

        Args:
            tenant: Whose transactions.
            schema: The schema of the model, for its classes and context columns.
            labels: A class by id, as text, as a number, or as a truth value; None removes a label. Ids and
                classes are compared by their normal form.

        Returns:
            The ids that are not stored here.

        Raises:
            InputError: If a label is not a class of the model.
        """
        classes = {normal_text(name): name for name in schema.classes} | {name: name for name in schema.classes}
        by_id: dict[str, str | None] = {}
        given: dict[str, str] = {}
        for name, label in labels.items():
            found = _class_of(label, classes)
            if label is not None and found is None:
                raise InputError(f"the label of {name!r} is {label!r}; {nearest(str(label), schema.classes)}")
            stored = (normal_text(name) or name) if schema.values == NORMAL else name
            by_id[stored], given[stored] = found, name

        def work(connection: Connection) -> list[str]:
            columns = transactions.c
            locked = _locked_entities(connection, tenant, list(by_id))
            wanted = select(columns.tenant, columns.id, columns.entity, columns.position, columns.time, columns.texts)
            chosen = wanted.where(columns.tenant == tenant, columns.id.in_(list(by_id)), columns.entity.in_(locked))
            found = connection.execute(chosen.order_by(columns.id)).all()
            touched = {(column, row.texts[column]) for row in found for column in schema.spec.context}
            changed(connection, tenant, touched, labels=True)
            for row in found:
                label = by_id[row.id]
                connection.execute(
                    update(transactions)
                    .where(columns.entity == row.entity, columns.position == row.position)
                    .values(label=label, labelled=None if label is None else time.time())
                )
                count_label(connection, row, schema.spec.context, None if label is None else label != schema.classes[0])
            known = {row.id for row in found}
            return sorted(name for stored, name in given.items() if stored not in known)

        return self._database.write(work)

    def get(self, tenant: str, name: str, limit: int) -> dict[str, Any]:
        """Return the number of transactions of an entity, its last time, and its latest transactions.

        The score of a transaction is that of its latest decision.

        Raises:
            MissingError: If the tenant has no such entity.
        """

        def work(connection: Connection) -> dict[str, Any]:
            found = _found(connection, tenant, name)
            if found is None:
                raise MissingError(f"there is no entity {name!r}")
            columns = transactions.c
            latest = connection.execute(
                select(columns.id, columns.time, columns.answer, columns.label, current_score().label("score"))
                .where(columns.entity == found["id"])
                .order_by(columns.position.desc())
                .limit(limit)
            )
            rows = [
                {"id": each.id, "time": each.time, "score": each.answer["score"] if each.score is None else each.score, "label": each.label}
                for each in latest
            ]
            return {"entity": found["name"], "transactions": found["rows"], "last_time": found["last_time"], "latest": rows}

        return self._database.read(work)

    def delete(self, tenant: str, name: str) -> None:
        """Delete an entity with all its transactions.

        Raises:
            MissingError: If the tenant has no such entity.
        """
        was_there = False

        def work(connection: Connection) -> None:
            nonlocal was_there
            found = _found(connection, tenant, name, lock=True)
            if found is None:
                if was_there:
                    return  # an earlier attempt has erased it, and its answer was lost
                raise MissingError(f"there is no entity {name!r}")
            was_there = True
            rows, labels = stored_rows(connection, found["id"], 0), stored_labels(connection, found["id"], 0)
            values = {(row.column, row.value) for row in rows} | {(label.column, label.value) for label in labels}
            changed(connection, tenant, values, rows=True, labels=True)
            take_rows(connection, tenant, found["id"], rows)
            swap_labels(connection, tenant, found["id"], labels, ())
            connection.execute(delete(entities).where(entities.c.id == found["id"]))

        self._database.write(work)
        self._database.erased()


def _class_of(label: LabelValue, classes: Mapping[str | None, str]) -> str | None:
    """The class that a label names, given the classes by their names and normal forms; None if there is none.

    A truth value is also that of a column of integers, where `true` is 1.
    """
    if isinstance(label, str) and label in classes:
        return classes[label]
    forms = [label, int(label)] if isinstance(label, bool) else [label]
    return next((classes[text] for each in forms if (text := normal_text(each)) is not None and text in classes), None)


def _locked_entities(connection: Connection, tenant: str, names: Sequence[str]) -> list[int]:
    """Lock the entities of transactions, in the order in which scoring locks them.

    So a label waits for an erasure of its entity, and an erasure for a label: what one of them counts, the
    other sees.

    Args:
        connection: A transaction that writes.
        tenant: Whose transactions.
        names: Ids of the transactions.

    Returns:
        The ids of the entities that are still there.
    """
    columns, rows = entities.c, transactions.c
    holders = select(rows.entity).where(rows.tenant == tenant, rows.id.in_(names))
    chosen = select(columns.id).where(columns.tenant == tenant, columns.id.in_(holders)).order_by(columns.name).with_for_update()
    return list(connection.execute(chosen).scalars())


def _found(connection: Connection, tenant: str, name: str, *, lock: bool = False) -> Mapping[str, Any] | None:
    """The row of an entity by its name as it is given, or else by the normal form of the name."""
    for each in dict.fromkeys((name, normal_text(name))):
        chosen = select(entities).where(entities.c.tenant == tenant, entities.c.name == each)
        found = connection.execute(chosen.with_for_update() if lock else chosen).mappings().first()
        if found is not None:
            return dict(found)
    return None
