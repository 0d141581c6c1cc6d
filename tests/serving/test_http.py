"""The service over HTTP: keys, scopes, tenants, limits, sessions, the client, OpenAPI fuzzing, and a killed
worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from balancer.cli import main
from balancer.errors import InputError
from balancer.integrations.remote import RemoteSampler, ServiceAwayWarning
from balancer.sampling.core import SamplerCore
from balancer.sampling.torch_sampler import AdaptiveSampler
from balancer.serving.config import ServeConfig
from balancer.serving.http import auth, schemas
from balancer.serving.http.app import create_app
from balancer.serving.sessions.schemas import EpochReport, SessionRequest
from balancer.serving.sessions.store import Sessions
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import sessions as session_table
from benchmarks.lib.ports import free_port
from tests.serving.test_scoring import card
from tests.serving.tools import opened

CLASSES = {"ok": 990, "fraud": 10}
SCORES = {"labels": ["ok", "ok", "fraud"], "scores": [0.1, 0.4, 0.7]}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = opened(f"sqlite:///{tmp_path / 'service.db'}")
    yield database
    database.close()


@pytest.fixture
def app(database: Database, tiny_run: Path) -> FastAPI:
    return create_app(ServeConfig(run=tiny_run, database=database.shown, max_body=20_000, max_rows=5))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def key_of(database: Database) -> Callable[..., dict[str, str]]:
    """Headers with a key."""

    def made(tenant: str, *scopes: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {keys.create(database, tenant, scopes or keys.SCOPES)[1]}"}

    return made


def test_a_transaction_is_scored_and_shown(client: TestClient) -> None:
    answer = client.post("/v1/score", json={"transactions": [card()], "explain": 2})
    assert answer.status_code == 200, answer.text
    decision = answer.json()["decisions"][0]
    schemas.ScoreAnswer.model_validate(answer.json())
    assert set(decision) == {"id", "score", "decision", "class", "threshold", "model", "late_by", "repeated", "weighed_most"}
    assert client.get("/v1/entities/c").json()["latest"][0]["id"] == "a"
    assert client.post("/v1/labels", json={"labels": [{"id": "a", "label": "1"}, {"id": "b", "label": "0"}]}).json() == {
        "stored": 1,
        "unknown": ["b"],
    }
    assert client.get("/v1/entities/c").json()["latest"][0]["label"] == "1"
    assert client.delete("/v1/entities/c").status_code == 204
    assert client.get("/v1/entities/c").status_code == 404
    metrics = client.get("/metrics").text
    assert "balancer_transactions_total" in metrics
    assert 'balancer_request_seconds_count{route="/v1/score"}' in metrics


def test_every_route_refuses_a_missing_wrong_or_under_scoped_key(
    client: TestClient, database: Database, key_of: Callable[..., dict[str, str]]
) -> None:
    scoped = {scope: key_of("t", scope) for scope in keys.SCOPES}
    routes = client.get("/openapi.json").json()["paths"]
    tried = 0
    for path, methods in routes.items():
        for method in methods:
            url = re.sub(r"\{\w+\}", "c", path)
            bodies: dict[str, Any] = {
                "/v1/score": {"transactions": [card()]},
                "/v1/labels": {"labels": [{"id": "a", "label": "1"}]},
                "/v1/models": {"name": "x"},
                "/v1/sessions": {"classes": CLASSES, "epochs": 2},
                "/v1/sessions/{session}/epochs": {"epoch": 1, "reward": SCORES},
            }
            options = {"json": bodies[path]} if method == "post" and path in bodies else {}
            codes = {scope: client.request(method, url, headers=headers, **options).status_code for scope, headers in scoped.items()}
            if path in ("/healthz", "/readyz"):
                assert set(codes.values()) == {200}
                continue
            assert client.request(method, url, **options).status_code == 401, (method, path)
            wrong = scoped["admin"]["Authorization"][:-1] + ("A" if not scoped["admin"]["Authorization"].endswith("A") else "B")
            for header in (wrong, "Bearer x", "Basic YTpi"):
                assert client.request(method, url, headers={"Authorization": header}, **options).status_code == 401, (method, path)
            assert sorted(codes.values()).count(403) == len(keys.SCOPES) - 1, (method, path, codes)
            tried += 1
    assert tried == sum(map(len, routes.values())) - 2 >= 14
    key = keys.list_keys(database)[0]
    keys.revoke(database, key.id)
    time.sleep(auth.REMEMBERED_SECONDS)
    assert client.post("/v1/score", json={"transactions": [card()]}, headers=scoped["score"]).status_code == 401


def test_tenants_see_nothing_of_each_other(client: TestClient, key_of: Callable[..., dict[str, str]]) -> None:
    one, two = key_of("one"), key_of("two")
    session = client.post("/v1/sessions", json={"classes": CLASSES, "epochs": 2}, headers=one).json()["id"]
    client.post("/v1/score", json={"transactions": [card()]}, headers=one)
    for method, path in (
        ("get", f"/v1/sessions/{session}"),
        ("delete", f"/v1/sessions/{session}"),
        ("get", "/v1/entities/c"),
        ("delete", "/v1/entities/c"),
    ):
        assert client.request(method, path, headers=two).status_code == 404
    report = {"epoch": 1, "reward": SCORES}
    assert client.post(f"/v1/sessions/{session}/epochs", json=report, headers=two).status_code == 404
    assert client.get("/v1/sessions", headers=two).json()["sessions"] == []
    assert client.get(f"/v1/sessions?after={session}", headers=two).status_code == 404
    assert client.post("/v1/labels", json={"labels": [{"id": "a", "label": "1"}]}, headers=two).json()["unknown"] == ["a"]
    assert not client.post("/v1/score", json={"transactions": [card()]}, headers=two).json()["decisions"][0]["repeated"]
    assert len(client.get("/v1/sessions", headers=one).json()["sessions"]) == 1


@pytest.mark.parametrize(
    ("options", "status", "error"),
    [
        ({"json": {"transactions": [card()] * 6}}, 413, "6 rows in one request, but at most 5"),
        ({"content": b'{"transactions": [' + b"{}," * 1_000_000 + b"{}]}"}, 413, "more than 20000 bytes"),
        ({"content": b"\xff\xfe{"}, 400, ""),
        ({"content": b'{"transactions": [{"amount": NaN}]}'}, 422, "'amount' is NaN, which JSON does not have"),
        ({"content": b"{"}, 422, ""),
        ({"json": {"transactions": []}}, 422, "transactions"),
        ({"json": {"transactions": [card()], "explian": 1}}, 422, "explian"),
        ({"json": {"transactions": [card()]}, "params": {"api_key": "x"}}, 400, "a key in the URL"),
        ({"json": {"transactions": [card()]}, "headers": {"Host": "evil.example"}}, 421, "loopback names only"),
    ],
)
def test_unusable_requests_are_refused_with_a_message(client: TestClient, options: dict[str, Any], status: int, error: str) -> None:
    answer = client.post("/v1/score", **({"headers": {"Content-Type": "application/json"}} | options))
    assert answer.status_code == status, answer.text
    assert error in answer.json()["error"]


@pytest.mark.usefixtures("database")
def test_too_many_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(auth, "time", SimpleNamespace(monotonic=lambda: now))
    config = ServeConfig(database=f"sqlite:///{tmp_path / 'service.db'}", rate=2.0)
    with TestClient(create_app(config)) as client:
        codes = [client.get("/v1/sessions").status_code for _ in range(5)]
        assert codes == [200, 200, 429, 429, 429]
        assert client.post("/v1/score", json={"transactions": [card()]}).status_code == 429
        now += 1.1
        assert client.post("/v1/score", json={"transactions": [card()]}).json()["error"].startswith("no model is in service")


def test_no_log_line_has_content_of_a_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "balancer.service"):
        client.post("/v1/score", json={"transactions": [card(card_id="4111111111111111")]})
        client.get("/v1/entities/4111111111111111")
    lines = [
        json.dumps({"m": record.getMessage(), **getattr(record, "fields", {})})
        for record in caplog.records
        if record.name == "balancer.service"
    ]
    assert len(lines) == 2
    assert all('"route": "/v1/' in line and '"status": 200' in line for line in lines)
    assert "4111" not in "".join(lines)


def test_sessions_answer_by_number(client: TestClient, tmp_path: Path) -> None:
    begun = client.post("/v1/sessions", json={"classes": CLASSES, "epochs": 3, "policy": "auto"})
    assert begun.status_code == 201
    session = begun.json()["id"]
    assert begun.json()["classes"] == ["fraud", "ok"]
    report = {"epoch": 1, "reward": SCORES, "train": SCORES}
    first = client.post(f"/v1/sessions/{session}/epochs", json=report)
    assert first.status_code == 200
    assert client.post(f"/v1/sessions/{session}/epochs", json=report).json() == first.json()
    for changed, error in (
        ({"reward": {**SCORES, "scores": [0, 0, 0]}}, "with other scores"),
        ({"epoch": 3}, "the next epoch is 2"),
        ({"epoch": 4}, "has 3 epochs"),
    ):
        answer = client.post(f"/v1/sessions/{session}/epochs", json=report | changed)
        assert answer.status_code == 409
        assert error in answer.json()["error"]
    # Another process, the same file: nothing is kept in memory.
    with TestClient(create_app(ServeConfig(database=f"sqlite:///{tmp_path / 'service.db'}"))) as restarted:
        assert restarted.get(f"/v1/sessions/{session}").json()["weights"] == first.json()["weights"]
        assert restarted.post(f"/v1/sessions/{session}/epochs", json=report | {"epoch": 2}).json()["epoch"] == 2
    others = [client.post("/v1/sessions", json={"classes": CLASSES, "epochs": 1}).json()["id"] for _ in range(4)]
    page = client.get("/v1/sessions?limit=2").json()
    rest = client.get("/v1/sessions", params={"limit": 9, "after": page["next"]}).json()
    assert [each["id"] for each in page["sessions"] + rest["sessions"]] == [session, *others]
    assert rest["next"] is None
    assert client.delete(f"/v1/sessions/{session}").status_code == 204
    assert client.get(f"/v1/sessions/{session}").status_code == 404


@pytest.mark.parametrize(
    ("request_", "report", "error"),
    [
        ({"policy": "/etc"}, {}, "policy: the service has no policy '/etc'"),
        ({"policy": "constant:share=7"}, {}, "share"),
        ({"classes": {"ok": 5}}, {}, "classes"),
        ({"reward_classes": {"frod": 5}}, {}, "unknown class 'frod'; did you mean 'fraud'"),
        ({}, {"reward": {"labels": ["ok", "no"], "scores": [0, 1]}}, "unknown class 'no'"),
        ({}, {"reward": {"labels": ["ok", "ok"], "scores": [0, 1]}}, "one class is not enough"),
        ({}, {"reward": {"labels": ["ok", "fraud"], "scores": [0]}}, "reward.scores"),
        ({}, {"reward": {"edges": [0, 0.5], "counts": {"ok": [1], "fraud": [1]}}}, "increase from 0 to 1"),
        ({}, {"reward": {"edges": [0, 0.5, 1], "counts": {"ok": [1], "fraud": [1, 1]}}}, "1 counts for 2 bins"),
    ],
)
def test_bad_sessions_are_refused_with_a_message(client: TestClient, request_: dict[str, Any], report: dict[str, Any], error: str) -> None:
    answer = client.post("/v1/sessions", json={"classes": CLASSES, "epochs": 2} | request_)
    if report:
        answer = client.post(f"/v1/sessions/{answer.json()['id']}/epochs", json={"epoch": 1} | report)
    assert answer.status_code == 422
    assert error in answer.json()["error"]


@pytest.mark.parametrize("policy", ["auto", "rule"])
def test_histograms_give_the_same_weights_as_scores(database: Database, policy: str) -> None:
    rng = np.random.default_rng(0)
    label = np.arange(5000) % 100 == 0
    score = np.clip(rng.beta(1, 12, 5000) + 0.4 * label, 0, 1)
    error, edges = np.where(label, 1 - score, score), np.linspace(0, 1, 1001)
    counts = {name: np.histogram(error[label == code], edges)[0].tolist() for code, name in enumerate(("ok", "fraud"))}
    rows = {"labels": ["fraud" if is_fraud else "ok" for is_fraud in label], "scores": score.tolist()}
    sessions, found = Sessions(database), []
    for reward in (rows, {"edges": edges.tolist(), "counts": counts}):
        request = SessionRequest(classes={"ok": 19_800, "fraud": 200}, epochs=4, policy=policy)
        session = sessions.create("t", request).id
        found.append(sessions.report("t", session, EpochReport.model_validate({"epoch": 1, "reward": reward})))
    assert found[0].weights["fraud"] == pytest.approx(found[1].weights["fraud"], abs=0.02)
    assert found[0].metrics["average_precision"] == pytest.approx(found[1].metrics["average_precision"], abs=0.02)


def test_columns_of_scores_have_the_order_of_the_classes(database: Database) -> None:
    counts = {"b": 970, "c": 10, "a": 20}
    labels = [name for name, count in counts.items() for _ in range(count)]
    scores = np.random.default_rng(0).dirichlet([1, 9, 1], len(labels))  # columns a, b, c
    core = SamplerCore(labels, policy="rule", epochs=3)
    core.update(labels, scores)
    sessions, report = Sessions(database), {"epoch": 1, "reward": {"labels": labels, "scores": scores.tolist()}}
    begun = sessions.create("t", SessionRequest(classes=counts, epochs=3, policy="rule"))
    assert begun.classes == core.classes_ == ["a", "b", "c"]
    answer = sessions.report("t", begun.id, EpochReport.model_validate(report))
    assert list(answer.weights) == core.classes_
    assert list(answer.weights.values()) == core.weights.share.tolist()
    # A session that version 0.1 began keeps its order, commonest class first.
    old = sessions.create("t", SessionRequest(classes=counts, epochs=3, policy="rule")).id
    request = SessionRequest(classes=counts, epochs=3, policy="rule").model_dump()
    database.write(lambda connection: connection.execute(update(session_table).where(session_table.c.id == old).values(request=request)))
    assert sessions.get("t", old).classes == ["b", "a", "c"]
    report["reward"] = {"labels": labels, "scores": scores[:, [1, 0, 2]].tolist()}
    assert sessions.report("t", old, EpochReport.model_validate(report)).weights == answer.weights


class Loop(httpx.BaseTransport):
    """Passes requests directly to the application; can simulate that the service is unavailable."""

    def __init__(self, client: TestClient) -> None:
        self.client, self.down = client, False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("down")
        headers = {name: value for name, value in request.headers.items() if name in ("content-type", "authorization")}
        answer = self.client.request(request.method, request.url.path, content=request.read(), headers=headers)
        return httpx.Response(answer.status_code, content=answer.content)


@pytest.mark.parametrize("policy", ["auto", "rule"])
def test_the_remote_sampler_equals_the_local_one_and_continues_without_the_service(client: TestClient, policy: str) -> None:
    labels, rng, loop = ["ok"] * 990 + ["fraud"] * 10, np.random.default_rng(0), Loop(client)
    local = AdaptiveSampler(labels, policy=policy, epochs=6, seed=3)
    remote = RemoteSampler("http://service", labels, policy=policy, epochs=6, seed=3, transport=loop)
    assert remote.policy_name == policy
    assert list(local) == list(remote)
    truth, rows = ["ok"] * 50 + ["fraud"] * 5, np.arange(980, 1000)
    for epoch in range(5):
        scores = {"y_true": truth, "y_score": rng.random(55), "rows": rows, "row_score": rng.random(20)}
        before = remote.weights.share.tolist()
        loop.down = epoch in (1, 2)
        local.update(**scores)
        if loop.down:
            with pytest.warns(ServiceAwayWarning, match="the last weights are kept"):
                remote.update(**scores)
            assert remote.away
            assert remote.weights.share.tolist() == before
            continue
        remote.update(**scores)
        assert not remote.away
        assert remote.weights.share.tolist() == local.weights.share.tolist()
        assert (remote.weights.hardness, remote.weights.floor) == (local.weights.hardness, local.weights.floor)
        assert remote.metrics == local.metrics
    resumed = RemoteSampler("http://service", labels, policy=policy, epochs=6, seed=3, transport=loop)
    resumed.load_state_dict(remote.state_dict())
    assert resumed.session == remote.session
    assert list(resumed) == list(remote)


@pytest.mark.parametrize("from_the_start", [True, False])
def test_the_remote_sampler_compensates_as_the_local_one(client: TestClient, from_the_start: bool) -> None:
    labels, rng, loop = ["ok"] * 990 + ["fraud"] * 10, np.random.default_rng(0), Loop(client)
    options: dict[str, Any] = {"epochs": 4, "seed": 3, "compensated": True if from_the_start else None}
    local = AdaptiveSampler(labels, **options)
    remote = RemoteSampler("http://service", labels, transport=loop, **options)
    rows, truth = np.arange(980, 1000), ["ok"] * 50 + ["fraud"] * 5
    for epoch in range(3):
        assert list(local) == list(remote)
        for sampler in (local, remote):
            sampler.use_compensation()  # what the first loss does
        np.testing.assert_array_equal(remote.class_weight, local.class_weight)
        np.testing.assert_array_equal(remote.sample_weight(rows), local.sample_weight(rows))
        assert remote.weights.compensated == (from_the_start or epoch > 0)
        scores = {"y_true": truth, "y_score": rng.random(55), "rows": rows, "row_score": rng.random(20)}
        local.update(**scores)
        remote.update(**scores)
        assert remote.weights.to_dict() == local.weights.to_dict()
        assert (remote.best_epoch, remote.improved) == (local.best_epoch, local.improved)
    assert client.get(f"/v1/sessions/{remote.session}").json()["class_importance"] == remote.weights.class_importance


def test_a_service_that_was_never_there_leaves_a_constant(client: TestClient) -> None:
    loop = Loop(client)
    loop.down = True
    with pytest.warns(ServiceAwayWarning):
        sampler = RemoteSampler("http://service", ["ok"] * 90 + ["fraud"] * 10, epochs=2, transport=loop)
    assert sampler.away
    assert len(list(sampler)) == 100
    with pytest.raises(InputError, match="policy: the service has no policy '/tmp'"):
        loop.down = False
        RemoteSampler("http://service", ["ok"] * 90 + ["fraud"] * 10, epochs=2, policy="/tmp", transport=loop)


def test_schemathesis_finds_no_failure_of_the_service(app: FastAPI) -> None:
    from hypothesis import HealthCheck, given, settings

    with TestClient(app), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of schemathesis
        schema = schemathesis.openapi.from_asgi("/openapi.json", app)

        operations = 0
        for operation in schema.get_all_operations():
            strategy = operation.ok().as_strategy()

            def one(case: Any) -> None:
                answer = case.call(headers={"Host": "localhost"})
                assert answer.status_code < 500, (case.method, case.path, answer.text)

            given(strategy)(
                settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)(one)
            )()
            operations += 1
        assert operations >= 13


def served(arguments: list[str], folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a service as a separate process, and return it with its URL when it answers."""
    port = free_port()
    command = [sys.executable, "-m", "balancer", "serve", "--port", str(port), *arguments]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stderr=log, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    for _ in range(3000):  # a slow machine takes long to import everything
        try:
            if httpx.get(f"{url}/readyz", timeout=10).status_code == 200:
                return process, url
        except httpx.TransportError:
            pass
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.1)
    raise AssertionError((folder / "log").read_text())


