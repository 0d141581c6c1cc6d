"""The states of models in the database: which run scores, which one is its challenger, and who approved it.

A model is a name and a digest. The table `models` lists the champions in order; the last one is in service.
`registered_models` has the state of every model that was ever approved:

- candidate: it can be put in service, and does not score;
- shadow: a challenger that scores every transaction and decides none;
- canary: a challenger that decides for a share of the entities;
- champion: it decides;
- retired: it was in service or a challenger before.

There is one champion, and at most one challenger.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, insert, select, update

from balancer.serving.errors import ConflictError
from balancer.serving.storage.tables import models, registered_models

State = Literal["candidate", "shadow", "canary", "champion", "retired"]
CHALLENGERS = ("shadow", "canary")
MOST_ACTIVATIONS = 100
"""Activations that are listed."""


@dataclass(frozen=True)
class RegisteredModel:
    """A model and its state."""

    digest: str
    name: str
    state: State
    share: float
    """Share of the entities for which a canary decides; else 0."""
    registered: float
    """Seconds since 1970 at which it was first approved."""
    changed: float
    """Seconds since 1970 at which it got its state."""
    changed_by: str | None
    """Id of the key that approved it; None: the command line."""


@dataclass(frozen=True)
class InService:
    """What the workers must have loaded."""

    generation: int
    name: str
    digest: str
    challenger: RegisteredModel | None


def in_service(connection: Connection) -> InService | None:
    """Return the champion and its challenger; None before the first champion."""
    latest = connection.execute(select(models).order_by(models.c.generation.desc()).limit(1)).mappings().first()
    if latest is None:
        return None
    chosen = select(registered_models).where(registered_models.c.state.in_(CHALLENGERS), registered_models.c.digest != latest["digest"])
    found = connection.execute(chosen.order_by(registered_models.c.changed.desc()).limit(1)).mappings().first()
    return InService(latest["generation"], latest["name"], latest["digest"], None if found is None else RegisteredModel(**found))


def lock(connection: Connection) -> InService | None:
    """Return what is in service, after all other changes of it have ended.

    On SQLite a transaction that writes is alone anyway.
    """
    connection.execute(select(models.c.generation).order_by(models.c.generation).limit(1).with_for_update()).first()
    return in_service(connection)


def listed(connection: Connection) -> list[RegisteredModel]:
    """List the registered models, last changed first."""
    found = connection.execute(select(registered_models).order_by(registered_models.c.changed.desc(), registered_models.c.name)).mappings()
    return [RegisteredModel(**row) for row in found]


def activations(connection: Connection, most: int = MOST_ACTIVATIONS) -> list[dict[str, Any]]:
    """List the last activations, latest first."""
    chosen = select(models).order_by(models.c.generation.desc()).limit(most)
    return [dict(row) for row in connection.execute(chosen).mappings()]


def recorded_digest(connection: Connection, name: str) -> str | None:
    """Return the digest under which a name is known; None for a new name."""
    states, champions = registered_models.c, models.c
    found = connection.execute(select(states.digest).where(states.name == name).order_by(states.registered.desc()).limit(1)).scalar()
    if found is None:
        found = connection.execute(select(champions.digest).where(champions.name == name).order_by(champions.generation.desc()).limit(1))
        found = found.scalar()
    return None if found is None else str(found)


def make_champion(connection: Connection, name: str, digest: str, key: str | None, *, rolled_back: bool = False) -> int:
    """Put a model in service and retire the champion before.

    Args:
        connection: A transaction that writes, after `lock`.
        name: Name of its run.
        digest: Digest of its files.
        key: Id of the key that approves it; None: the command line.
        rolled_back: Whether this returns to the champion before.

    Returns:
        The number of the activation; the present one, if the model is in service already.
    """
    latest = in_service(connection)
    if latest is not None and (latest.name, latest.digest) == (name, digest):
        return latest.generation
    generation = 1 if latest is None else latest.generation + 1
    values = {"generation": generation, "name": name, "digest": digest, "activated": time.time(), "key": key}
    connection.execute(insert(models).values(values | {"rolled_back": rolled_back}))
    if latest is not None:
        set_state(connection, latest.name, latest.digest, "retired", 0.0, key)
    set_state(connection, name, digest, "champion", 0.0, key)
    return generation


def make_challenger(connection: Connection, name: str, digest: str, state: State, share: float, key: str | None) -> None:
    """Make a model the challenger, or a candidate. Arguments as of `make_champion` and `set_state`.

    Raises:
        ConflictError: It is the champion, or there is another challenger.
    """
    latest = in_service(connection)
    if latest is None:
        raise ConflictError(f"name: no model is in service, so {name!r} has nothing to challenge; put one in service as champion first")
    if latest.digest == digest:
        raise ConflictError(f"name: {name!r} is the champion, or a copy of it; put another run in service before it becomes a {state}")
    other = latest.challenger
    if state in CHALLENGERS and other is not None and other.digest != digest:
        raise ConflictError(f"name: {other.name!r} is the challenger, as {other.state}; there can be one at a time, so retire it first")
    set_state(connection, name, digest, state, share, key)


def retire(connection: Connection, name: str, key: str | None) -> None:
    """Retire the registered models of a name; their files need not be there.

    Raises:
        ConflictError: It is the champion, or is not registered.
    """
    latest = in_service(connection)
    if latest is not None and latest.name == name:
        raise ConflictError(f"name: {name!r} is the champion; put another run in service, which retires it")
    found = [row for row in listed(connection) if row.name == name]
    if not found:
        raise ConflictError(f"name: {name!r} is not registered, so it can't be retired; GET /v1/models lists what is")
    for row in found:
        if row.state != "retired":
            set_state(connection, row.name, row.digest, "retired", 0.0, key)


def set_state(connection: Connection, name: str, digest: str, state: State, share: float, key: str | None) -> None:
    """Store the state of a model.

    Args:
        connection: A transaction that writes.
        name: Name of its run.
        digest: Digest of its files.
        state: The new state.
        share: Share of the entities for which a canary decides; else 0.
        key: Id of the key that approves it; None: the command line.
    """
    now, columns = time.time(), registered_models.c
    values = {"name": name, "state": state, "share": share, "changed": now, "changed_by": key}
    if not connection.execute(update(registered_models).where(columns.digest == digest).values(values)).rowcount:
        connection.execute(insert(registered_models).values(values | {"digest": digest, "registered": now}))


def champion_before(rows: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    """Find the model to return to.

    What is special: a return takes the champion off the list, so two returns lead two champions back, and not
    to the one that was left.

    Args:
        rows: Activations, latest first.

    Returns:
        Name and digest of the champion before the present one; None if there was none.
    """
    line: list[tuple[str, str]] = []
    for row in reversed(rows):
        model = row["name"], row["digest"]
        if row["rolled_back"] and len(line) > 1:
            line.pop()
        if line and line[-1][0] == model[0]:
            line.pop()  # the same files, recorded again
        line.append(model)
    return line[-2] if len(line) > 1 else None
