"""Spans of requests: the trace of a client is continued, and without an endpoint nothing is imported."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import select

from balancer.serving import tracing
from balancer.serving.config import ServeConfig
from balancer.serving.http import app as application
from balancer.serving.http import telemetry as telemetries
from balancer.serving.http.telemetry import Telemetry, telemetry_of
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import decisions
from tests.serving.test_scoring import card
from tests.serving.tools import opened

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = opened(f"sqlite:///{tmp_path / 'service.db'}")
    yield database
    database.close()


@pytest.fixture
def config(database: Database, tiny_run: Path) -> ServeConfig:
    return ServeConfig(run=tiny_run, database=database.shown)


def test_the_trace_of_a_request_is_continued(
    config: ServeConfig, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(application, "telemetry_of", lambda: Telemetry(exporter))
    with TestClient(application.create_app(config)) as client:
        answer = client.post("/v1/score", json={"transactions": [card()]}, headers=PARENT)
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == TRACE
        other = client.get("/healthz").headers["x-request-id"]
        assert client.get("/v1/entities/nobody-5f1c").status_code == 404
    assert tracing.parents() == ()  # the service has ended
    spans = exporter.get_finished_spans()
    mine = {span.name: span for span in spans if span.context.trace_id == int(TRACE, 16)}
    assert set(mine) >= {"POST /v1/score", "queue", "step", "database write"}
    request = mine["POST /v1/score"]
    assert request.parent is not None and request.parent.span_id == int(SPAN, 16)
    assert dict(request.attributes or {}) == {"http.request.method": "POST", "http.route": "/v1/score", "http.response.status_code": 200}
    for name in ("queue", "step", "database write"):
        assert mine[name].parent.span_id == request.context.span_id
        assert request.start_time - 10**7 <= mine[name].start_time <= mine[name].end_time <= request.end_time + 10**7
    assert any(f"{span.context.trace_id:032x}" == other for span in spans)
    assert "nobody-5f1c" not in json.dumps([span.to_json() for span in spans])
    stored = database.read(lambda connection: connection.execute(select(decisions.c.request)).scalar_one())
    assert stored == TRACE
    assert any(getattr(record, "fields", {}).get("request") == TRACE for record in caplog.records) or not caplog.records


@pytest.mark.parametrize(
    "value", ["", "00-0-0-01", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE.upper()}-{SPAN}-01", "\xff"]
)
def test_a_wrong_trace_is_ignored(config: ServeConfig, value: str) -> None:
    with TestClient(application.create_app(config)) as client:
        assert client.get("/healthz", headers=PARENT).headers["x-request-id"] == TRACE  # also without telemetry
        number = client.get("/healthz", headers={"traceparent": value.encode("latin-1")}).headers["x-request-id"]
        assert len(number) == 32 and number != TRACE


def test_without_an_endpoint_nothing_is_imported(config: ServeConfig) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom balancer.serving.config import ServeConfig\n"
        "from balancer.serving.http.app import create_app\n"
        f"create_app(ServeConfig(run=Path({str(config.run)!r}), database={config.database!r}))\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert telemetry_of({}) is None
    assert telemetry_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}) is None


def test_without_the_extra_the_log_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(telemetries, "is_installed", lambda name: False)
    monkeypatch.setattr(telemetries.LOG, "warning", said.append)
    assert telemetry_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}) is None
    assert "balancer[telemetry]" in said[0]


def test_spans_are_exported_over_http(config: ServeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            received.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with TestClient(application.create_app(config)) as client:
            assert client.post("/v1/score", json={"transactions": [card()]}).status_code == 200
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert received == ["/v1/traces"]