def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path: Path, tiny_run: Path) -> None:
    process, url = served(["--run", str(tiny_run), "--database", f"sqlite:///{tmp_path / 'k.db'}"], tmp_path)
    try:
        with httpx.Client(base_url=url, timeout=300) as client:
            accepted = []
            for number in range(30):
                raw = card(transaction_id=f"k{number}", time=f"2026-01-05T10:{number:02d}:00")
                if number == 12:
                    worker = psutil.Process(process.pid).children()[-1]
                    worker.send_signal(signal.SIGKILL)
                for attempt in range(1200):
                    try:
                        answer = client.post("/v1/score", json={"transactions": [raw]})
                        break
                    except httpx.TransportError:
                        assert attempt < 1199
                        time.sleep(0.25)
                assert answer.status_code == 200
                accepted.append(answer.json()["decisions"][0])
            stored = client.get("/v1/entities/c").json()
            assert stored["transactions"] == 30
            assert client.get("/metrics").text.count("balancer_transactions_total 3") == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
    finally:
        process.kill()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert any(line["message"] == "served" and line["route"] == "/v1/score" for line in lines)


def test_listening_elsewhere_needs_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = f"sqlite:///{tmp_path / 'service.db'}"
    assert main(["serve", "--host", "0.0.0.0", "--database", database]) == 2
    assert "there is no API key yet" in capsys.readouterr().err
    assert main(["serve", "--database", "mysql://x/y"]) == 2
    assert main(["serve", "--database", "sqlite://"]) == 2
    assert main(["serve", "--database", f"sqlite:///{tmp_path / 'nowhere' / 'x.db'}"]) == 2
    assert main(["serve", "--database", database, "--run", str(tmp_path)]) == 2
    assert main(["serve", "--database", database, "--tls-key", str(tmp_path)]) == 2
    assert "together" in capsys.readouterr().err


def test_keys_are_made_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = ["--database", f"sqlite:///{tmp_path / 'service.db'}"]
    assert main(["keys", "create", "--tenant", "bank", "--scopes", "score,admin", *database, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert main(["keys", "list", *database]) == 0
    shown = capsys.readouterr().out
    assert made["id"] in shown
    assert made["key"] not in shown
    assert made["key"].split("_", 2)[2].encode() not in (tmp_path / "service.db").read_bytes()
    assert main(["keys", "revoke", made["id"], *database]) == 0
    assert main(["keys", "revoke", made["id"], *database]) == 2
    assert main(["keys", "create", "--tenant", "bank", "--scopes", "scores", *database]) == 2
    assert "did you mean 'score'" in capsys.readouterr().err
