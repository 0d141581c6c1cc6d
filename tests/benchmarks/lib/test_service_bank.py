"""What the benchmark of the service sends to it and repeats in one process; here both are in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, update

from balancer.serving.audit.amend import Amender
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.scoring.actions import Actions
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.parsing import parse_transaction
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import labelled_days, transactions
from benchmarks.lib.service_bank import LABEL_DELAY_DAYS, Bank, Night, replayed
from benchmarks.lib.service_trouble import Order, compared

DAYS = LABEL_DELAY_DAYS + 4


class LocalBank(Bank):
    """Asks the parts of the service without HTTP."""

    def __init__(self, database: Database, model: LoadedModel) -> None:
        super().__init__(0, "", cards=12, threads=1)
        self._model, self._scorer = model, Scorer(database)
        self._stored, self._amender = Entities(database), Amender(database, Actions(None))

    def ask(self, method: str, path: str, body: Any = None, *, missing: bool = False, thread: int = 0) -> Any:
        name = path.rsplit("/", 1)[1]
        if path == "/v1/labels":
            return self._stored.label("bank", self._model.schema, {each["id"]: each["label"] for each in body["labels"]})
        if method == "DELETE":
            return self._stored.delete("bank", name)
        if method == "PATCH":
            return self._amender.amend("bank", self._model, name, body, Origin())
        rows = [parse_transaction(each, self._model.schema, "row", time.time(), 0.0) for each in body["transactions"]]
        return {"decisions": self._scorer.score("bank", self._model, rows).answers}


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> LoadedModel:
    return LoadedModel.load(tiny_run, "one")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(f"sqlite:///{tmp_path / 'bank.db'}")) as opened:
        opened.upgrade()
        yield opened


@pytest.fixture
def days(database: Database, model: LoadedModel) -> tuple[LocalBank, Order]:
    bank, order = LocalBank(database, model), Order(database)
    for number in range(DAYS):
        bank.night(number)
        bank.day(number, 0.0)
        order.read()
    return bank, order


def test_a_replay_has_the_same_scores(days: tuple[LocalBank, Order], database: Database, tiny_run: Path, tmp_path: Path) -> None:
    bank, order = days
    assert len(bank.accepted) == 12 * DAYS
    assert bank.erased
    assert bank.amended
    assert any(night.retracted for night in bank.nights)
    assert {name for names in order.days for name in names} == set(bank.accepted)
    replay = replayed(f"sqlite:///{tmp_path / 'replay.db'}", bank, order.days, {"one": tiny_run}, lambda _: None)
    assert replay.scores == {name: answer["score"] for name, answer in bank.accepted.items()}
    assert replay.amended == {name: answer["score"] for name, answer in bank.amended.items()}
    assert set(compared(database, bank, None).values()) == {0}


def test_what_is_missing_or_wrong_is_found(days: tuple[LocalBank, Order], database: Database) -> None:
    bank, _ = days
    kept = sorted(set(bank.accepted) - bank.erased)
    last, other = f"{bank.cards[0]}-{DAYS - 1}", next(name for name in kept if not name.startswith(f"{bank.cards[0]}-"))

    def spoil(connection: Connection) -> None:
        connection.execute(delete(transactions).where(transactions.c.id == last))
        connection.execute(update(transactions).where(transactions.c.id == other).values(id="unknown"))
        connection.execute(update(labelled_days).values(known=labelled_days.c.known + 1))

    database.write(spoil)
    found = compared(database, bank, 0)
    assert found["lost"] == 2
    assert found["stored_though_never_sent"] == 1
    assert found["answers_differing_from_what_is_stored"] == 2
    assert found["cards_with_wrong_counts"] == 1
    assert found["sums_that_differ_from_their_rows"] >= 1
    assert found["scored_by_the_old_model_after_the_swap"] == len(bank.accepted)


def test_a_night_is_the_same_in_every_run() -> None:
    one, other = (Bank(0, "", 20, 1) for _ in range(2))
    assert [one._planned(number) for number in range(12)] == [other._planned(number) for number in range(12)]
    assert one._planned(0) == Night()
    assert one._planned(LABEL_DELAY_DAYS).labels.keys() == one.labels_of(0).keys()
    retracted = one._planned(LABEL_DELAY_DAYS + 1).retracted
    assert set(retracted.values()) == {None}
    assert retracted.keys() <= one.labels_of(0).keys()
