"""Addresses that no route has, methods that a route does not take, and parameters of queries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from balancer.serving.config import ServeConfig
from balancer.serving.http.app import create_app
from balancer.serving.storage.database import Database
from tests.serving.tools import opened


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Iterator[TestClient]:
    """One service for all tests; what they ask for is refused."""
    database: Database = opened(f"sqlite:///{tmp_path_factory.mktemp('addresses') / 'service.db'}")
    with TestClient(create_app(ServeConfig(run=tiny_run, database=database.shown))) as client:
        yield client
    database.close()


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/score", "/v1/entity/c", "/docs/files/none.js"])
def test_an_unknown_route_is_said_with_the_remedy(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.text) == (404, '{"error":"there is no such route; /docs lists all routes"}')


@pytest.mark.parametrize(
    ("method", "path", "methods"),
    [
        ("GET", "/v1/score", "POST"),
        ("PUT", "/v1/entities/c", "DELETE or GET"),
        ("POST", "/v1/transactions/t", "DELETE or PATCH"),
        ("DELETE", "/v1/sessions", "GET or POST"),
        ("PATCH", "/healthz", "GET"),
        ("ODD", "/v1/decisions", "GET"),
    ],
)
def test_a_wrong_method_is_said_with_those_of_the_route(client: TestClient, method: str, path: str, methods: str) -> None:
    answer = client.request(method, path)
    expected = f"the route does not take the method {method!r}; use {methods}"
    assert (answer.status_code, answer.json()) == (405, {"error": expected})
    assert answer.headers["allow"] == methods.replace(" or ", ", ")


def test_all_errors_have_one_spacing(client: TestClient) -> None:
    answers = [
        client.get("/v1/entities/none"),
        client.get("/v1/sessions?token=1"),
        client.post("/v1/score", content=b"{"),
        client.get("/x"),
    ]
    answers.append(client.get("/v1/sessions", headers={"Authorization": "Basic x"}))
    assert [answer.status_code for answer in answers] == [404, 400, 422, 404, 401]
    assert all(answer.text.startswith('{"error":"') for answer in answers)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/entities/c"),
        ("DELETE", "/v1/entities/c"),
        ("POST", "/v1/score"),
        ("POST", "/v1/labels"),
        ("GET", "/v1/decisions/t"),
        ("GET", "/v1/models/comparison"),
        ("GET", "/v1/sessions"),
        ("GET", "/v1/monitoring"),
        ("GET", "/metrics"),
    ],
)
def test_an_unknown_parameter_is_refused_on_every_route(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, f"{path}?limt=3")
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("unknown query parameter 'limt'; ")


def test_times_of_queries_are_written_in_one_way(client: TestClient) -> None:
    for path in ("/v1/decisions", "/v1/models/comparison"):
        for since in ("2026-05-31", "2026-05-31T13:45:00", "1780000000", "1780000000.5"):
            assert client.get(path, params={"since": since}).status_code in (200, 409), (path, since)
        for query in (
            "since=yesterday",
            "until=nan",
            "since=-1",
            "until=1969-12-31",
            "since=2026-06-02&until=2026-06-01",
            "since=2&until=1",
        ):
            assert client.get(f"{path}?{query}").status_code == 422, (path, query)
