"""Labels and erasures of one entity at once, what an erasure removes, and how labels and names may be
written."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, func, insert, select

from balancer.errors import InputError
from balancer.serving.config import ServeConfig
from balancer.serving.errors import MissingError
from balancer.serving.http.app import create_app
from balancer.serving.models.registry import LoadedModel
from balancer.serving.scoring.context_versions import changed
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage import tables
from balancer.serving.storage.database import Database
from tests.serving.test_scoring import card
from tests.serving.tools import opened, parsed


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> LoadedModel:
    return LoadedModel.load(tiny_run, "run")


def _count(database: Database, table: Any, tenant: str) -> int:
    return database.read(lambda connection: connection.execute(select(func.count()).where(table.c.tenant == tenant)).scalar_one())


def _labels_of_hours(database: Database, tenant: str) -> tuple[int, int]:
    hours = tables.labelled_hours.c
    sums = select(func.coalesce(func.sum(hours.known), 0), func.coalesce(func.sum(hours.frauds), 0)).where(hours.tenant == tenant)
    return tuple(map(int, database.read(lambda connection: connection.execute(sums).one())))  # type: ignore[return-value]


@pytest.mark.parametrize(("before", "then"), [("1", None), ("1", "0"), (None, "1")], ids=["retract", "change", "first"])
def test_a_label_while_its_entity_is_erased_counts_once(
    database: Database, model: LoadedModel, before: str | None, then: str | None
) -> None:
    scorer, entities, names = Scorer(database), Entities(database), [f"q{number}" for number in range(3)]
    rows = [
        parsed(card(transaction_id=name, time=f"2026-01-05T10:0{number}:00", merchant_id=f"m{number}"), model)
        for number, name in enumerate(names)
    ]
    for number in range(12):
        tenant, pause = f"t{number}", random.Random(number).random() * 0.008
        scorer.score(tenant, model, rows)
        if before is not None:
            entities.label(tenant, model.schema, dict.fromkeys(names, before))

        def label(tenant: str = tenant, pause: float = pause) -> None:
            time.sleep(pause)
            entities.label(tenant, model.schema, dict.fromkeys(names, then))

        def erase(tenant: str = tenant) -> None:
            time.sleep(0.004)
            entities.delete(tenant, "c")

        with ThreadPoolExecutor(2) as both:
            for each in [both.submit(label), both.submit(erase)]:
                each.result()
        assert _labels_of_hours(database, tenant) == (0, 0)
        assert _count(database, tables.labelled, tenant) == 0


def test_an_erasure_removes_decisions_and_scores_of_challengers(database: Database, model: LoadedModel) -> None:
    scorer = Scorer(database)
    for name in ("c", "d"):
        scorer.score("t", model, [parsed(card(transaction_id=name, card_id=name), model)])

    def challenge(connection: Connection) -> None:
        for row in connection.execute(select(tables.decisions)).all():
            values = {
                name: getattr(row, name) for name in ("tenant", "transaction", "entity", "received", "score", "threshold", "decision")
            }
            connection.execute(insert(tables.challenger_scores).values(values | {"digest": "other"}))

    database.write(challenge)
    assert _count(database, tables.decisions, "t") == _count(database, tables.challenger_scores, "t") == 2
    Entities(database).delete("t", "c")
    assert _count(database, tables.decisions, "t") == _count(database, tables.challenger_scores, "t") == 1
    with pytest.raises(MissingError):
        Entities(database).get("t", "c", 5)


def test_labels_and_erasures_give_context_values_new_versions(database: Database, model: LoadedModel) -> None:
    entities, columns = Entities(database), tables.context_versions.c

    def versions() -> tuple[int, int]:
        chosen = select(columns.rows, columns.labels).where(columns.tenant == "t", columns.column == "merchant_id", columns.value == "m")
        return tuple(database.read(lambda connection: connection.execute(chosen).first()) or (0, 0))  # type: ignore[return-value]

    Scorer(database).score("t", model, [parsed(card(), model)])
    rows, labels = versions()
    entities.label("t", model.schema, {"a": "1"})
    assert versions() == (rows, labels + 1)
    entities.delete("t", "c")
    after = versions()
    assert after[0] > rows
    assert after[1] > labels + 1
    database.write(lambda connection: changed(connection, "t", [("merchant_id", "m"), ("merchant_id", None)], rows=True))
    assert versions() == (after[0] + 1, after[1])


@pytest.mark.parametrize(("label", "stored"), [(1, "1"), (1.0, "1"), ("1.0", "1"), (True, "1"), (False, "0"), (0, "0"), (None, None)])
def test_a_label_has_the_type_of_its_column(database: Database, model: LoadedModel, label: Any, stored: str | None) -> None:
    entities = Entities(database)
    Scorer(database).score("t", model, [parsed(card(), model)])
    assert entities.label("t", model.schema, {"a": label}) == []
    assert entities.get("t", "c", 1)["latest"][0]["label"] == stored
    for wrong in (2, 1.5, float("nan"), "yes", ""):
        with pytest.raises(InputError, match="the label of 'a' is"):
            entities.label("t", model.schema, {"a": wrong})


def test_a_name_with_a_part_of_a_key_is_read_and_erased_and_a_whole_key_is_refused(tmp_path: Path, tiny_run: Path) -> None:
    whole = "bk_0123456789ab_" + "x" * 43
    database = opened(f"sqlite:///{tmp_path / 'a.db'}")
    with TestClient(create_app(ServeConfig(run=tiny_run, database=database.shown))) as client:
        for name in ("bk_", "card bk_7", "bk_0123456789ab_", "bk_0123456789ab_x/1"):
            sent = client.post("/v1/score", json={"transactions": [card(card_id=name, transaction_id=name)]})
            assert sent.status_code == 200, sent.text
            assert client.get(f"/v1/entities/{name}").json()["entity"] == name
            assert client.delete(f"/v1/entities/{name}").status_code == 204
            assert client.get(f"/v1/entities/{name}").status_code == 404
        for url in (f"/v1/entities/{whole}", f"/v1/entities/{whole.replace('_', '%5F')}", f"/v1/entities/c?limit={whole}"):
            assert client.get(url).status_code == 400
        answer = client.post("/v1/labels", json={"labels": [{"id": "a", "label": 1}, {"id": "b", "label": True}]})
        assert answer.json() == {"stored": 0, "unknown": ["a", "b"]}
