"""The audit over HTTP: one transaction, pages, reasons later, corrections, reversals, actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, insert, update

from balancer.cli import main
from balancer.errors import InputError
from balancer.serving.audit.decisions import Decisions, Wanted
from balancer.serving.config import ServeConfig
from balancer.serving.http import audit_schemas
from balancer.serving.http.app import create_app
from balancer.serving.scoring.actions import Actions
from balancer.serving.storage import keys, tables
from balancer.serving.storage.database import Database
from tests.serving.test_scoring import card

Headers = dict[str, str]


@pytest.fixture
def client(database: Database, url: str, tiny_run: Path) -> Iterator[TestClient]:
    assert database.ready()
    with TestClient(create_app(ServeConfig(run=tiny_run, models=tiny_run.parent, database=url))) as client:
        yield client


@pytest.fixture
def key_of(database: Database) -> Callable[..., Headers]:
    def made(tenant: str, *scopes: str) -> Headers:
        return {"Authorization": f"Bearer {keys.create(database, tenant, scopes or keys.SCOPES)[1]}"}

    return made


def rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [card(transaction_id=f"t{place}", time=f"2026-01-05T{10 + place:02d}:00:00", **changes) for place in range(count)]


def score(client: TestClient, sent: list[dict[str, Any]], headers: Headers | None = None) -> list[dict[str, Any]]:
    answer = client.post("/v1/score", json={"transactions": sent}, headers=headers)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["decisions"]
    return found


def test_everything_that_was_decided_about_a_transaction(client: TestClient, database: Database, key_of: Callable[..., Headers]) -> None:
    own, other = key_of("bank"), key_of("else")
    before = datetime.now().astimezone()
    sent = client.post("/v1/score", json={"transactions": rows(3)}, headers=own)
    first = sent.json()["decisions"][1]
    assert client.get("/v1/decisions/t1").status_code == 401
    assert client.get("/v1/decisions/t1", headers=other).status_code == 404
    found = client.get("/v1/decisions/t1", headers=own).json()
    audit_schemas.Audit.model_validate(found)
    assert {name: found[name] for name in ("id", "score", "threshold", "decision", "class", "model")} == {
        name: first[name] for name in ("id", "score", "threshold", "decision", "class", "model")
    }
    assert found["request"] == sent.headers["x-request-id"]
    assert found["entity"] == "c"
    assert found["key"]
    assert len(found["digest"]) == 64
    assert found["action"] == ("review" if found["decision"] else "approve")
    received = datetime.fromisoformat(found["received"])
    assert abs((received - before).total_seconds()) < 60
    assert received.timestamp() == pytest.approx(found["received_seconds"], abs=0.001)
    assert (found["label"], found["labelled"], found["amendments"], found["challengers"], found["reversed"]) == (None, None, [], [], False)
    assert [row["id"] for row in found["decisions"]] == ["t1"]

    client.post("/v1/labels", json={"labels": [{"id": "t1", "label": 1}]}, headers=own)
    entity = database.read(lambda connection: connection.execute(tables.decisions.select()).first())
    assert entity is not None
    challenge = {"tenant": "bank", "transaction": "t1", "digest": "d" * 64, "entity": entity.entity, "received": 1.5e9}
    challenge |= {"score": 0.5, "threshold": 0.25, "decision": True}
    database.write(lambda connection: connection.execute(insert(tables.challenger_scores).values(challenge)) and None)
    found = client.get("/v1/decisions/t1", headers=own).json()
    audit_schemas.Audit.model_validate(found)
    assert found["label"] == "1"
    assert found["labelled"].endswith("Z")
    assert [(each["model"], each["score"], each["decision"]) for each in found["challengers"]] == [(None, 0.5, True)]

    missing = client.get("/v1/decisions/nothing", headers=own)
    assert missing.status_code == 404
    assert missing.json()["error"].startswith("there is no transaction 'nothing'")


def test_a_transaction_of_an_older_version_has_no_row(client: TestClient, database: Database) -> None:
    (answer,) = score(client, rows(1))
    database.write(lambda connection: connection.execute(delete(tables.decisions)) and None)
    found = client.get("/v1/decisions/t0").json()
    audit_schemas.Audit.model_validate(found)
    assert (found["received"], found["received_seconds"], found["key"], found["digest"]) == (None, None, None, None)
    assert (found["score"], found["action"], found["decisions"]) == (answer["score"], "approve", [])
    assert "an older version of balancer decided" in client.get("/v1/decisions/t0?reasons=3").json()["note"]
    assert client.patch("/v1/transactions/t0", json={"amount": 7}).status_code == 200
    found = client.get("/v1/decisions/t0").json()
    assert [row["kind"] for row in found["amendments"]] == ["amended"]
    assert (found["kind"], found["received"] is None) == ("amended", False)
    assert [(row["kind"], row["score"], row["received"] is None) for row in found["decisions"]] == [
        ("scored", answer["score"], True),
        ("amended", found["score"], False),
    ]
    assert client.get("/v1/entities/c").json()["latest"][0]["score"] == found["score"]
    assert client.delete("/v1/transactions/t0").status_code == 204
    found = client.get("/v1/decisions/t0").json()
    audit_schemas.Audit.model_validate(found)
    assert found["reversed"]


def test_pages_have_every_decision_of_the_tenant_once_and_in_order(client: TestClient, key_of: Callable[..., Headers]) -> None:
    own, other = key_of("bank"), key_of("else")
    for place, row in enumerate(rows(7)):
        score(client, [row], own)
        score(client, [row | {"transaction_id": f"o{place}"}], other)
    seen: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        page = client.get("/v1/decisions", params={"limit": 3} | ({"after": after} if after else {}), headers=own).json()
        audit_schemas.AuditPage.model_validate(page)
        seen += page["decisions"]
        after = page["next"]
        if after is None:
            break
    assert [row["id"] for row in seen] == [f"t{place}" for place in range(7)]
    middle = seen[3]["received_seconds"]
    later = client.get("/v1/decisions", params={"since": repr(middle)}, headers=own).json()["decisions"]
    assert [row["id"] for row in later] == ["t3", "t4", "t5", "t6"]
    assert client.get("/v1/decisions", params={"until": repr(middle)}, headers=own).json()["decisions"] == seen[:3]
    assert client.get("/v1/decisions?since=2020-01-01&until=2020-02-01", headers=own).json() == {"decisions": [], "next": None}
    alarms = [row for row in seen if row["action"] == "review"]
    assert client.get("/v1/decisions?action=review", headers=own).json()["decisions"] == alarms
    for query, error in (
        ("after=x", "after is 'x'"),
        ("since=yesterday", "since is 'yesterday'"),
        ("action=refuse", "action"),
        ("limit=0", "limit"),
        ("after=1_99999999999999999999", "after is"),
        ("until=nan", "until is 'nan'"),
        ("since=2026-05-31&until=2026-05-30", "since is '2026-05-31', after until"),
        ("sinse=2026-05-31", "unknown query parameter 'sinse'; known: after, limit, since, until, action"),
    ):
        refused = client.get(f"/v1/decisions?{query}", headers=own)
        assert (refused.status_code, error in refused.json()["error"]) == (422, True), refused.text


def test_reasons_and_the_transactions_that_weighed_are_computed_later(client: TestClient, database: Database) -> None:
    score(client, [*rows(6)[:5], rows(6, amount=4000.0)[5]])
    found = client.get("/v1/decisions/t5?reasons=4&transactions=2").json()
    audit_schemas.Audit.model_validate(found)
    assert len(found["reasons"]) == 4
    assert len(found["weighed_most"]) == 2
    assert found["explained_by"] == "run"
    assert "note" not in found
    assert any("4,000.00; usually about 20.00" in each["words"] for each in client.get("/v1/decisions/t5?reasons=100").json()["reasons"])
    assert "reasons" not in client.get("/v1/decisions/t5?transactions=2").json()

    old = tables.transactions.c.position < 4
    database.write(lambda connection: connection.execute(delete(tables.transactions).where(old)) and None)
    purged = client.get("/v1/decisions/t5?reasons=4&transactions=2").json()
    assert (len(purged["reasons"]), purged["weighed_most"]) == (4, [])
    assert "were purged" in purged["note"]

    database.write(lambda connection: connection.execute(update(tables.decisions).values(digest="gone")) and None)
    gone = client.get("/v1/decisions/t5?reasons=4&transactions=2").json()
    assert (gone["reasons"], gone["weighed_most"]) == ([], [])
    assert "'run', can't explain it (it is not loaded)" in gone["note"]
    asked = client.get("/v1/decisions/t5?reasons=4&by=service").json()
    assert asked["reasons"] == purged["reasons"]
    assert "did not decide" in asked["note"]


def test_a_correction_and_a_reversal_are_in_the_audit(client: TestClient, key_of: Callable[..., Headers]) -> None:
    own, weak = key_of("bank"), key_of("bank", "score")
    score(client, [*rows(3)[:2], rows(3, amount=1e15)[2]], own)
    assert client.patch("/v1/transactions/t2", json={"amount": 30}, headers=weak).status_code == 403
    assert client.delete("/v1/transactions/t2", headers=weak).status_code == 403
    answer = client.patch("/v1/transactions/t2", json={"amount": 30, "merchant_id": "m-5"}, headers=own)
    assert answer.status_code == 200, answer.text
    audit_schemas.Amended.model_validate(answer.json())
    assert answer.json()["changed"] == ["amount", "merchant_id"]
    found = client.get("/v1/decisions/t2?reasons=1", headers=own).json()
    assert [row["kind"] for row in found["decisions"]] == ["scored", "amended"]
    assert found["decisions"][1]["request"] == answer.headers["x-request-id"]
    assert "corrected values" in found["note"]
    expected = score(client, [*rows(3)[:2], rows(3, amount=30, merchant_id="m-5")[2]], key_of("same"))
    assert answer.json()["score"] == expected[2]["score"] == found["score"]
    latest = client.get("/v1/entities/c", headers=own).json()["latest"]
    assert latest[0]["score"] == found["score"]
    assert found["decisions"][0]["score"] != found["score"] == found["decisions"][1]["score"]

    for body, error in (({"time": 5}, "column 'time'"), ({}, "corrects nothing"), ({"amount": "x"}, "'amount'"), ([1], "")):
        refused = client.patch("/v1/transactions/t2", json=body, headers=own)
        assert refused.status_code == 422
        assert error in refused.json()["error"]
    assert client.patch("/v1/transactions/none", json={"amount": 1}, headers=own).status_code == 404
    assert client.delete("/v1/transactions/t2", headers=own).status_code == 204
    assert client.delete("/v1/transactions/t2", headers=own).status_code == 404
    assert client.get("/v1/entities/c", headers=own).json()["transactions"] == 2
    found = client.get("/v1/decisions/t2?reasons=1", headers=own).json()
    assert [row["kind"] for row in found["decisions"]] == ["scored", "amended", "reversed"]
    assert "was reversed" in found["note"]
    assert client.delete("/v1/entities/c", headers=own).status_code == 204
    assert client.get("/v1/decisions/t2", headers=own).status_code == 404
    assert client.get("/v1/decisions", headers=own).json()["decisions"] == []


def test_the_action_is_decline_from_a_score_on() -> None:
    plain, strict = Actions(), Actions(0.9)
    assert [plain.of(0.95, alarm=True), plain.of(0.1, alarm=False)] == ["review", "approve"]
    assert [strict.of(score, alarm=True) for score in (0.89, 0.9, 1.0)] == ["review", "decline", "decline"]
    assert strict.of(0.2, alarm=False) == "approve"
    with pytest.raises(InputError, match=r"--decline-above is 1\.5: give a calibrated score from 0 to 1"):
        ServeConfig(decline_above=1.5)


def test_only_rows_that_are_wanted_are_listed(client: TestClient, database: Database) -> None:
    score(client, rows(2))
    client.patch("/v1/transactions/t0", json={"amount": 1})
    listed, following = Decisions(database).page("local", Wanted(kind="amended"), None, 10)
    assert ([row["id"] for row in listed], following) == (["t0"], None)


def test_the_flag_is_one_of_serve(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "--decline-above SCORE" in capsys.readouterr().out


def test_reasons_are_the_same_at_once_and_later(client: TestClient) -> None:
    score(client, rows(6)[:5])
    answer = client.post("/v1/score", json={"transactions": [rows(6, amount=4000.0)[5]], "reasons": 3})
    assert answer.status_code == 200, answer.text
    at_once = answer.json()["decisions"][0]["reasons"]
    later = client.get("/v1/decisions/t5?reasons=3").json()["reasons"]
    assert [each["words"] for each in at_once] == [each["words"] for each in later]
    assert [each["contribution"] for each in at_once] == pytest.approx([each["contribution"] for each in later])
