"""Check the key of a request from its headers: whether it is valid, its scope, and its rate limit.

What is special: this happens before the body arrives. A key that was found is remembered for at most a
second, so a request needs no query of its own, and a revoked key is refused within a second. Keys are looked
up by threads of their own, so that wrong keys don't keep the others from the database.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from balancer.data.spec import DAY
from balancer.serving.http.limits import RefusalError
from balancer.serving.http.logs import LOGGER
from balancer.serving.http.route_table import SCOPE_ATTRIBUTE
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database
from balancer.serving.storage.keys import OPEN, Key

if TYPE_CHECKING:
    from balancer.serving.http.oidc import TokenVerifier

LOG = logging.getLogger(LOGGER)
_BEARER = HTTPBearer(auto_error=False, description="A key of `balancer keys create`, or a token of the issuer of --oidc-issuer.")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]


REMEMBERED_SECONDS = 1.0
"""Seconds for which it is remembered that a key is valid or not, and whether any key exists."""
_RENEWED_SECONDS = 0.5
"""Seconds after which a key that is used is looked up again while requests go on."""
_MOST_REMEMBERED = 10_000
_OPEN = "\n"
"""Stands for the question whether any key exists; no token is equal to it."""
LOOK_UP_THREADS = 2


class _Known(NamedTuple):
    """What is known of a token."""

    result: Key | RefusalError
    asked: float


class Access:
    """Checks keys against the database and limits their rates.

    Its methods belong to the event loop; the database is asked in threads.

    Args:
        database: Where the keys are stored.
        rate: Requests per second and key at this worker; 0 for no limit.
        open_allowed: Whether requests without a key are allowed while no key was ever created; on loopback
            only.
        tokens: Checks tokens of an issuer; None: only keys are accepted. With it no request is open.
    """

    def __init__(self, database: Database, rate: float, *, open_allowed: bool, tokens: TokenVerifier | None = None) -> None:
        self._database, self._rate = database, rate
        self._may_open = open_allowed and tokens is None
        self._tokens, self._warned = tokens, dict[str, float]()
        self._open, self._open_asked = False, -math.inf
        self._known: dict[str, _Known] = {}
        self._asked: dict[str, asyncio.Task[Any]] = {}
        self._buckets: dict[str, tuple[float, float]] = {}
        # Two threads, so that a flood of wrong keys does not delay keys that are in use.
        self._unknown, self._in_use = ThreadPoolExecutor(1, "unknown-keys"), ThreadPoolExecutor(1, "keys")
        # The keys of an issuer may have to be fetched, and keys must not wait for that.
        self._token_threads = ThreadPoolExecutor(LOOK_UP_THREADS, "tokens")

    def close(self) -> None:
        """End the threads."""
        for threads in (self._unknown, self._in_use, self._token_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    async def is_open(self) -> bool:
        """Whether requests without a key are allowed.

        The first key takes effect within a second, and for good: a service whose keys were all revoked stays
        closed.

        Raises:
            UnavailableError: If the database did not answer.
        """
        if self._may_open and time.monotonic() - self._open_asked >= REMEMBERED_SECONDS:
            await self._once(_OPEN, self._look_whether_open)
        return self._may_open and self._open

    async def check(self, headers: Iterable[tuple[bytes, bytes]], scope: str, state: dict[str, Any] | None = None) -> Key:
        """Return the key of a request.

        Args:
            headers: Headers of the request, names in lower case.
            scope: What the key must allow.
            state: Gets what the log says of the request, as `log_fields`.

        Raises:
            RefusalError: If the key is missing or wrong (401), lacks the scope (403), or was used too often
                (429), or if tokens can't be checked now (503).
            UnavailableError: If the database did not answer.
        """
        given = [value for name, value in headers if name == b"authorization"]
        if given:
            key = await self._key_of(given)
        elif await self.is_open():
            key = OPEN
        else:
            raise _unauthorized("give a key as a header, Authorization: Bearer KEY")
        if state is not None:
            state["log_fields"] = {"key": key.id, "tenant": key.tenant}
        if scope not in key.scopes:
            raise RefusalError(403, lacks(key, scope))
        wait = self._wait(key.id)
        if wait > 0:
            seconds = f"{max(1, math.ceil(wait))}"
            raise RefusalError(429, f"more than {self._rate:g} requests per second; wait {wait:.2f} s", {"Retry-After": seconds})
        return key

    def allow(self, scope: str) -> Callable[..., Awaitable[Key]]:
        """Build a FastAPI dependency that returns the key of a request.

        The middleware has checked it: it finds the scope of a route by this dependency.
        """

        async def checked(request: Request, _: Bearer) -> Key:
            key: Key | None = getattr(request.state, "key", None)
            if key is None:
                raise HTTPException(401, "give a key as a header, Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
            if scope not in key.scopes:
                raise HTTPException(403, lacks(key, scope))
            return key

        setattr(checked, SCOPE_ATTRIBUTE, scope)
        return checked

    async def _key_of(self, given: list[bytes]) -> Key:
        """The key of the headers `Authorization`.

        Raises:
            RefusalError: If it is not accepted.
        """
        scheme, _, text = given[0].partition(b" ")
        if len(given) > 1 or scheme.lower() != b"bearer":
            raise _unauthorized("give a key as a header, Authorization: Bearer KEY")
        token = text.strip().decode("latin-1")
        known, now = self._known.get(token), time.monotonic()
        if known is None or now - known.asked >= REMEMBERED_SECONDS:
            known = await self._once(token, partial(self._look_up, token))
        elif now - known.asked >= _RENEWED_SECONDS and isinstance(known.result, Key):
            self._begin(token, partial(self._look_up, token))
        if isinstance(known.result, RefusalError):
            raise RefusalError(known.result.status, known.result.error, known.result.headers)
        return known.result

    async def _once(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """Await work that is begun once, however many wait for it."""
        return await asyncio.shield(self._begin(name, work))

    def _begin(self, name: str, work: Callable[[], Awaitable[Any]]) -> asyncio.Task[Any]:
        task = self._asked.get(name)
        if task is None or task.done():
            task = asyncio.ensure_future(work())
            self._asked[name] = task
            task.add_done_callback(partial(self._ended, name))
        return task

    def _ended(self, name: str, task: asyncio.Task[Any]) -> None:
        if self._asked.get(name) is task:
            del self._asked[name]
        if not task.cancelled():
            task.exception()  # who waits for it gets it; a renewal that failed is tried again by a request

    async def _look_whether_open(self) -> None:
        asked = time.monotonic()
        ever = await asyncio.get_running_loop().run_in_executor(self._in_use, keys.any_ever, self._database)
        self._open, self._open_asked = not ever, asked
        self._may_open = not ever

    async def _look_up(self, token: str) -> _Known:
        asked, before = time.monotonic(), self._known.get(token)
        if self._is_of_issuer(token):
            threads = self._token_threads
        else:
            threads = self._in_use if before is not None and isinstance(before.result, Key) else self._unknown
        result = await asyncio.get_running_loop().run_in_executor(threads, self._verified, token)
        known = _Known(result, asked)
        if not isinstance(result, RefusalError) or result.status == 401:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known = {name: each for name, each in self._known.items() if asked - each.asked < REMEMBERED_SECONDS}
                if len(self._known) >= _MOST_REMEMBERED:
                    self._known.clear()
            self._known[token] = known
        return known

    def _is_of_issuer(self, token: str) -> bool:
        return self._tokens is not None and not token.startswith("bk_")

    def _verified(self, token: str) -> Key | RefusalError:
        """The key of a token, or why there is none; runs in a thread."""
        if self._tokens is not None and self._is_of_issuer(token):
            found = self._tokens.key_or_refusal(token)
            if isinstance(found, str) and (why := self._tokens.refusal) is not None:
                return RefusalError(503, why, {"Retry-After": "10"})
        else:
            found = keys.verify(self._database, token) or keys.refusal(self._database, token)
        if isinstance(found, str):
            return _unauthorized(found)
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
        now, most = time.monotonic(), max(self._rate, 1.0)
        tokens, updated = self._buckets.get(key, (most, now))
        tokens = min(most, tokens + (now - updated) * self._rate)
        if tokens < 1:
            self._buckets[key] = tokens, now
            return (1 - tokens) / self._rate
        self._buckets[key] = tokens - 1, now
        return 0.0


def lacks(key: Key, scope: str) -> str:
    """Say that a key lacks a scope."""
    return f"the key lacks the scope {scope!r}; it has {', '.join(key.scopes) or 'none'}"


def _unauthorized(error: str) -> RefusalError:
    return RefusalError(401, error, {"WWW-Authenticate": "Bearer"})
