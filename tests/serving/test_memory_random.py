"""Random work of several workers: what those that remember answer and store is that of others."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from balancer.data.spec import DAY
from balancer.errors import InputError
from balancer.serving.audit.amend import Amender
from balancer.serving.errors import MissingError
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.operations.retention import purge
from balancer.serving.scoring import context_memory, entity_memory, model_memory
from balancer.serving.scoring.actions import Actions
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.row import Row
from balancer.serving.scoring.scorer import Job, Models, Scorer, ScoringResult
from balancer.serving.storage.database import Database
from tests.serving.test_memory import raw
from tests.serving.tools import opened, parsed

SEEDS = int(os.environ.get("BALANCER_FUZZ_SEEDS", "2"))
STEPS = 120
TABLES = {
    "entities": 'SELECT name, "rows", sum_score, first_stage, last_time, sum_amount, last_fields, last_logits FROM entities ORDER BY name',
    "transactions": "SELECT id, position, time, fields, scores, sum_score, label FROM transactions ORDER BY id",
    "spans": 'SELECT "column", value, width, number, "rows", sum_level, sum_square FROM context_spans ORDER BY 1, 2, 3, 4',
    "labels": 'SELECT "column", value, time, fraud FROM labelled ORDER BY 1, 2, 3, 4',
}


@pytest.fixture(scope="module")
def models(tiny_run: Path, second_run: Path, network_run: Path) -> list[LoadedModel]:
    return [LoadedModel.load(run, name) for run, name in ((tiny_run, "a"), (second_run, "b"), (network_run, "network"))]


def worked(database: Database, models: list[LoadedModel], seed: int, remembers: bool) -> tuple[list[Any], dict[str, list[Any]]]:
    """Answers and stored rows of random work by three workers, some of which know of a swap late."""
    rng, moment, sent = random.Random(seed), 1.6e9, list[Row]()
    workers = [Scorer(database, limit=rng.choice([30_000, 10**8])) for _ in range(3)]
    amender, entities = Amender(database, Actions()), Entities(database)
    champion, challenger, share = 0, None, 0.0
    found: list[Any] = []

    def jobs(model: LoadedModel, step: int) -> list[Job]:
        made = []
        for number in range(rng.randint(1, 3)):
            rows = [
                rng.choice(sent) if sent and rng.random() < 0.06 else parsed(raw(100 * step + 10 * number + place, rng, moment), model)
                for place in range(rng.randint(1, 4))
            ]
            sent.extend(rows)
            made.append(Job([replace(row, digest="other") if rng.random() < 0.03 else row for row in rows], skip=rng.random() < 0.3))
        return made

    for step in range(STEPS):
        moment += rng.choice([0.0, 5.0, 600.0, 5 * 3600.0, 1 * DAY, 3 * DAY])
        kind, worker = rng.random(), rng.randrange(3)
        model = models[champion if rng.random() < 0.85 else rng.randrange(len(models))]
        second = None if challenger is None else models[challenger]
        scorer = workers[worker] if remembers else Scorer(database)
        try:
            if kind < 0.72:
                for result in scorer.score_many("t", Models(model, second, share), jobs(model, step)):
                    found.append(result.answers if isinstance(result, ScoringResult) else str(result))
            elif kind < 0.8:
                entities.label("t", model.schema, {rng.choice(sent).id: rng.choice(["0", "1", None]) for _ in range(4)})
            elif kind < 0.84:
                changes = (
                    {"amount": round(rng.lognormvariate(3, 1), 2)} if rng.random() < 0.5 else {"merchant_id": rng.choice(["m0", "m1"])}
                )
                found.append(amender.amend("t", model, rng.choice(sent).id, changes, Origin(received=0.0))["score"])
            elif kind < 0.88:
                amender.reverse("t", model, rng.choice(sent).id, Origin())
            elif kind < 0.9:
                entities.delete("t", f"c{rng.randrange(5)}")
            elif kind < 0.94:
                champion = rng.randrange(len(models))
            elif kind < 0.98:
                challenger, share = rng.choice([None, *range(len(models))]), rng.choice([0.0, 0.5, 1.0])
            else:
                found.append(str(purge(database, models, 38 * DAY, moment)))
        except (InputError, MissingError) as error:
            found.append(str(error))
    stored = {name: database.read(lambda connection, query=query: connection.execute(text(query)).all()) for name, query in TABLES.items()}
    return found, {name: [tuple(map(bytes_of, row)) for row in rows] for name, rows in stored.items()}


def bytes_of(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_workers_that_remember_do_as_those_that_do_not(
    models: list[LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, few: bool
) -> None:
    if few:  # the sums of the database are needed all the time
        monkeypatch.setattr(context_memory, "KEPT_ROWS", 4)
        monkeypatch.setattr(entity_memory, "MOST_ROWS", 3)
        monkeypatch.setattr(entity_memory, "_WINDOW", entity_memory._WINDOW.rpartition(" ")[0] + " 3")
        monkeypatch.setattr(entity_memory, "MOST_VALUES", 2)
        monkeypatch.setattr(entity_memory, "_VALUES", entity_memory._VALUES.rpartition(" ")[0] + " 3")
        monkeypatch.setattr(model_memory, "_PAGE", model_memory._ROWS + " LIMIT 4")
    results = []
    for remembers in (True, False):
        database = opened(f"sqlite:///{tmp_path / f'{remembers}.db'}")
        results.append(worked(database, models, seed, remembers))
        database.close()
    (answers, rows), (expected, expected_rows) = results
    assert answers == expected
    for name in TABLES:
        assert rows[name] == expected_rows[name], name
    assert len(answers) > STEPS
