"""Sequences of requests, made from the OpenAPI document: in whatever order they are sent, none fails.

`BALANCER_FUZZ_EXAMPLES` sets the number of sequences, 20 by default.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings

from balancer.serving.config import ServeConfig
from balancer.serving.http.app import create_app
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database

EXAMPLES = int(os.environ.get("BALANCER_FUZZ_EXAMPLES", "20"))
STEPS = 12
TEXTS = ["1", "c", "Caf\u00e9", "cafe\u0301 ", "m+\\N", "%00", "a/b", " ", "\U0001f600"]
TIMES = ["2026-01-05T10:00:00", "2026-01-05T10:00:01", "2026-02-05", 1767607200, 1.7e9, "1700000000", "x"]
_ROW = {
    "transaction_id": [*(f"t{number}" for number in range(6)), 7, 7.0, None],
    "card_id": [*TEXTS, 3, 3.0, None],
    "time": TIMES,
    "amount": [0, 5.5, -3.25, 1e15, 1e16, "12.50", "1,5", None],
    "merchant_id": [*TEXTS, True, None],
    "merchant_category": ["grocery", "never seen", None],
    "channel": ["chip", 1, None],
    "region": ["r", ""],
    "distance_km": [0.0, 2.5, 1e38, None, "NA"],
}
_TRANSACTION = "$response.body#/decisions/0/id"
_CARD = "$request.body#/transactions/0/card_id"
_LINKS: dict[tuple[str, str, str], list[tuple[str, str, dict[str, str], Any]]] = {
    ("/v1/score", "post", "200"): [
        ("/v1/entities/{entity}", "get", {"entity": _CARD}, None),
        ("/v1/entities/{entity}", "delete", {"entity": _CARD}, None),
        ("/v1/decisions/{transaction}", "get", {"transaction": _TRANSACTION}, None),
        ("/v1/transactions/{transaction}", "patch", {"transaction": _TRANSACTION}, {"amount": 7.5}),
        ("/v1/transactions/{transaction}", "delete", {"transaction": _TRANSACTION}, None),
        ("/v1/labels", "post", {}, {"labels": [{"id": _TRANSACTION, "label": "1"}]}),
    ],
    ("/v1/sessions", "post", "201"): [
        ("/v1/sessions/{session}", "get", {"session": "$response.body#/id"}, None),
        ("/v1/sessions/{session}", "delete", {"session": "$response.body#/id"}, None),
        ("/v1/sessions/{session}/epochs", "post", {"session": "$response.body#/id"}, None),
    ],
}
"""What can follow a request: path, method, parameters and body of the next one."""
_SCORES = {"labels": ["a", "a", "b"], "scores": [0.1, 0.4, 0.7]}
_HISTOGRAM = {"edges": [0.0, 0.5, 1.0], "counts": {"a": [5, 1], "b": [1, 1]}}
_BODIES: dict[tuple[str, str], list[Any]] = {
    ("/v1/transactions/{transaction}", "patch"): [
        {"amount": 7.5},
        {"amount": 1e16},
        {"merchant_id": None, "distance_km": None},
        {"x": 1},
        {},
    ],
    ("/v1/sessions", "post"): [{"classes": {"a": 100, "b": 2}, "epochs": epochs, "policy": "rule"} for epochs in (1, 2, 3)]
    + [{"classes": {"a": 1, "b": 10**12}, "epochs": 100_000}, {"classes": {"a": 1}, "epochs": 1}],
    ("/v1/sessions/{session}/epochs", "post"): [
        {"epoch": epoch, "reward": reward} for epoch in (1, 2, 3) for reward in (_SCORES, _HISTOGRAM, {**_SCORES, "scores": [0, 0, 0]})
    ],
}
"""Bodies that are tried, where random ones would seldom be accepted."""


@pytest.fixture
def app(database: Database, tiny_run: Path) -> Iterator[FastAPI]:
    url = database.engine.url.render_as_string(hide_password=False)
    app = create_app(ServeConfig(run=tiny_run, database=url, rate=0.0, max_rows=5))
    with TestClient(app):
        yield app


def _linked(document: dict[str, Any]) -> None:
    """Add links, and values that a transaction may have, to the OpenAPI document."""
    paths = document["paths"]
    document.pop("security", None)
    for path in paths.values():
        for operation in path.values():
            operation.pop("security", None)  # every request has the key of its sequence
    for (path, method, status), links in _LINKS.items():
        found = paths[path][method]["responses"][status].setdefault("links", {})
        for place, (target, verb, parameters, body) in enumerate(links):
            found[f"to{place}"] = {"operationId": paths[target][verb]["operationId"], "parameters": parameters}
            if body is not None:
                found[f"to{place}"]["requestBody"] = body
    _body(document, "/v1/score", "post")["properties"]["transactions"]["items"] = {
        "type": "object",
        "properties": {name: {"enum": values} for name, values in _ROW.items()},
        "required": list(_ROW),
        "additionalProperties": False,
    }
    for (path, method), values in _BODIES.items():
        schema = _body(document, path, method)
        schema.clear()
        schema["enum"] = values


def _body(document: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    schema: dict[str, Any] = document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
    return schema


@pytest.mark.parametrize("part", ["score|labels|entities|decisions|transactions", "sessions"])
def test_no_sequence_of_requests_fails(app: FastAPI, database: Database, part: str) -> None:
    answered: dict[str, set[int]] = {}
    numbers = count()
    _linked(app.openapi())  # the application keeps the document, and answers with it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of schemathesis
        schema = schemathesis.openapi.from_asgi("/openapi.json", app).include(path_regex=part)
        schema.config.generation.update(modes=[schemathesis.GenerationMode.POSITIVE])

        class Client(schema.as_state_machine()):  # type: ignore[misc]
            def setup(self) -> None:
                # A tenant of its own, so that a sequence has the same answers whatever was sent before.
                self.key = keys.create(database, f"tenant-{next(numbers)}", keys.SCOPES)[1]

            def get_call_kwargs(self, case: Any) -> dict[str, Any]:
                return {"headers": {"Host": "localhost", "Authorization": f"Bearer {self.key}"}}

            def validate_response(self, response: Any, case: Any, additional_checks: Any = None, **_: Any) -> None:
                answered.setdefault(f"{case.method} {case.path}", set()).add(response.status_code)
                assert response.status_code < 500, (case.method, case.path, case.body, response.text)

        Client.run(
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize="BALANCER_FUZZ_EXAMPLES" not in os.environ,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
        )
    links = [(key, link) for key, each in _LINKS.items() for link in each if part.startswith(key[0][4:9])]
    assert links
    for (path, method, status), (target, verb, *_) in links:
        assert int(status) in answered[f"{method.upper()} {path}"]
        assert f"{verb.upper()} {target}" in answered
