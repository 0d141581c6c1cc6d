"""API keys: created once, shown once, stored as a hash.

A key is `bk_ID_SECRET`. The secret has 256 random bits, so a plain SHA-256 can't be inverted by search, and
no slower hash is needed. Hashes are compared in constant time. Every call reads the database, so a key that
was revoked or has expired is refused from then on.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, insert, select, update

from balancer.data.spec import DAY, nearest, parse_duration
from balancer.errors import InputError
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import keys

SCOPES = ("score", "sessions", "admin", "operator")
"""Scopes of a key: transactions and labels; balancing sessions; deletion and audit of the tenant's own data;
and what concerns all tenants, which is models, metrics and monitoring."""
TOKEN = re.compile(r"bk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
TENANT = re.compile(r"[A-Za-z0-9._-]{1,100}")
OPEN_TENANT = "local"
"""The tenant of all data while there are no keys."""
SOON = 14 * DAY
"""Seconds before its end from which the log warns that a key expires."""
_LONGEST = 100 * 365.25 * DAY


@dataclass(frozen=True)
class Key:
    """An API key without its secret."""

    id: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    created: float = 0.0
    revoked: float | None = None
    expires: float | None = None
    """Seconds since 1970 from which it is refused; None: never."""

    @property
    def has_expired(self) -> bool:
        """Whether it is refused because of its age."""
        return self.expires is not None and time.time() >= self.expires

    @property
    def expires_soon(self) -> bool:
        """Whether it is still accepted, and will not be after less than `SOON` seconds."""
        return self.expires is not None and not self.has_expired and self.expires - time.time() < SOON


OPEN = Key("", OPEN_TENANT, "", SCOPES)
"""The key of requests without a key, on a service without keys that listens on loopback."""


def check(tenant: str, scopes: Sequence[str], name: str) -> None:
    """Check what a new key is to be; arguments as of `create`.

    Raises:
        InputError: If a scope is unknown, or the name of the tenant or of the key is invalid.
    """
    for scope in scopes:
        if scope not in SCOPES:
            raise InputError(f"--scopes: unknown scope {scope!r}; {nearest(scope, SCOPES)}")
    if not scopes:
        raise InputError(f"--scopes: name at least one of {', '.join(SCOPES)}")
    if not TENANT.fullmatch(tenant):
        raise InputError(f"--tenant {tenant!r}: give 1 to 100 letters, digits, dots, dashes or underscores")
    if len(name) > 100 or not name.isprintable():
        raise InputError("--name: give at most 100 printable characters")


def create(database: Database, tenant: str, scopes: tuple[str, ...], name: str = "", *, expires: float | None = None) -> tuple[Key, str]:
    """Create a key.

    Args:
        database: Where the key is stored.
        tenant: Owner of the data that the key gives access to.
        scopes: What the key allows, from `SCOPES`.
        name: A text that describes the key.
        expires: Seconds since 1970 from which it is refused (`parse_expiry`); None: never.

    Returns:
        The key, and its token, which is not stored.

    Raises:
        InputError: If a scope is unknown, the name of the tenant or of the key is invalid, or the end has
            passed.
    """
    check(tenant, scopes, name)
    scopes = tuple(dict.fromkeys(scopes))
    key = Key(secrets.token_hex(6), tenant, name, scopes, time.time(), expires=expires)
    if key.has_expired:
        raise InputError("--expires is in the past: give a time from now on, such as 90d, or a later date")
    secret = secrets.token_urlsafe(32)
    row: dict[str, Any] = {"id": key.id, "tenant": tenant, "name": name, "scopes": ",".join(scopes), "digest": _digest(secret)}
    row |= {"created": key.created, "expires": expires}
    database.write(lambda connection: connection.execute(insert(keys).values(row)))
    return key, f"bk_{key.id}_{secret}"


def list_keys(database: Database) -> list[Key]:
    """List all keys, including revoked ones, oldest first."""
    found = database.read(lambda connection: connection.execute(select(keys).order_by(keys.c.created)).all())
    return [_key(row) for row in found]


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
    """Return the key of a token; None for one that is wrong, was revoked or has expired."""
    found = _known(database, token)
    return None if found is None or found.has_expired else found


def refusal(database: Database, token: str) -> str:
    """Say why `verify` refuses a token. Only who has the whole token reads more than that it is wrong."""
    found = _known(database, token)
    if found is not None and found.has_expired:
        assert found.expires is not None
        return f"the key expired on {shown_day(found.expires)}; create another one with balancer keys create"
    return "the key is wrong or was revoked"


def any_in_use(database: Database) -> bool:
    """Whether any key is neither revoked nor expired."""
    now = time.time()
    chosen = select(keys.c.id).where(keys.c.revoked.is_(None), keys.c.expires.is_(None) | (keys.c.expires > now)).limit(1)
    return database.read(lambda connection: connection.execute(chosen).first()) is not None


def any_ever(database: Database) -> bool:
    """Whether any key was ever created, those included that were revoked or have expired."""
    return database.read(lambda connection: connection.execute(select(keys.c.id).limit(1)).first()) is not None


def parse_expiry(text: str, now: float | None = None) -> float | None:
    """Read when a key ends.

    Args:
        text: A duration from now on (`90d`, `12h`), a date (`2027-01-31`, to the end of that day in UTC), a
            date with a time (UTC, if it names no zone), or an empty text: never.
        now: Seconds since 1970; None: the clock of this machine.

    Returns:
        Seconds since 1970, or None.

    Raises:
        InputError: If it is none of these, or is not between now and a hundred years from now.
    """
    if not text:
        return None
    at = time.time() if now is None else now
    wrong = f"--expires {text!r} can't be used: give a duration such as 90d, or a date such as 2027-01-31, in the next 100 years"
    if re.fullmatch(r"\s*\d+-\d.*", text):
        try:
            day = datetime.fromisoformat(text.strip())
            day = day if day.tzinfo is not None else day.replace(tzinfo=UTC)
            whole = re.fullmatch(r"\d{4}-\d\d-\d\d", text.strip()) is not None
            ends = (day + timedelta(days=1) if whole else day).timestamp()
        except (ValueError, OverflowError):
            raise InputError(wrong) from None
    else:
        try:  # a number without a unit may be meant as a date
            ends = at + parse_duration(math.inf if text.strip().isdigit() else text, "--expires")
        except InputError:
            raise InputError(wrong) from None
    if not at < ends < at + _LONGEST:
        raise InputError(wrong)
    return ends


def shown_day(seconds: float) -> str:
    """Write seconds since 1970 as a day and a time, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _known(database: Database, token: str) -> Key | None:
    """The key of a token that is right and was not revoked."""
    parts = TOKEN.fullmatch(token)
    if parts is None:
        return None
    row = database.read(lambda connection: connection.execute(select(keys).where(keys.c.id == parts[1])).first())
    if row is None or row.revoked is not None or not hmac.compare_digest(row.digest, _digest(parts[2])):
        return None
    return _key(row)


def _key(row: Any) -> Key:
    return Key(row.id, row.tenant, row.name, tuple(row.scopes.split(",")), row.created, row.revoked, row.expires)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
