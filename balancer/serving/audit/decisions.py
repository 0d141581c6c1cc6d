"""The audit: what was decided about a transaction, when, for whom, and by which model.

What is special: a row of the audit is never changed. A correction or a reversal of a transaction adds a row.
A transaction that an older version stored has no row; it is answered from its stored answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, select, tuple_

from balancer.data.schema import Schema
from balancer.errors import InputError
from balancer.serving.errors import MissingError
from balancer.serving.scoring.actions import Actions
from balancer.serving.scoring.origin import Origin
from balancer.serving.storage.current_score import DECIDING
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import challenger_scores, decisions, entities, registered_models, transactions
from balancer.tables.options import NORMAL
from balancer.tables.values import normal_text

SCORED, AMENDED, REVERSED = "scored", "amended", "reversed"
"""Kinds of rows of the audit."""
_CURSOR = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,20})?)_([0-9]{1,18})")
"""When the last row of a page was received, and its number."""
_JUDGEMENT = ("score", "threshold", "decision", "class", "action")


@dataclass(frozen=True)
class Wanted:
    """Which rows of the audit are listed."""

    since: float | None = None
    """Seconds since 1970 from which on they were received."""
    until: float | None = None
    """Seconds since 1970 before which they were received."""
    action: str | None = None
    kind: str | None = None

    def of(self, tenant: str | None) -> Select[Any]:
        """The statement that selects them in the order in which they were received.

        Args:
            tenant: Whose rows; None: of all tenants.
        """
        columns = decisions.c
        wanted = [
            *([columns.tenant == tenant] if tenant is not None else []),
            *([columns.received >= self.since] if self.since is not None else []),
            *([columns.received < self.until] if self.until is not None else []),
            *([columns.action == self.action] if self.action is not None else []),
            *([columns.kind == self.kind] if self.kind is not None else []),
        ]
        return select(decisions, entities.c.name.label("name")).join(entities).where(*wanted).order_by(columns.received, columns.number)


class Decisions:
    """Reads the audit of a database.

    Args:
        database: Where the transactions are stored.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, tenant: str, name: str) -> dict[str, Any]:
        """Everything that was decided about a transaction.

        Args:
            tenant: Whose transaction.
            name: Its id; it is compared by its normal form too.

        Returns:
            The latest decision by its values, after a correction the corrected one, and `decisions`: all rows
            of the audit in order, the first decision included.

        Raises:
            MissingError: If the tenant has no such transaction.
        """
        return self._database.read(lambda connection: audit_of(connection, tenant, name))

    def page(self, tenant: str, wanted: Wanted, after: str | None, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Read a page of the audit of a tenant, in the order in which the transactions were received.

        Args:
            tenant: Whose rows.
            wanted: Which rows.
            after: The second value of the page before; None: from the beginning.
            limit: Most rows.

        Returns:
            The rows, and the `after` of the next page; None on the last page.

        Raises:
            InputError: If `after` is no such value.
        """
        columns, chosen = decisions.c, wanted.of(tenant).limit(limit + 1)
        if after is not None:
            chosen = chosen.where(tuple_(columns.received, columns.number) > tuple_(*_cursor(after)))
        rows = self._database.read(lambda connection: connection.execute(chosen).all())
        more = rows[limit - 1] if len(rows) > limit else None
        return [shown(row) for row in rows[:limit]], None if more is None else f"{more.received!r}_{more.number}"


def decided(tenant: str, entity: int, name: str, kind: str, origin: Origin, model: str, digest: str) -> dict[str, Any]:
    """The values of a row of `decisions` that say who asked for what, without the score and what follows."""
    asked = {"received": origin.received, "key": origin.key, "request": origin.request, "model": model, "digest": digest}
    return {"entity": entity, "tenant": tenant, "transaction": name, "kind": kind} | asked


def stored_id(schema: Schema, name: str) -> str:
    """The id of a transaction as it is stored, from an id as it is given."""
    return (normal_text(name) or name) if schema.values == NORMAL else name


def last_decision(connection: Connection, tenant: str, name: str) -> dict[str, Any]:
    """The last row of the audit of a stored transaction; without one, what its answer says.

    Returns:
        `model`, `digest` (None without a row), `score`, `threshold`, `decision`, `class` and `action`.
    """
    columns = decisions.c
    chosen = select(decisions).where(columns.tenant == tenant, columns.transaction == name).order_by(columns.number.desc()).limit(1)
    row = connection.execute(chosen).mappings().first()
    if row is not None:
        return {key: row[key] for key in ("model", "digest", *_JUDGEMENT)}
    found = connection.execute(select(transactions.c.answer).where(transactions.c.tenant == tenant, transactions.c.id == name))
    return _of_answer(found.scalar_one())


def audit_of(connection: Connection, tenant: str, name: str) -> dict[str, Any]:
    """Everything that was decided about a transaction; see `Decisions.get`."""
    for each in dict.fromkeys((name, normal_text(name) or name)):
        found = _audit_of(connection, tenant, each)
        if found is not None:
            return found
    raise MissingError(f"there is no transaction {name!r}; it was never stored, or its entity was erased")


def _audit_of(connection: Connection, tenant: str, name: str) -> dict[str, Any] | None:
    columns, kept = decisions.c, transactions.c
    chosen = select(decisions, entities.c.name.label("name")).join(entities)
    rows = connection.execute(chosen.where(columns.tenant == tenant, columns.transaction == name).order_by(columns.number)).all()
    held = (kept.time, kept.sent_time, kept.answer, kept.label, kept.labelled, entities.c.name.label("name"))
    stored = connection.execute(select(*held).join(entities).where(kept.tenant == tenant, kept.id == name)).first()
    if not rows and stored is None:
        return None
    all_rows = [shown(row) for row in rows]
    place = max((place for place, row in enumerate(all_rows) if row["kind"] == SCORED), default=-1)
    amendments = all_rows[place + 1 :]
    last = next((row for row in reversed(all_rows) if row["kind"] in DECIDING), None)
    if place < 0 and stored is not None:  # stored by an older version
        nobody = {"kind": SCORED, "received": None, "received_seconds": None, "key": None, "request": None}
        first = {"id": name, "entity": stored.name} | nobody | _of_answer(stored.answer)
        if all_rows:
            all_rows = [first, *all_rows]
        last = first if last is None else last
    if last is None:  # stored by an older version, and reversed
        last = all_rows[-1]
    return last | {
        "time": None if stored is None else stored.time,
        "late_by": None if stored is None else stored.time - stored.sent_time,
        "label": None if stored is None else stored.label,
        "labelled": None if stored is None or stored.labelled is None else _iso(stored.labelled),
        "labelled_seconds": None if stored is None else stored.labelled,
        "reversed": stored is None,
        "challengers": _challengers(connection, tenant, name),
        "amendments": amendments,
        "decisions": all_rows,
    }


def shown(row: Row[Any]) -> dict[str, Any]:
    """A row of the audit as JSON, with the name of its entity."""
    values = row._mapping
    return {
        "id": values["transaction"],
        "entity": values["name"],
        "kind": values["kind"],
        "received": _iso(values["received"]),
        "received_seconds": values["received"],
        **{key: values[key] for key in ("key", "request", "model", "digest", *_JUDGEMENT)},
    }


def _challengers(connection: Connection, tenant: str, name: str) -> list[dict[str, Any]]:
    """The scores by the models that did not decide, each with the name of its model if it is registered."""
    columns, models = challenger_scores.c, registered_models.c
    chosen = select(challenger_scores, models.name).outerjoin(registered_models, models.digest == columns.digest)
    found = connection.execute(chosen.where(columns.tenant == tenant, columns.transaction == name).order_by(columns.received))
    return [
        {"model": row.name, "digest": row.digest, "received": _iso(row.received), "received_seconds": row.received}
        | {"score": row.score, "threshold": row.threshold, "decision": row.decision}
        for row in found
    ]


def _of_answer(answer: Mapping[str, Any]) -> dict[str, Any]:
    """What a stored answer says; older versions declined nothing."""
    known = {key: answer[key] for key in ("model", "score", "threshold", "decision", "class")}
    return known | {"digest": None, "action": Actions().of(answer["score"], alarm=answer["decision"])}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _cursor(after: str) -> tuple[float, int]:
    found = _CURSOR.fullmatch(after)
    if found is None:
        raise InputError(f"after is {after!r}, which is not the `next` of a page: give that of the page before, or none")
    return float(found[1]), int(found[2])
