"""Clients of the service that cost little themselves: one connection that waits, or many at once.

They speak HTTP/1.1 through plain sockets, because a full client takes more time than the service.
"""

from __future__ import annotations

import asyncio
import json
import random
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

HOST = "127.0.0.1"


def request_bytes(method: str, path: str, key: str | None, body: bytes) -> bytes:
    """A whole HTTP request."""
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    if key is not None:
        head += f"authorization: Bearer {key}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Connection:
    """A connection that is kept open and sends one request after another.

    Args:
        port: port of the service on this machine.
        key: API key.
        timeout: seconds that a part of an answer may take.
    """

    def __init__(self, port: int, key: str | None = None, timeout: float = 60.0) -> None:
        self._port, self._key, self._timeout = port, key, timeout
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close it; the next request opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request; returns status and content of the answer.

        Raises:
            OSError: there is no whole answer; the connection is closed.
        """
        try:
            if self._socket is None:
                self._socket = socket.create_connection((HOST, self._port), self._timeout)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(request_bytes(method, path, self._key, body))
            return self._answer(self._socket, method)
        except OSError:
            self.close()
            raise

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        status, content = self.request("GET", path)
        return status, json.loads(content)

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Send JSON; returns status and JSON of the answer."""
        status, content = self.request("POST", path, json.dumps(body).encode())
        return status, json.loads(content)

    def _answer(self, connected: socket.socket, method: str) -> tuple[int, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            part = connected.recv(65_536)
            if not part:
                raise ConnectionError("the service closed the connection")
            data += part
        head, content = data.split(b"\r\n\r\n", 1)
        size = 0 if method == "HEAD" else content_length(head)
        while len(content) < size:
            part = connected.recv(1 << 20)
            if not part:
                raise ConnectionError("the service closed the connection")
            content += part
        if b"connection: close" in head.lower():
            self.close()
        return int(head[9:12]), content


def content_length(head: bytes) -> int:
    """Bytes of the content of an answer, by its headers."""
    lines = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(next(lines, b":0").split(b":")[1])


@dataclass
class Answer:
    """How a request of `flood` ended."""

    status: str
    """HTTP status, ``closed`` (without an answer) or ``unanswered``."""
    seconds: float
    content: bytes


def flood(port: int, requests: Sequence[bytes], seconds: float, *, every: float = 0.0) -> list[Answer]:
    """Send each request on a connection of its own, all at once.

    A request may be cut off, or be empty: then the connection waits, and the answer tells whether the service
    has closed it.

    Args:
        port: port of the service.
        requests: what to send on each connection.
        seconds: after which the rest is left unanswered.
        every: seconds between the openings of two connections.

    Returns:
        How each request ended, in their order.
    """
    chosen, found = selectors.DefaultSelector(), [Answer("unanswered", seconds, b"") for _ in requests]
    begun = time.perf_counter()
    open_sockets: list[socket.socket] = []
    try:
        while (now := time.perf_counter() - begun) < seconds and (len(open_sockets) < len(requests) or chosen.get_map()):
            due = len(requests) if not every else min(len(requests), 1 + int(now / every))
            for number in range(len(open_sockets), due):
                each = socket.socket()
                each.setblocking(False)
                with suppress(BlockingIOError):
                    each.connect((HOST, port))
                open_sockets.append(each)
                chosen.register(each, selectors.EVENT_READ | selectors.EVENT_WRITE, [number, memoryview(requests[number]), b""])
            for ready, events in chosen.select(0.1 if len(open_sockets) == len(requests) else every):
                if not _go_on(ready.fileobj, ready.data, events, found[ready.data[0]]):  # type: ignore[arg-type]
                    found[ready.data[0]].seconds = time.perf_counter() - begun
                    chosen.unregister(ready.fileobj)
                elif events & selectors.EVENT_WRITE and not ready.data[1]:
                    chosen.modify(ready.fileobj, selectors.EVENT_READ, ready.data)
    finally:
        for each in open_sockets:
            each.close()
        chosen.close()
    return found


def _go_on(connected: socket.socket, state: list[Any], events: int, answer: Answer) -> bool:
    """Send and receive what is possible; whether more is expected."""
    if events & selectors.EVENT_WRITE and state[1]:
        try:
            state[1] = state[1][connected.send(state[1][: 1 << 18]) :]
        except BlockingIOError:
            return True
        except OSError:
            state[1] = state[1][:0]  # the service reads no more, but may have answered
    if not events & selectors.EVENT_READ:
        return True
    try:
        part = connected.recv(1 << 18)
    except BlockingIOError:
        return True
    except OSError:
        part = b""
    state[2] += part
    head, end, content = state[2].partition(b"\r\n\r\n")
    if part and (not end or len(content) < content_length(head)):
        return True
    answer.status, answer.content = (head[9:12].decode(), content) if end else ("closed", b"")
    return False


class Bodies:
    """Makes requests of random transactions cheaply: the values are drawn beforehand.

    Every client has cards of its own, so that their transactions arrive in order of time.

    Args:
        values: random values of a transaction, without card, id and time.
        start: time of the first transaction, in seconds since 1970.
        gap: seconds between two transactions.
        cards: cards of each client.
    """

    def __init__(self, values: Callable[[random.Random], Any], start: float, *, gap: float = 20.0, cards: int = 100) -> None:
        rng = random.Random(0)
        self._values = [json.dumps(values(rng))[1:] for _ in range(4096)]
        self._start, self._gap, self._cards, self.made = start, gap, cards, 0

    def make(self, client: int, rows: int) -> bytes:
        """The JSON of a request with ``rows`` transactions."""
        parts = []
        for _ in range(rows):
            number = self.made = self.made + 1
            card, moment = f"{client}-{number % self._cards}", self._start + self._gap * number
            parts.append(f'{{"transaction_id":"t{number}","card_id":"{card}","time":{moment},{self._values[number % 4096]}')
        return b'{"transactions":[' + ",".join(parts).encode() + b"]}"


def load(port: int, key: str, bodies: Bodies, *, clients: int, rows: int, seconds: float) -> dict[str, float]:
    """Send transactions from many clients at once, each the next request after the answer to the last one.

    Returns:
        Transactions, seconds, and milliseconds of a request (median and 99th percentile).

    Raises:
        RuntimeError: a request was refused.
    """
    times: list[float] = []

    async def client(number: int, stop: float) -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            while time.perf_counter() < stop:
                content = request_bytes("POST", "/v1/score", key, bodies.make(number, rows))
                begun = time.perf_counter()
                writer.write(content)
                head = await reader.readuntil(b"\r\n\r\n")
                answer = await reader.readexactly(content_length(head))
                times.append(time.perf_counter() - begun)
                if head[9:12] != b"200":
                    raise RuntimeError(f"status {head[9:12].decode()}: {answer[:200].decode()}")
        finally:
            writer.close()

    async def run() -> float:
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(number, begun + seconds))
        return time.perf_counter() - begun

    took = asyncio.run(run())
    p50, p99 = np.percentile(times, [50, 99])
    return {"transactions": len(times) * rows, "seconds": took, "ms_p50": 1e3 * float(p50), "ms_p99": 1e3 * float(p99)}
