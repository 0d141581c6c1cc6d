"""Bodies and texts of every route: strict JSON, the first error as one sentence, the same answers on both
databases."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.serving.config import ServeConfig
from balancer.serving.http.app import create_app
from balancer.serving.http.bodies import decode_model, decode_object
from balancer.serving.sessions.schemas import EpochReport, SessionRequest
from balancer.serving.storage.database import Database
from tests.serving.test_scoring import card

JSON = {"Content-Type": "application/json"}
CLASSES = {"ok": 990, "fraud": 10}
SCORES = {"labels": ["ok", "fraud"], "scores": [0.1, 0.7]}
OBJECTS = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers(-99, 99) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@pytest.fixture
def client(database: Database, tiny_run: Path) -> Iterator[TestClient]:
    url = database.engine.url.render_as_string(hide_password=False)
    with TestClient(create_app(ServeConfig(run=tiny_run, database=url, rate=0.0)), raise_server_exceptions=False) as client:
        yield client


def test_no_text_breaks_a_database(client: TestClient) -> None:
    wide, long = "\U00020000" * 500, "x" * 1001
    assert client.post("/v1/score", json={"transactions": [card(card_id=wide, merchant_id=wide, transaction_id=wide)]}).status_code == 200
    for path in client.get("/openapi.json").json()["paths"]:
        name = path.partition("{")[2].partition("}")[0]
        if not name:
            continue
        for text in ("%00", "a%00b", "a%1Fb", "a%C2%85b", long, "%F0%A0%80%80" * 501):
            for method in ("GET", "DELETE", "PATCH", "POST"):
                answer = client.request(method, path.replace(f"{{{name}}}", text), json={"amount": 1.0})
                assert answer.status_code in (404, 405, 422), (method, path, text, answer.text)
        assert client.get(path.replace(f"{{{name}}}", "%ED%A0%80")).status_code in (404, 405)
    for path in ("/v1/sessions", "/v1/decisions", "/v1/models/comparison"):
        for key in ("after", "since", "challenger"):
            for text in ("%00", "a%00b", "%F0%A0%80%80" * 501):
                assert client.get(f"{path}?{key}={text}").status_code in (200, 404, 409, 422), (path, key)
    for text in ("\\u0000", "a\\u001f", "\\ud800", "\\udc00a", long, "\\ud840\\udc00" * 501):
        for column in ("transaction_id", "card_id", "merchant_id", "merchant_category", "channel", "time", "amount"):
            body = json.dumps({"transactions": [card(**{column: "@"})]}).replace('"@"', f'"{text}"')
            assert client.post("/v1/score", content=body, headers=JSON).status_code == 422, (column, text)
        for path, body in (
            ("/v1/labels", '{"labels": [{"id": "@", "label": "1"}]}'),
            ("/v1/labels", '{"labels": [{"id": "a", "label": "@"}]}'),
            ("/v1/models", '{"name": "@"}'),
            ("/v1/sessions", '{"classes": {"@": 5, "b": 5}, "epochs": 1}'),
            ("/v1/sessions", '{"classes": {"a": 5, "b": 5}, "epochs": 1, "policy": "@"}'),
        ):
            assert client.post(path, content=body.replace("@", text), headers=JSON).status_code == 422, (path, text)
    assert client.get("/readyz").status_code == 200


def test_a_bad_transaction_is_skipped_on_request(client: TestClient) -> None:
    rows: list[Any] = [card(transaction_id="good"), card(transaction_id="bad", amount="x"), 5, card(transaction_id="other", amount=[1]), {}]
    rows += [card(transaction_id="good", amount=7.0), card(transaction_id="last", time="2026-01-06T10:00:00")]
    refused = client.post("/v1/score", json={"transactions": rows})
    assert refused.status_code == 422
    assert client.get("/v1/entities/c").status_code == 404
    answer = client.post("/v1/score", json={"transactions": rows, "on_error": "skip"})
    assert answer.status_code == 200, answer.text
    found = answer.json()["decisions"]
    assert [each["id"] for each in found] == ["good", "bad", None, None, None, "good", "last"]
    assert [each.get("error", "").split("; ")[0] for each in found] == [
        "",
        "transactions[1]: column 'amount' is text, not a number",
        "transactions[2] is a number",
        "transactions[3]: column 'amount' is a list",
        "transactions[4]: column 'card_id' is missing",
        "the id 'good' occurs twice in the request with different content",
        "",
    ]
    assert client.get("/v1/entities/c").json()["transactions"] == 2
    again = client.post("/v1/score", json={"transactions": [card(transaction_id="good", amount=7.0), rows[-1]], "on_error": "skip"})
    assert "already stored with other content" in again.json()["decisions"][0]["error"]
    assert again.json()["decisions"][1] == found[-1] | {"repeated": True}
    only = client.post("/v1/score", json={"transactions": [5], "on_error": "skip"})
    assert (only.status_code, len(only.json()["decisions"])) == (200, 1)


def test_a_number_names_the_class_of_its_column(client: TestClient) -> None:
    client.post("/v1/score", json={"transactions": [card(transaction_id="1"), card(transaction_id="b", amount=2.0)]})
    labels = [{"id": 1, "label": 1}, {"id": "b", "label": 0}]
    assert client.post("/v1/labels", json={"labels": labels}).json() == {"stored": 2, "unknown": []}
    assert {each["id"]: each["label"] for each in client.get("/v1/entities/c").json()["latest"]} == {"1": "1", "b": "0"}
    assert "known: 0, 1" in client.post("/v1/labels", json={"labels": [{"id": "b", "label": 2}]}).json()["error"]


SESSION = {"classes": CLASSES, "epochs": 2}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"classes": {"ok": 10**13, "b": 1}}, "classes.ok is too large; give at most 1000000000000"),
        ({"classes": {"ok": 2**64, "b": 1}}, "classes.ok is too large"),
        ({"classes": {"ok": 1e308, "b": 1}}, "classes.ok is "),
        ({"classes": {"ok": "10", "b": 1}}, "classes.ok is not a whole number"),
        ({"classes": {"ok": True, "b": 1}}, "classes.ok is not a whole number"),
        ({"classes": {"ok": 1.5, "b": 1}}, "classes.ok is not a whole number"),
        ({"classes": {"": 10, "b": 1}}, "classes.'' is too short; give at least 1 characters"),
        ({"classes": {"a\u0007": 10, "b": 1}}, "classes.'a\\x07' is not a printable text"),
        ({"classes": {"a": 1}}, "classes is too short; give at least 2"),
        ({"classes": [1]}, "classes is not an object"),
        ({"classes": {str(number): 1 for number in range(51)}}, "classes is too long; give at most 50"),
        ({"classes": {str(number): [] for number in range(20_000)}}, "the body has more than 10,000 keys"),
        ({"epochs": 10**30}, "epochs is too large"),
        ({"epochs": 0}, "epochs is too small; give at least 1"),
        ({"num_samples": -1}, "num_samples is too small"),
        ({"policy": 5}, "policy is not a text"),
        ({"polcy": "auto"}, "polcy is unknown; leave it out"),
    ],
)
def test_a_session_that_can_not_be_named_by_its_key(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as found:
        decode_model(SessionRequest, json.dumps(SESSION | changes).encode())
    assert str(found.value).startswith(error)


@pytest.mark.parametrize(
    ("reward", "error"),
    [
        ({"labels": ["ok", 5], "scores": [0, 1]}, "reward.labels[1] is not a text"),
        ({"labels": ["ok", ""], "scores": [0, 1]}, "reward.labels[1] is too short"),
        ({"labels": ["ok", "fraud"], "scores": [0, 1e308]}, "reward.scores[1] is too large; give at most 1.000001"),
        ({"labels": ["ok", "fraud"], "scores": [0, "1"]}, "reward.scores[1] is not a number"),
        ({"labels": ["ok", "fraud"], "scores": [0, True]}, "reward.scores[1] is not a number"),
        ({"labels": ["ok", "fraud"], "scores": [0, 10**99]}, "reward.scores[1] is too large"),
        ({"labels": ["ok", "fraud"]}, "reward.scores is missing"),
        ({"labels": [], "scores": []}, "reward.labels is too short"),
        ({"edges": [0, 1], "counts": {"ok": [-1], "fraud": [1]}}, "reward"),
        ({"edges": [0, 1], "counts": {"ok": [1e13], "fraud": [1]}}, "reward"),
        (5, "reward is not an object"),
        (None, "reward is not an object"),
    ],
)
def test_a_report_that_can_not_be_used_is_named_by_its_key(reward: Any, error: str) -> None:
    with pytest.raises(InputError) as found:
        decode_model(EpochReport, json.dumps({"epoch": 1, "reward": reward}).encode())
    assert str(found.value).startswith(error)


@pytest.mark.parametrize("scores", ["[0.1, NaN]", "[[0.1, 0.9], [NaN, 1]]", "NaN", "-Infinity"])
def test_a_number_that_json_lacks_is_named_by_the_key_of_its_list(scores: str) -> None:
    body = f'{{"epoch": 1, "reward": {{"labels": ["a", "b"], "scores": {scores}}}}}'
    with pytest.raises(InputError, match=r"'scores' is \w+, which JSON does not have"):
        decode_object(body.encode())


@given(OBJECTS)
def test_an_object_is_that_of_json(content: dict[str, Any]) -> None:
    text = json.dumps(content)
    assert repr(decode_object(text.encode())) == repr(content)
    if content:
        key = json.dumps(next(iter(content)))
        twice = f"{text[:-1]}, {key}: 1}}"
        for body in (twice, f'{{"{"x" * 9}": {twice}}}', f'{{"y": [[{twice}]]}}'):
            with pytest.raises(InputError, match="occurs twice in one object"):
                decode_object(body.encode())


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from([b"{", b"}", b"[", b"]", b":", b",", b'"a"', b"1", b"NaN", b"\xff", b"[" * 3000]), max_size=9).map(b"".join)
)
def test_any_bytes_give_an_object_or_an_input_error(body: bytes) -> None:
    message = ""
    try:
        assert isinstance(decode_object(body), dict)
    except InputError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("unit", ["[]", "{}", '""', "1", "null", "2.0", '{"":1}'])
def test_a_large_report_costs_little(unit: str) -> None:
    listed = ",".join([unit] * (1_000_000 // (len(unit) + 1)))
    begun = time.process_time()
    tracemalloc.start()
    for body in (
        f'{{"epoch":1,"reward":{{"labels":[{listed}],"scores":[{listed}]}}}}',
        f'{{"epoch":1,"reward":{{"edges":[{listed}],"counts":{{}}}}}}',
    ):
        with pytest.raises(InputError):
            decode_model(EpochReport, body.encode())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6, "megabytes beside a body of 1 or 2"
    assert time.process_time() - begun < 3, "a tenth of it without the measurement of memory"
