"""ASGI middleware around every request: who asks, limits of size, number and time, access log, metrics.

What is special: a request is admitted by its headers. Before its key is known to be valid no byte of its body
is asked for, and uvicorn buffers at most a few packets. The middleware is pure ASGI, so a body is counted
while it arrives. A request that waits too long to begin is answered with 503 and is then not carried out; one
whose transaction is running is awaited, because its rows may be stored. Log lines contain neither body nor
path nor query: a line has the template of the route, so numbers of cards and entities are not logged.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from balancer.names import quoted
from balancer.serving.http.auth import Access
from balancer.serving.http.limits import SMALL, ByteLimit, RefusalError, RequestLimit, error_body
from balancer.serving.http.logs import LOGGER
from balancer.serving.http.route_table import Found, RouteTable
from balancer.serving.http.telemetry import RequestTrace, Telemetry
from balancer.serving.metrics import REQUEST_SECONDS, REQUESTS
from balancer.serving.storage.database import DiskFullError, UnavailableError
from balancer.serving.storage.deadline import REQUEST, Deadline
from balancer.serving.storage.keys import Key
from balancer.serving.tracing import working_for

LOG = logging.getLogger(LOGGER)
_KEY = re.compile(rb"bk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}")
"""A whole key. A part of one is no secret, and may be the name of an entity."""
_SECRET_IN_QUERY = re.compile(rb"(^|&)(api[_-]?key|key|token|access_token|authorization)=", re.IGNORECASE)
UNGUARDED = ("/healthz", "/readyz")
"""Routes that answer whatever the database does: no Host header is checked, and they are not counted."""
_STALL_SECONDS = 5
"""Seconds for which a large body may pause while it arrives; one second where others wait for its bytes."""
_TOO_LATE = 503, "the service was too busy to begin in time, so nothing was done; send the same request again"


class RequestMiddleware:
    """The outermost layer of the application.

    Args:
        app: The application.
        access: Checks the keys.
        routes: Makes the table of routes, once they have all been added.
        max_body: Most bytes of a request.
        max_held: Most bytes of large bodies that are held at once.
        max_concurrent: Most requests that run at once.
        timeout: Seconds for the arrival of a body, and again for the answer.
        host_allowed: Whether a Host header is accepted.
        direct: By template of the route, what answers a POST without the application around it.
        telemetry: Makes spans of the requests; None makes none.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        routes: Callable[[], RouteTable],
        max_body: int,
        max_held: int,
        max_concurrent: int,
        timeout: float,
        host_allowed: Callable[[str], Awaitable[bool]],
        direct: Mapping[str, Callable[[Scope, bytes, Send], Awaitable[None]]],
        telemetry: Telemetry | None = None,
    ) -> None:
        self.app, self.access, self.max_body, self.timeout, self.host_allowed = app, access, max_body, timeout, host_allowed
        self._routes, self._direct, self._telemetry = routes, direct, telemetry
        self._table: RouteTable | None = None
        self._requests, self._bytes = RequestLimit(max_concurrent), ByteLimit(max_held)
        self._turns = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._table is None:
            self._table = self._routes()
        begun, found = time.perf_counter(), self._table.find(scope)
        trace = RequestTrace(self._telemetry, scope["method"], scope["headers"])
        request = _Request(scope, receive, send, trace.number)
        try:
            with working_for(trace.parents):
                await self._serve(request, found)
        except RefusalError as refusal:
            await request.answer(refusal.status, refusal.error, refusal.headers)
        except UnavailableError as error:
            if isinstance(error, DiskFullError):
                LOG.exception("the disk of the database is full", extra={"fields": {"request": request.number}})
            await request.answer(503, f"{error}; send the same request again", {"Retry-After": "1"})
        except Exception:  # every request gets an answer and a line in the log
            LOG.exception("failed", extra={"fields": {"request": request.number}})
            await request.answer(500, f"the service failed on this request; its log has more under request {request.number}")
        finally:
            seconds, status, route = time.perf_counter() - begun, request.status, found.template
            trace.end(scope["method"], route, status)
            REQUESTS.labels(scope["method"] if status not in (405, 501) else "other", route, status).inc()
            REQUEST_SECONDS.labels(route).observe(seconds)
            fields = {"request": request.number, "method": scope["method"], "route": route, "status": status, "ms": round(1e3 * seconds, 2)}
            LOG.info("served", extra={"fields": fields | request.state.get("log_fields", {})})

    async def _serve(self, request: _Request, found: Found) -> None:
        scope = request.scope
        if found.template in UNGUARDED:
            await self.app(scope, _nothing, request.send)
            return
        key = await self._admitted(request, found)
        if key is None:
            await self._run(request, found, b"")
            return
        with self._requests.running(key.id):
            body, lent = await self._arrived(request, key.id)
            try:
                if lent:
                    await self._turn()
                await self._run(request, found, body)
            finally:
                if lent:
                    self._bytes.give_back(key.id, lent)

    async def _admitted(self, request: _Request, found: Found) -> Key | None:
        """The key of a request, from its headers; None if its route needs none.

        Raises:
            RefusalError: The headers are enough to refuse the request.
            UnavailableError: The key can't be checked now.
        """
        try:
            async with asyncio.timeout(self.timeout / 2):
                await self._check_headers(request.scope)
                if found.scope is None:
                    return None
                key = await self.access.check(request.scope["headers"], found.scope, request.state)
        except TimeoutError:
            raise UnavailableError("the database did not answer in time") from None
        request.state["key"] = key
        if request.scope.get("query_string"):
            _check_query(request.scope["query_string"], found.parameters)
        return key

    async def _run(self, request: _Request, found: Found, body: bytes) -> None:
        """Call the application, unless it does not begin in time."""
        deadline, loop = Deadline(self.timeout), asyncio.get_running_loop()
        token, task, late = REQUEST.set(deadline), asyncio.current_task(), False

        def expire() -> None:
            nonlocal late
            late = not request.status and deadline.expire()
            if late and task is not None:
                task.cancel()

        timer = loop.call_later(self.timeout / 2, expire)
        try:
            answer = self._direct.get(found.template) if request.scope["method"] == "POST" else None
            if answer is not None and not request.gone:
                await answer(request.scope, body, request.send)
            else:
                await self.app(request.scope, request.replayed(body), request.send)
        except asyncio.CancelledError:
            if not late or task is None or task.uncancel() > 0:
                raise
            raise RefusalError(*_TOO_LATE, {"Retry-After": "1"}) from None
        finally:
            timer.cancel()
            REQUEST.reset(token)

    async def _check_headers(self, scope: Scope) -> None:
        """Refuse a request whose headers are enough for it.

        Raises:
            RefusalError: It has a secret in its URL, names another host, or is too large.
        """
        path, query = scope.get("raw_path", b""), scope.get("query_string", b"")
        if _SECRET_IN_QUERY.search(query) or _KEY.search(unquote_to_bytes(path)) or _KEY.search(unquote_to_bytes(query)):
            raise RefusalError(
                400, "a key in the URL is written to logs; send it as a header, Authorization: Bearer KEY, and revoke this key"
            )
        host, length = b"", b"0"
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"content-length":
                length = value
        if not await self.host_allowed(host.decode("latin-1")):
            raise RefusalError(
                421, "this service has no keys yet and answers to loopback names only; create a key with balancer keys create"
            )
        if length.isdigit() and int(length) > self.max_body:
            raise self._too_large()

    def _too_large(self) -> RefusalError:
        return RefusalError(413, f"the request has more than {self.max_body} bytes; send less per request")

    async def _arrived(self, request: _Request, key: str) -> tuple[bytes, int]:
        """Receive the body.

        Returns:
            The body, and the bytes that were lent for it.

        Raises:
            RefusalError: If it is too long or too slow, or had to wait too long for other large bodies.
        """
        if not request.has_body:
            return b"", 0
        try:
            async with asyncio.timeout(self.timeout):
                return await self._body(request, key)
        except TimeoutError:
            raise RefusalError(408, "the request did not arrive in time; send it again") from None

    async def _body(self, request: _Request, key: str) -> tuple[bytes, int]:
        chunks, size, lent = list[bytes](), 0, 0
        try:
            while True:
                message = await (self._received(request) if lent else request.receive())
                if message["type"] != "http.request":
                    request.gone = True
                    return b"", lent
                chunk = message.get("body", b"")
                chunks.append(chunk)
                size += len(chunk)
                if size > self.max_body:
                    raise self._too_large()
                if not message.get("more_body"):
                    request.arrived = True
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks), lent
                if size > SMALL and not lent:
                    lent = await self._lend(key, request.length or self.max_body)
        except BaseException:  # whatever happens, others must get the bytes
            if lent:
                self._bytes.give_back(key, lent)
            raise

    async def _turn(self) -> None:
        """Let large bodies be read as JSON one at a time, with other work of the event loop between them."""
        await self._turns.acquire()
        asyncio.get_running_loop().call_soon(self._turns.release)

    async def _received(self, request: _Request) -> Message:
        """The next part of a body that was lent bytes, which it may not keep without using them."""
        stalled = 0
        while True:
            try:
                async with asyncio.timeout(1.0):
                    return await request.receive()
            except TimeoutError:
                stalled += 1
                if self._bytes.is_wanted or stalled >= _STALL_SECONDS:
                    raise RefusalError(408, "the request did not arrive in time; send it again") from None

    async def _lend(self, key: str, size: int) -> int:
        try:
            async with asyncio.timeout(self.timeout / 2):
                return await self._bytes.take(key, size)
        except TimeoutError:
            raise RefusalError(503, "other large requests take too long; send the same request again", {"Retry-After": "5"}) from None


