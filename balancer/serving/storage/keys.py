"""API keys: created once, shown once, stored as a hash.

A key is `bk_ID_SECRET`. The secret has 256 random bits, so a plain SHA-256 can't be inverted by search, and
no slower hash is needed. Hashes are compared in constant time. A revoked key is refused from the next request
on, because every request reads the database.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import keys

SCOPES = ("score", "sessions", "admin")
"""Scopes of a key: transactions and labels; balancing sessions; models, metrics and deletion."""
TOKEN = re.compile(r"bk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,100}")
OPEN_TENANT = "local"
"""The tenant of all data while there are no keys."""


@dataclass(frozen=True)
class Key:
    """An API key without its secret."""

    id: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    created: float = 0.0
    revoked: float | None = None


OPEN = Key("", OPEN_TENANT, "", SCOPES)
"""The key of requests without a key, on a service without keys that listens on loopback."""


def create(database: Database, tenant: str, scopes: tuple[str, ...], name: str = "") -> tuple[Key, str]:
    """Create a key.

    Args:
        database: Where the key is stored.
        tenant: Owner of the data that the key gives access to.
        scopes: What the key allows, from `SCOPES`.
        name: A text that describes the key.

    Returns:
        The key, and its token, which is not stored.

    Raises:
        InputError: If a scope is unknown, or the name of the tenant or of the key is invalid.
    """
    for scope in scopes:
        if scope not in SCOPES:
            raise InputError(f"--scopes: unknown scope {scope!r}; {nearest(scope, SCOPES)}")
    if not scopes:
        raise InputError(f"--scopes: name at least one of {', '.join(SCOPES)}")
    if not _TENANT.fullmatch(tenant):
        raise InputError(f"--tenant {tenant!r}: give 1 to 100 letters, digits, dots, dashes or underscores")
    if len(name) > 100 or not name.isprintable():
        raise InputError("--name: give at most 100 printable characters")
    key, secret = Key(secrets.token_hex(6), tenant, name, scopes, time.time()), secrets.token_urlsafe(32)
    row = {"id": key.id, "tenant": tenant, "name": name, "scopes": ",".join(scopes), "digest": _digest(secret), "created": key.created}
    database.write(lambda connection: connection.execute(insert(keys).values(row)))
    return key, f"bk_{key.id}_{secret}"


def list_keys(database: Database) -> list[Key]:
    """List all keys, including revoked ones, oldest first."""
    found = database.read(lambda connection: connection.execute(select(keys).order_by(keys.c.created)).all())
    return [Key(row.id, row.tenant, row.name, tuple(row.scopes.split(",")), row.created, row.revoked) for row in found]


def revoke(database: Database, key: str) -> None:
    """Revoke a key.

    Raises:
        InputError: If there is no such key in use.
    """

    def work(connection: Connection) -> int:
        return connection.execute(update(keys).where(keys.c.id == key, keys.c.revoked.is_(None)).values(revoked=time.time())).rowcount

    if not database.write(work):
        raise InputError(f"there is no key {key!r} in use; list the keys with balancer keys list")


def verify(database: Database, token: str) -> Key | None:
    """Return the key of a token; None for a wrong or revoked one."""
    parts = TOKEN.fullmatch(token)
    if parts is None:
        return None
    row = database.read(lambda connection: connection.execute(select(keys).where(keys.c.id == parts[1])).first())
    if row is None or row.revoked is not None or not hmac.compare_digest(row.digest, _digest(parts[2])):
        return None
    return Key(row.id, row.tenant, row.name, tuple(row.scopes.split(",")), row.created)


def any_in_use(database: Database) -> bool:
    """Whether any key is not revoked."""
    chosen = select(keys.c.id).where(keys.c.revoked.is_(None)).limit(1)
    return database.read(lambda connection: connection.execute(chosen).first()) is not None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
