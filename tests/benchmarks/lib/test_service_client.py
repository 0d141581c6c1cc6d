"""The clients of the benchmark of the service, against a small server."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.lib.service import START, details
from benchmarks.lib.service_client import Bodies, Connection, content_length, flood, load, request_bytes
from benchmarks.lib.service_watch import Watch


class Handler(BaseHTTPRequestHandler):
    """Answers with what it got; does not answer on /hang, and closes on /close."""

    protocol_version = "HTTP/1.1"
    hang = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/hang":
            self.hang.wait(10)
        if self.path in ("/hang", "/close"):
            self.close_connection = True
            return
        self.answer(json.dumps({"path": self.path, "key": self.headers["authorization"], "bytes": len(body)}).encode())

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(b'{"model": null}', 200 if self.path == "/healthz" else 503)

    def answer(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) or 7))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Handler.hang.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    Handler.hang.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_connection_sends_one_request_after_another(port: int) -> None:
    with Connection(port, "bk_1") as client:
        assert client.request("HEAD", "/x") == (200, b"")
        assert client.post("/x", {"a": 1}) == (200, {"path": "/x", "key": "Bearer bk_1", "bytes": 8})
        assert client.get("/readyz") == (503, {"model": None})
        with pytest.raises(ConnectionError):
            client.request("POST", "/close")
        assert client.post("/y", {})[1]["path"] == "/y"  # it is opened again


def test_a_flood_says_how_every_request_ended(port: int) -> None:
    large = bytes(3_000_000)
    paths = {"/x": b"", "/large": large, "/close": b"", "/hang": b""}
    answers = flood(port, [*(request_bytes("POST", path, None, body) for path, body in paths.items()), b""], 2.0)
    assert [each.status for each in answers] == ["200", "200", "closed", "unanswered", "unanswered"]
    assert json.loads(answers[1].content)["bytes"] == len(large)
    assert answers[0].seconds < answers[3].seconds == 2.0


def test_the_connections_of_a_flood_can_be_opened_one_after_another(port: int) -> None:
    answers = flood(port, [request_bytes("POST", "/x", None, b"")] * 10, 5.0, every=0.02)
    assert {each.status for each in answers} == {"200"}
    assert max(each.seconds for each in answers) >= 0.18


def test_many_clients_send_transactions(port: int) -> None:
    found = load(port, "bk_1", Bodies(details, START), clients=3, rows=2, seconds=0.3)
    assert found["transactions"] >= 6
    assert found["ms_p50"] <= found["ms_p99"]


def test_bodies_have_cards_of_their_own_and_rising_times() -> None:
    bodies = Bodies(details, START, cards=2)
    rows = [row for client in (0, 1, 0) for row in json.loads(bodies.make(client, 3))["transactions"]]
    assert len({row["transaction_id"] for row in rows}) == len(rows) == bodies.made
    assert {row["card_id"] for row in rows} == {"0-0", "0-1", "1-0", "1-1"}
    times = [row["time"] for row in rows]
    assert times == sorted(times)
    assert set(rows[0]) == {"transaction_id", "card_id", "time", *details(random.Random(0))}


def test_the_length_of_an_answer() -> None:
    assert content_length(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nx: 1") == 12
    assert content_length(b"HTTP/1.1 204 No Content") == 0


def test_a_watch_asks_again_and_again_and_reads_the_memory(port: int) -> None:
    watch = Watch(port, [os.getpid()])
    time.sleep(0.3)
    kept = bytearray(b"x" * 30_000_000)
    time.sleep(0.3)
    del kept
    found = watch.stop()
    assert found["healthz_requests"] > 3
    assert found["healthz_failures"] == 0
    assert 0 < found["healthz_ms_p99"] <= found["healthz_ms_most"]
    assert 20 < found["memory_growth_mb"] < 1000
