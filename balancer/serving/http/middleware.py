"""What is around every request: its limits, its line in the log, its place in the metrics.

What is special: pure ASGI, so a body is counted while it arrives and never held beyond the limit; and no log line holds what was sent, neither body nor
path nor query: a line names the route's template, so card and entity numbers stay out.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from balancer.serving.metrics import REQUEST_SECONDS, REQUESTS

LOG = logging.getLogger("balancer.service")
_SECRET_IN_URL = re.compile(rb"bk_[0-9a-f]{12}_|(^|&)(api[_-]?key|key|token|access_token|authorization)=", re.IGNORECASE)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # The kind and the place of an error, not its text: that may quote what was sent.
            trace = record.exc_info[2]
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            place = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
            line |= {"error": record.exc_info[0].__name__, "at": place}
        return json.dumps(line)


def log_to_stderr() -> None:
    """Send the service's and the server's log to stderr as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("balancer.service", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    # A worker that is done tells so; the access log would quote the query.
    logging.getLogger("uvicorn.access").disabled = True


class Frame:
    """The outermost layer of the application.

    Args:
        app: what is inside.
        max_body: bytes of a request at most.
        timeout: seconds for the arrival of a body, and again for the answer.
        host_allowed: whether a Host header is one to answer to.
    """

    def __init__(self, app: ASGIApp, *, max_body: int, timeout: float, host_allowed: Callable[[str], bool]) -> None:
        self.app, self.max_body, self.timeout, self.host_allowed = app, max_body, timeout, host_allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, number, status = time.perf_counter(), uuid.uuid4().hex, 0
        scope.setdefault("state", {})["request"] = number

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", number.encode()), (b"cache-control", b"no-store")]}
            await send(message)

        try:
            refused = self._refused(scope)
            if refused is None:
                try:
                    body = await asyncio.wait_for(self._body(receive), self.timeout)
                except TimeoutError:
                    refused = 408, "the request did not arrive in time; send it again"
                else:
                    refused = (413, f"the request has more than {self.max_body} bytes; send less at once") if body is None else None
            if refused is not None:
                await _answer(sending, *refused)
            else:
                await self._inside(scope, body or b"", receive, sending, lambda: status)
        except Exception:
            LOG.exception("failed", extra={"told": {"request": number}})
            if not status:
                await _answer(sending, 500, f"the service failed at this; its log tells more under request {number}")
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "other")
            REQUESTS.labels(scope["method"] if status not in (405, 501) else "other", route, status).inc()
            REQUEST_SECONDS.labels(route).observe(seconds)
            told = {"request": number, "method": scope["method"], "route": route, "status": status, "ms": round(1e3 * seconds, 2)}
            LOG.info("served", extra={"told": told | scope["state"].get("told", {})})

    async def _inside(self, scope: Scope, body: bytes, receive: Receive, send: Send, status: Callable[[], int]) -> None:
        handed = False

        async def replay() -> Message:
            nonlocal handed
            if handed:
                return await receive()
            handed = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await asyncio.wait_for(self.app(scope, replay, send), self.timeout)
        except TimeoutError:
            if not status():
                await _answer(send, 503, "the answer took too long; send the same again, it is not counted twice")

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        if _SECRET_IN_URL.search(scope.get("query_string", b"")) or b"bk_" in scope.get("raw_path", b""):
            return 400, "a key in the URL ends up in logs: send it as a header, Authorization: Bearer KEY, and revoke this one"
        if not self.host_allowed(headers.get(b"host", b"").decode("latin-1")):
            return 421, "this service has no keys yet and answers to loopback names only; make a key by balancer keys create"
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body:
            return 413, f"the request has more than {self.max_body} bytes; send less at once"
        return None

    async def _body(self, receive: Receive) -> bytes | None:
        """The body, or None where it is too long."""
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body:
                return None
            if not message.get("more_body"):
                return b"".join(parts)


async def _answer(send: Send, status: int, error: str) -> None:
    content = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
