"""Connections to a worker: how many there may be, and how long they may be idle or half sent.

What is special: where there are too many, the oldest one without a running request is closed in favour of the
new one, first of the address that has most. So a flood of idle connections keeps nobody out, and only where
all are busy a new one is refused. An answer that is given before the body has arrived is delivered: the
rest of the body is read and thrown away for a moment, because closing a connection with unread data would
discard the answer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from balancer.serving import metrics
from balancer.serving.http.limits import error_body
from balancer.serving.http.logs import LOGGER

LOG = logging.getLogger(LOGGER)
MOST_HEADERS = 65_536
"""Bytes of the headers of a request."""
SWEEP_SECONDS = 0.5
"""Seconds between two looks at all connections."""
LINGER_SECONDS, LINGER_BYTES, MOST_LINGERING = 2.0, 16_000_000, 64
"""For how long, for how many bytes, and on how many connections at once, what arrives is thrown away."""
_LINGER_PAUSE = 0.005
STALL_SECONDS = 30.0
"""Seconds after which a connection is closed whose client does not read its answer."""
_LOG_SECONDS = 1.0
_NEVER = float("inf")
_BUSY = error_body("too many connections; close some of yours, and try again")
_HEADERS = error_body("the headers of the request are too large; send fewer or shorter ones")


def _answer(status: bytes, content: bytes) -> bytes:
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
    return head % (status, len(content)) + content


class ConnectionGuard:
    """Counts the connections of a worker and closes those that are too many, too slow or idle.

    Args:
        most: Most connections.
        most_of_address: Most connections from one address.
        header_seconds: For the headers of a request to arrive.
        idle_seconds: After which a connection without a request is closed.
    """

    def __init__(self, most: int, most_of_address: int, header_seconds: float, idle_seconds: float) -> None:
        self.most, self.most_of_address = most, most_of_address
        self.header_seconds, self.idle_seconds = header_seconds, idle_seconds
        self.lingering = 0
        self._all: set[LimitedProtocol] = set()
        self._of_address: Counter[str] = Counter()
        self._waiting: dict[str, dict[LimitedProtocol, None]] = {}
        self._closed: Counter[str] = Counter()
        self._logged, self._sweeping = -_NEVER, False

    def admit(self, protocol: LimitedProtocol) -> bool:
        """Take a new connection on, perhaps in place of one that waits; False if it must be refused."""
        address = protocol.address
        if self._of_address[address] >= self.most_of_address:
            reason, crowded = "address", address if address in self._waiting else None
        elif len(self._all) >= self.most:
            reason, crowded = "total", max(self._waiting, key=self._of_address.__getitem__, default=None)
        else:
            reason, crowded = "", None
        if reason:
            self.count(f"limit_{reason}")
            if crowded is None:
                return False
            oldest = next(iter(self._waiting[crowded]))
            self.leave(oldest)
            oldest.transport.close()
        self._all.add(protocol)
        self._of_address[address] += 1
        self.wait(protocol)
        if not self._sweeping:
            self._sweeping = True
            protocol.loop.call_later(SWEEP_SECONDS, self._sweep, protocol.loop)
        return True

    def leave(self, protocol: LimitedProtocol) -> None:
        """Forget a connection."""
        if protocol in self._all:
            self._all.remove(protocol)
            self.work(protocol)
            self._of_address[protocol.address] -= 1
            if not self._of_address[protocol.address]:
                del self._of_address[protocol.address]

    def wait(self, protocol: LimitedProtocol) -> None:
        """Note that a connection has no running request."""
        if protocol in self._all:
            self._waiting.setdefault(protocol.address, {})[protocol] = None

    def work(self, protocol: LimitedProtocol) -> None:
        """Note that a connection has a running request."""
        waiting = self._waiting.get(protocol.address)
        if waiting is not None:
            waiting.pop(protocol, None)
            if not waiting:
                del self._waiting[protocol.address]

    def count(self, reason: str) -> None:
        """Count a connection that is closed or refused, and say so in the log, at most once a second."""
        metrics.CLOSED_CONNECTIONS.labels(reason).inc()
        self._closed[reason] += 1
        self._say()

    def _say(self) -> None:
        now = time.monotonic()
        if self._closed and now - self._logged >= _LOG_SECONDS:
            fields = {"connections": len(self._all), "limit": self.most, **self._closed}
            LOG.warning("connections were closed or refused", extra={"fields": fields})
            self._logged = now
            self._closed.clear()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what has waited too long; runs while there are connections."""
        now = loop.time()
        for each in list(self._all):
            each.look(now)
        metrics.CONNECTIONS.set(len(self._all))
        self._check_files()
        self._say()
        self._sweeping = bool(self._all or self._closed)
        if self._sweeping:
            loop.call_later(SWEEP_SECONDS, self._sweep, loop)

    def _check_files(self) -> None:
        """Make room where no file can be opened: the event loop would refuse connections in silence."""
        try:
            os.close(os.dup(2))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                return
            LOG.error(
                "the limit of open files is reached; raise it, or lower --max-connections",
                extra={"fields": {"connections": len(self._all)}},
            )
            for waiting in list(self._waiting.values()):
                for each in list(waiting)[: 1 + len(waiting) // 10]:
                    self.count("limit_files")
                    self.leave(each)
                    each.transport.close()


class LimitedProtocol(HttpToolsProtocol):
    """The protocol of uvicorn with the limits of a `ConnectionGuard`."""

    guard: ConnectionGuard
    """That of the worker; set before the server starts."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.address = ""
        self._deadline, self._reason = _NEVER, ""
        self._header_bytes = -1
        self._refused, self._lingers, self._discarded = False, False, 0
        self._unsent, self._sent_at = 0, 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._expect(self.guard.header_seconds, "header_timeout")
        if not self.guard.admit(self):
            self._refused = True
            transport.write(_answer(b"503 Service Unavailable", _BUSY))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.guard.leave(self)
        if self._lingers:
            self._lingers = False
            self.guard.lingering -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self._lingers:
            self._discard(len(data))
        elif not self._refused:
            super().data_received(data)
            if self._header_bytes >= 0:
                self._header_bytes += len(data)
                if self._header_bytes > MOST_HEADERS and not self.transport.is_closing():
                    self._refused = True
                    self.guard.count("headers_too_large")
                    self.transport.write(_answer(b"431 Request Header Fields Too Large", _HEADERS))
                    self.transport.close()

    def on_message_begin(self) -> None:
        """Expect the headers of a request."""
        super().on_message_begin()
        self._header_bytes = 0
        if self.cycle is None or self.cycle.response_complete:
            self._expect(self.guard.header_seconds, "header_timeout")

    def on_headers_complete(self) -> None:
        """Start the request; the middleware limits the time of its body."""
        super().on_headers_complete()
        self._header_bytes, self._deadline = -1, _NEVER
        self.guard.work(self)
        if self.cycle is not None:
            self.cycle.transport = _RequestTransport(self, self.cycle)  # type: ignore[assignment]

    def on_response_complete(self) -> None:
        """Expect the next request."""
        super().on_response_complete()
        if not self.pipeline and (self.cycle is None or self.cycle.response_complete) and not self._lingers:
            self._expect(self.guard.idle_seconds, "idle")
            self.guard.wait(self)

    def close_after(self, cycle: RequestResponseCycle) -> None:
        """Close the connection after an answer, but first let the client read it."""
        transport = self.transport
        if cycle is not self.cycle or not cycle.more_body or transport.is_closing() or self.guard.lingering >= MOST_LINGERING:
            transport.close()
            return
        self._lingers = True
        self.guard.lingering += 1
        self._expect(LINGER_SECONDS, "")
        if transport.can_write_eof():
            transport.write_eof()
        self.guard.wait(self)
        self.flow.resume_reading()

    def look(self, now: float) -> None:
        """Close the connection if it has waited too long, or if its client does not read."""
        transport = self.transport
        unsent = transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent:
            self._sent_at = now
        elif now - self._sent_at > STALL_SECONDS:
            self.guard.count("not_read")
            transport.abort()
            return
        self._unsent = unsent
        if now < self._deadline:
            return
        if self._reason and self._reason != "idle":
            self.guard.count(self._reason)
        self._deadline = _NEVER
        if self._lingers or transport.is_closing():
            transport.abort()
        else:
            transport.close()

    def _expect(self, seconds: float, reason: str) -> None:
        self._deadline, self._reason = self.loop.time() + seconds, reason

    def _discard(self, size: int) -> None:
        """Throw away what arrives, a little at a time, so that other connections have their turn."""
        self._discarded += size
        if self._discarded > LINGER_BYTES:
            self.transport.abort()
            return
        self.flow.pause_reading()
        self.loop.call_later(_LINGER_PAUSE, self._read_on)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()


class _RequestTransport:
    """What a request may do with its connection."""

    __slots__ = ("_cycle", "_protocol", "write")

    def __init__(self, protocol: LimitedProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol, self._cycle = protocol, cycle
        self.write = protocol.transport.write

    def is_closing(self) -> bool:
        return self._protocol.transport.is_closing()

    def close(self) -> None:
        self._protocol.close_after(self._cycle)