class _Request:
    """A request, and what has been answered to it."""

    __slots__ = ("_send", "arrived", "gone", "has_body", "length", "number", "receive", "scope", "state", "status")

    def __init__(self, scope: Scope, receive: Receive, send: Send, number: str) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.number = number
        self.status = 0
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.state["request"] = self.number
        self.length, self.has_body = 0, False
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                self.length = int(value)
                self.has_body |= self.length > 0
            elif name == b"transfer-encoding":
                self.has_body = True
        self.arrived = not self.has_body
        self.gone = False

    async def send(self, message: Message) -> None:
        """Send a part of the answer; its head gets the headers that all answers have."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self.number.encode()), (b"cache-control", b"no-store")]
            if not self.arrived or self.status == 401:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def answer(self, status: int, error: str, further: dict[str, str] | None = None) -> None:
        """Answer with an error, unless an answer has begun."""
        if self.status:
            return
        content = error_body(error)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in (further or {}).items()]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content})

    def replayed(self, body: bytes) -> Receive:
        """What gives the application the body, and after it what uvicorn says."""
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return {"type": "http.disconnect"} if self.gone or not self.arrived else await self.receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay


def _check_query(query: bytes, known: tuple[str, ...]) -> None:
    """Refuse a parameter that the route does not have: it would be a filter that does nothing.

    Raises:
        RefusalError: There is one.
    """
    for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in known:
            what = f"known: {', '.join(known)}" if known else "this route has none; leave it out"
            raise RefusalError(422, f"unknown query parameter {quoted(name)}; {what}")


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
