"""The balancing sessions of a database.

What is special: a session is its request and its state after the last epoch, both stored as JSON. So any
worker can answer, and a restart changes nothing. The report of an epoch is identified by its number: sent
twice, it gets the same answer and counts once.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from balancer.serving.errors import ConflictError, MissingError
from balancer.serving.sessions.balancing import SORTED, controller_of, scored_rows, shown_classes, weights_of
from balancer.serving.sessions.schemas import EpochReport, Session, SessionRequest, Weights
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import session_epochs, sessions


class Sessions:
    """Creates, reads, updates and deletes the sessions of a database.

    Args:
        database: Where the sessions are stored.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, tenant: str, request: SessionRequest) -> Session:
        """Start a session.

        Raises:
            InputError: If the request can't be used.
        """
        content = request.model_dump() | {"class_order": SORTED}
        controller = controller_of(content)
        row: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "number": time.time_ns(),
            "tenant": tenant,
            "created": time.time(),
            "request": content,
            "first": weights_of(controller, content).model_dump(),
            "state": controller.state_dict(),
            "epoch": 0,
        }

        def work(connection: Connection) -> None:
            latest = connection.execute(select(func.max(sessions.c.number))).scalar() or 0
            connection.execute(insert(sessions).values(row | {"number": max(row["number"], latest + 1)}))

        self._database.write(work)
        return _session(row, row["first"])

    def get(self, tenant: str, session: str) -> Session:
        """Return a session.

        Raises:
            MissingError: If the tenant has no such session.
        """
        return self._database.read(lambda connection: _current(connection, _row(connection, tenant, session)))

    def list(self, tenant: str, after: str | None, limit: int) -> tuple[list[Session], str | None]:
        """Return a page of sessions, oldest first.

        Args:
            tenant: Whose sessions.
            after: Id of the last session of the previous page, or None for the first page.
            limit: Most sessions on the page.

        Returns:
            The sessions, and `after` for the next page or None on the last page.

        Raises:
            MissingError: If the tenant has no session `after`.
        """

        def work(connection: Connection) -> tuple[list[Session], str | None]:
            chosen = select(sessions).where(sessions.c.tenant == tenant)
            if after is not None:
                chosen = chosen.where(sessions.c.number > _row(connection, tenant, after)["number"])
            found = connection.execute(chosen.order_by(sessions.c.number).limit(limit + 1)).mappings().all()
            page = [_current(connection, dict(row)) for row in found[:limit]]
            return page, page[-1].id if len(found) > limit else None

        return self._database.read(work)

    def delete(self, tenant: str, session: str) -> None:
        """Delete a session.

        Raises:
            MissingError: If the tenant has no such session.
        """

        def work(connection: Connection) -> None:
            _row(connection, tenant, session)
            connection.execute(delete(sessions).where(sessions.c.id == session))

        self._database.write(work)

    def report(self, tenant: str, session: str, report: EpochReport) -> Weights:
        """Store the report of an epoch and return the weights of the next epoch.

        The same report gets the same answer.

        Raises:
            MissingError: If the tenant has no such session.
            ConflictError: If the epoch was reported with other content, is not the next one, or is after the
                last one.
            InputError: If the scores or histograms can't be used.
        """
        # Without a key that reports of earlier versions did not have: they get the same answer again.
        content = report.model_dump_json(exclude={"compensated"} if report.compensated is None else None)
        digest = hashlib.sha256(content.encode()).hexdigest()

        def work(connection: Connection) -> Weights:
            row = _row(connection, tenant, session, for_update=True)
            done, request = row["epoch"], row["request"]
            if report.epoch <= done:
                here = (session_epochs.c.session == session) & (session_epochs.c.epoch == report.epoch)
                stored = connection.execute(select(session_epochs).where(here)).one()
                if stored.digest != digest:
                    raise ConflictError(f"epoch {report.epoch} was reported before with other scores; the next epoch is {done + 1}")
                return Weights(**stored.answer)
            if report.epoch > request["epochs"]:
                raise ConflictError(f"the session has {request['epochs']} epochs; there is no epoch {report.epoch}")
            if report.epoch > done + 1:
                raise ConflictError(f"the next epoch is {done + 1}, not {report.epoch}; report the epochs in order")
            controller = controller_of(request)
            controller.load_state_dict(row["state"])
            reward = scored_rows(report.reward, request, controller.prior, "reward")
            train = reward if report.train is None else scored_rows(report.train, request, controller.prior, "train")
            if report.compensated is not None:
                controller.compensated = report.compensated
            controller.update(train, reward)
            answer = weights_of(controller, request)
            epoch_row = {"session": session, "epoch": report.epoch, "digest": digest, "answer": answer.model_dump()}
            connection.execute(insert(session_epochs).values(epoch_row))
            changed = {"epoch": report.epoch, "state": controller.state_dict()}
            connection.execute(update(sessions).where(sessions.c.id == session).values(changed))
            return answer

        return self._database.write(work)


def _row(connection: Connection, tenant: str, session: str, *, for_update: bool = False) -> dict[str, Any]:
    chosen = select(sessions).where(sessions.c.tenant == tenant, sessions.c.id == session)
    found = connection.execute(chosen.with_for_update() if for_update else chosen).mappings().first()
    if found is None:
        raise MissingError("there is no such session")
    return dict(found)


def _current(connection: Connection, row: dict[str, Any]) -> Session:
    """Return a session with the weights of its last report."""
    if row["epoch"] == 0:
        return _session(row, row["first"])
    here = (session_epochs.c.session == row["id"]) & (session_epochs.c.epoch == row["epoch"])
    return _session(row, connection.execute(select(session_epochs.c.answer).where(here)).scalar_one())


def _session(row: dict[str, Any], weights: dict[str, Any]) -> Session:
    request = row["request"]
    return Session(
        id=row["id"],
        created=row["created"],
        epochs=request["epochs"],
        policy=request["policy"],
        classes=shown_classes(request),
        **weights,
    )
