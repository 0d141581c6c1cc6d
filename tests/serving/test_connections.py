"""Connections that are idle, half sent, too many, or not read are closed, and others are still answered."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from balancer.serving.http import connections, file_limit
from balancer.serving.http.connections import ConnectionGuard, LimitedProtocol
from balancer.serving.metrics import CLOSED_CONNECTIONS

HALF = b"POST /x HTTP/1.1\r\nhost: localhost\r\nx-a: "


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer without reading the body, and slowly under /slow."""
    assert scope["type"] == "http"
    if scope["path"] == "/slow":
        await asyncio.sleep(1.0)
    status = 401 if scope["method"] == "POST" else 200
    size = 30_000_000 if scope["path"] == "/large" else 2
    headers = [(b"content-length", str(size).encode())]
    if status == 401:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * size})
    del receive


@contextmanager
def serving(**limits: Any) -> Iterator[str]:
    """A server in a thread; its URL."""
    settings: dict[str, Any] = {"most": 50, "most_of_address": 50, "header_seconds": 0.5, "idle_seconds": 1.0}
    protocol = type("Protocol", (LimitedProtocol,), {"guard": ConnectionGuard(**(settings | limits))})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False, timeout_keep_alive=60)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.force_exit = server.should_exit = True
            thread.join()


@pytest.fixture
def connect() -> Iterator[Callable[..., socket.socket]]:
    with ExitStack() as stack:

        def made(url: str, sent: bytes = b"") -> socket.socket:
            host, port = url.removeprefix("http://").split(":")
            opened = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            opened.sendall(sent)
            return opened

        yield made


def is_closed(opened: socket.socket, seconds: float) -> bool:
    opened.settimeout(seconds)
    try:
        return opened.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def counted(reason: str) -> float:
    return float(CLOSED_CONNECTIONS.labels(reason)._value.get())


def test_silent_half_sent_and_idle_connections_are_closed(connect: Callable[..., socket.socket], caplog: pytest.LogCaptureFixture) -> None:
    with serving() as url, caplog.at_level("WARNING", "balancer.service"):
        before = counted("header_timeout")
        silent, half, blank, idle = (
            connect(url),
            connect(url, HALF),
            connect(url, b"\r\n"),
            connect(url, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
        )
        assert idle.recv(1000).startswith(b"HTTP/1.1 200")
        slow = connect(url, b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        for _ in range(4):  # what trickles in gets no more time
            time.sleep(0.1)
            half.sendall(b"a")
            blank.sendall(b"\r\n")
        assert all(is_closed(each, 2) for each in (silent, half, blank, idle))
        assert slow.recv(1000).startswith(b"HTTP/1.1 200"), "a request that runs is not idle"
        assert counted("header_timeout") - before == 3
        time.sleep(1.2)
        assert sum(getattr(record, "fields", {}).get("header_timeout", 0) for record in caplog.records) == 3


@pytest.mark.parametrize("limits", [{"most": 5}, {"most_of_address": 5}])
def test_idle_connections_keep_nobody_out(connect: Callable[..., socket.socket], limits: dict[str, int]) -> None:
    with serving(header_seconds=60.0, **limits) as url:
        waiting = [connect(url, HALF if number % 2 else b"") for number in range(40)]
        assert httpx.get(url).status_code == 200
        assert sum(not is_closed(each, 0.05) for each in waiting) == 4
        assert counted("limit_total") + counted("limit_address") >= 36


def test_where_all_connections_are_busy_a_new_one_is_refused(connect: Callable[..., socket.socket]) -> None:
    with serving(most=3) as url:
        busy = [connect(url, b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n") for _ in range(3)]
        time.sleep(0.3)
        refused = connect(url)
        answer = refused.recv(1000)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after" in answer
        assert b'"error"' in answer
        assert is_closed(refused, 1)
        assert all(each.recv(1000).startswith(b"HTTP/1.1 200") for each in busy)
        assert httpx.get(url).status_code == 200


def test_an_answer_before_the_body_is_delivered_though_the_body_is_thrown_away() -> None:
    with serving() as url:
        for _ in range(10):
            answer = httpx.post(url, content=b"x" * 7_900_000, timeout=20)
            assert answer.status_code == 401
        with serving(header_seconds=5.0) as other:
            assert httpx.get(other).status_code == 200


def test_a_body_that_never_ends_is_cut_off(connect: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.3)
    with serving() as url:
        endless = connect(url, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 999999999\r\n\r\n")
        with pytest.raises(OSError, match=r"."):
            for _ in range(200):
                endless.sendall(b"x" * 10_000)
                time.sleep(0.02)


def test_headers_without_an_end_are_refused(connect: Callable[..., socket.socket]) -> None:
    with serving(header_seconds=60.0) as url:
        opened = connect(url, HALF)
        with pytest.raises(OSError, match=r"."):
            for _ in range(1000):
                opened.sendall(b"a" * 10_000)
                time.sleep(0.001)
        assert counted("headers_too_large") >= 1
        assert httpx.get(url).status_code == 200


def test_a_client_that_does_not_read_its_answer_is_cut_off(connect: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.5)
    with serving() as url:
        before = counted("not_read")
        connect(url, b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        until = time.monotonic() + 5
        while counted("not_read") == before and time.monotonic() < until:
            time.sleep(0.05)
        assert counted("not_read") == before + 1


def test_at_the_limit_of_open_files_the_log_says_so_and_room_is_made(
    connect: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = threading.Event()

    def dup(descriptor: int) -> int:
        if full.is_set():
            raise OSError(24, "Too many open files")
        return real(descriptor)

    real = os.dup
    monkeypatch.setattr(connections.os, "dup", dup)
    with serving(header_seconds=60.0) as url, caplog.at_level("ERROR", "balancer.service"):
        waiting = [connect(url) for _ in range(5)]
        full.set()
        time.sleep(0.8)
        full.clear()
        assert any("open files" in record.getMessage() for record in caplog.records)
        assert any(is_closed(each, 0.1) for each in waiting)
        assert httpx.get(url).status_code == 200


def test_the_limit_of_connections_is_below_that_of_open_files(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(file_limit, "raise_file_limit", lambda: 500)
    allowed = file_limit.connections_allowed(0)
    assert 200 < allowed < 500
    assert file_limit.connections_allowed(20) == 20
    with caplog.at_level("WARNING", "balancer.service"):
        assert file_limit.connections_allowed(10_000) <= allowed + 5
    assert "more than the limit of open files" in caplog.text


def test_the_soft_limit_of_open_files_is_raised() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        assert file_limit.raise_file_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
