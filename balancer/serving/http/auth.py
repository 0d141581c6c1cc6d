"""Check the key of a request: whether it is valid, its scope, and its rate limit."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from balancer.data.spec import DAY
from balancer.serving.http.logs import LOGGER
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database
from balancer.serving.storage.keys import OPEN, Key

if TYPE_CHECKING:
    from balancer.serving.http.oidc import TokenVerifier

LOG = logging.getLogger(LOGGER)
_BEARER = HTTPBearer(auto_error=False, description="A key of `balancer keys create`, or a token of the issuer of --oidc-issuer.")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]


OPEN_SECONDS = 1.0
"""Seconds for which it is cached whether any key exists."""


class Access:
    """Checks keys against the database and limits their rates.

    Args:
        database: Where the keys are stored.
        rate: Requests per second and key at this worker; 0 for no limit.
        open_allowed: Whether requests without a key are allowed while no key exists; on loopback only.
        tokens: Checks tokens of an issuer; None: only keys are accepted. With it no request is open.
    """

    def __init__(self, database: Database, rate: float, *, open_allowed: bool, tokens: TokenVerifier | None = None) -> None:
        self._database, self._rate, self._open_allowed = database, rate, open_allowed and tokens is None
        self._tokens, self._warned = tokens, dict[str, float]()
        self._open, self._open_until = False, 0.0
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether requests without a key are allowed. The first key takes effect within a second."""
        if not self._open_allowed:
            return False
        if time.monotonic() > self._open_until:
            self._open, self._open_until = not keys.any_in_use(self._database), time.monotonic() + OPEN_SECONDS
        return self._open

    def allow(self, scope: str) -> Callable[..., Key]:
        """Build a FastAPI dependency that returns the key of a request if it has the scope."""

        def checked(request: Request, bearer: Bearer) -> Key:
            if bearer is None:
                if "authorization" in request.headers or not self.is_open:
                    raise HTTPException(401, "give a key as a header, Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
                key = OPEN
            else:
                key = self._verified(bearer.credentials)
            request.state.log_fields = {"key": key.id, "tenant": key.tenant}
            if scope not in key.scopes:
                raise HTTPException(403, f"the key lacks the scope {scope!r}; it has {', '.join(key.scopes) or 'none'}")
            wait = self._wait(key.id)
            if wait > 0:
                raise HTTPException(429, f"more than {self._rate:g} requests per second; wait {wait:.2f} s", {"Retry-After": "1"})
            return key

        return checked

    def _verified(self, token: str) -> Key:
        """Return the key of a request.

        Raises:
            HTTPException: It is wrong, was revoked or has expired (401), or tokens can't be checked now
                (503).
        """
        if self._tokens is not None and not token.startswith("bk_"):
            found = self._tokens.verify(token)
            if found is None and (why := self._tokens.refusal) is not None:
                raise HTTPException(503, why, {"Retry-After": "10"})
            refusal = "the token is wrong or has expired; get another one from its issuer"
        else:
            found = keys.verify(self._database, token)
            refusal = "" if found is not None else keys.refusal(self._database, token)
        if found is None:
            raise HTTPException(401, refusal, {"WWW-Authenticate": "Bearer"})
        if found.expires_soon and self._warned.get(found.id, -math.inf) < time.monotonic() - DAY:
            self._warned[found.id] = time.monotonic()
            fields = {"key": found.id, "tenant": found.tenant, "expires": keys.shown_day(found.expires or 0.0)}
            LOG.warning("a key expires soon; create another one with balancer keys create", extra={"fields": fields})
        return found

    def _wait(self, key: str) -> float:
        """Take a request from the bucket of the key, which holds the requests of one second.

        Returns:
            0, or the seconds until the next request is allowed.
        """
        if not self._rate:
            return 0.0
        now = time.monotonic()
        with self._lock:
            tokens, updated = self._buckets.get(key, (max(self._rate, 1.0), now))
            tokens = min(max(self._rate, 1.0), tokens + (now - updated) * self._rate)
            if tokens < 1:
                self._buckets[key] = tokens, now
                return (1 - tokens) / self._rate
            self._buckets[key] = tokens - 1, now
            return 0.0
