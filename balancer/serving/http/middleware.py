"""ASGI middleware around every request: limits of size and time, access log, metrics.

What is special: the middleware is pure ASGI, so a body is counted while it arrives and is never stored beyond
the limit. Log lines contain neither body nor path nor query: a line has the template of the route, so numbers
of cards and entities are not logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from balancer.serving.http.logs import LOGGER
from balancer.serving.metrics import REQUEST_SECONDS, REQUESTS

LOG = logging.getLogger(LOGGER)
_KEY = re.compile(rb"bk_[0-9a-f]{12}_[A-Za-z0-9_-]{43}")
"""A whole key. A part of one is no secret, and may be the name of an entity."""
_SECRET_IN_QUERY = re.compile(rb"(^|&)(api[_-]?key|key|token|access_token|authorization)=", re.IGNORECASE)


class RequestMiddleware:
    """The outermost layer of the application.

    Args:
        app: The application.
        max_body: Most bytes of a request.
        timeout: Seconds for the arrival of a body, and again for the answer.
        host_allowed: Whether a Host header is accepted.
    """

    def __init__(self, app: ASGIApp, *, max_body: int, timeout: float, host_allowed: Callable[[str], bool]) -> None:
        self.app, self.max_body, self.timeout, self.host_allowed = app, max_body, timeout, host_allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, number, status = time.perf_counter(), uuid.uuid4().hex, 0
        scope.setdefault("state", {})["request"] = number

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", number.encode()), (b"cache-control", b"no-store")]}
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                try:
                    body = await asyncio.wait_for(self._body(receive), self.timeout)
                except TimeoutError:
                    refusal = 408, "the request did not arrive in time; send it again"
                else:
                    refusal = self._too_large() if body is None else None
            if refusal is not None:
                await _answer(send_with_headers, *refusal)
            else:
                await self._call_app(scope, body or b"", receive, send_with_headers, lambda: status)
        except Exception:  # every request gets an answer and a line in the log
            LOG.exception("failed", extra={"fields": {"request": number}})
            if not status:
                await _answer(send_with_headers, 500, f"the service failed on this request; its log has more under request {number}")
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "other")
            REQUESTS.labels(scope["method"] if status not in (405, 501) else "other", route, status).inc()
            REQUEST_SECONDS.labels(route).observe(seconds)
            fields = {"request": number, "method": scope["method"], "route": route, "status": status, "ms": round(1e3 * seconds, 2)}
            LOG.info("served", extra={"fields": fields | scope["state"].get("log_fields", {})})

    async def _call_app(self, scope: Scope, body: bytes, receive: Receive, send: Send, status: Callable[[], int]) -> None:
        body_sent = False

        async def replay() -> Message:
            nonlocal body_sent
            if body_sent:
                return await receive()
            body_sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await asyncio.wait_for(self.app(scope, replay, send), self.timeout)
        except TimeoutError:
            if not status():
                await _answer(send, 503, "the answer took too long; send the same request again, it does not count twice")

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and message if the headers are enough to refuse the request."""
        headers = dict(scope["headers"])
        path, query = scope.get("raw_path", b""), scope.get("query_string", b"")
        if _SECRET_IN_QUERY.search(query) or _KEY.search(unquote_to_bytes(path)) or _KEY.search(unquote_to_bytes(query)):
            return 400, "a key in the URL is written to logs; send it as a header, Authorization: Bearer KEY, and revoke this key"
        if not self.host_allowed(headers.get(b"host", b"").decode("latin-1")):
            return 421, "this service has no keys yet and answers to loopback names only; create a key with balancer keys create"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            return self._too_large()
        return None

    def _too_large(self) -> tuple[int, str]:
        return 413, f"the request has more than {self.max_body} bytes; send less per request"

    async def _body(self, receive: Receive) -> bytes | None:
        """Receive the body; None if it is too long."""
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b""
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.max_body:
                return None
            if not message.get("more_body"):
                return b"".join(chunks)


async def _answer(send: Send, status: int, error: str) -> None:
    content = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
