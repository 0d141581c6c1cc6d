"""A client that sends transactions like a bank, day by day, and repeats what it did in one process."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balancer.serving.audit.amend import Amender
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.scoring.actions import Actions
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.parsing import parse_transaction
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage.database import Database
from benchmarks.lib.service import DAY, START, WAIT, transaction
from benchmarks.lib.service_client import Connection

LABEL_DELAY_DAYS = 7
RETRACTED = 5
"""Labels of each day that are removed a day after they were sent."""
ERASE_EVERY, AMEND_EVERY = 3, 2
"""Days between two erasures of a card, and between two corrections of an amount."""

Labels = dict[str, str | None]


@dataclass(frozen=True)
class Night:
    """What is done between two days, while no transaction is on its way."""

    labels: Labels = field(default_factory=dict)
    retracted: Labels = field(default_factory=dict)
    erased: str | None = None
    amended: tuple[str, dict[str, Any]] | None = None
    """Id of a transaction, and its right values."""


class Bank:
    """A client that repeats each request until it is answered.

    Args:
        port: port of the service.
        key: API key.
        cards: number of cards; each makes one transaction per day.
        threads: requests that are sent at the same time.
    """

    def __init__(self, port: int, key: str, cards: int, threads: int) -> None:
        self.threads = threads
        self.cards = [f"card-{number}" for number in range(cards)]
        self.accepted: dict[str, dict[str, Any]] = {}
        self.sent: dict[str, dict[str, Any]] = {}
        self.erased: set[str] = set()
        """Ids of the transactions that were erased with their card."""
        self.amended: dict[str, dict[str, Any]] = {}
        """Answers to corrections by id."""
        self.nights: list[Night] = []
        """What was done before each day."""
        self.retries = 0
        self._lock, self._clients = threading.Lock(), [Connection(port, key) for _ in range(threads)]

    def ask(self, method: str, path: str, body: Any = None, *, missing: bool = False, thread: int = 0) -> Any:
        """Send a request until it is answered, and return the answer.

        Args:
            method: of the request.
            path: of the request.
            body: JSON; None sends nothing.
            missing: whether an answer with 404 is as good, because the request may have been carried out
                before its answer was lost.
            thread: which connection.

        Raises:
            RuntimeError: the service refused the request, or did not answer in time.
        """
        deadline, content = time.monotonic() + WAIT, b"" if body is None else json.dumps(body).encode()
        while True:
            try:
                status, answer = self._clients[thread].request(method, path, content)
                if status < 300:
                    return json.loads(answer or b"null")
                if status == 404 and missing:
                    return None
                if status < 500:
                    raise RuntimeError(f"{method} {path}: status {status}: {answer[:300].decode()}")
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path} was not answered within {WAIT} s")
            with self._lock:
                self.retries += 1
            time.sleep(0.1)

    def day(self, number: int, rate: float) -> None:
        """Send one transaction of each card, ``rate`` per second in all; 0 is as fast as possible."""
        rng = random.Random(number)
        rows = [transaction(number, card, START + DAY * number + rng.random() * 86_000, rng) for card in self.cards]

        def work(thread: int) -> None:
            begun = time.monotonic()
            for place, row in enumerate(rows[thread :: self.threads]):
                pause = begun + place * self.threads / rate - time.monotonic() if rate else 0.0
                if pause > 0:
                    time.sleep(pause)
                answer = self.ask("POST", "/v1/score", {"transactions": [row]}, thread=thread)["decisions"][0]
                with self._lock:
                    self.sent[row["transaction_id"]], self.accepted[row["transaction_id"]] = row, answer

        with ThreadPoolExecutor(self.threads) as pool:
            for done in [pool.submit(work, thread) for thread in range(self.threads)]:
                done.result()

    def night(self, number: int) -> None:
        """Send labels, remove some, erase a card and correct an amount, before day ``number``."""
        night = self._planned(number)
        self.nights.append(night)
        for labels in (night.labels, night.retracted):
            if labels:
                self.ask("POST", "/v1/labels", {"labels": [{"id": name, "label": label} for name, label in labels.items()]})
        if night.amended is not None:
            name, values = night.amended
            self.amended[name] = self.ask("PATCH", f"/v1/transactions/{name}", values)
        if night.erased is not None:
            self.ask("DELETE", f"/v1/entities/{night.erased}", missing=True)
            self.erased |= {name for name, row in self.sent.items() if row["card_id"] == night.erased}

    def _planned(self, number: int) -> Night:
        rng = random.Random(-number)
        labels: Labels = {}
        retracted: Labels = {}
        if number >= LABEL_DELAY_DAYS:
            labels = dict(self.labels_of(number - LABEL_DELAY_DAYS))
        if number > LABEL_DELAY_DAYS:
            retracted = dict.fromkeys(rng.sample(sorted(self.labels_of(number - LABEL_DELAY_DAYS - 1)), RETRACTED))
        amended = None
        if number > 1 and number % AMEND_EVERY == 0:
            stored = sorted(name for card in self.cards if (name := f"{card}-{number - 2}") not in self.erased)
            amended = rng.choice(stored), {"amount": round(rng.lognormvariate(3, 1), 2)}
        erased = rng.choice(self.cards) if number and number % ERASE_EVERY == 0 else None
        return Night(labels, retracted, erased, amended)

    def labels_of(self, number: int) -> dict[str, str]:
        """Labels of a day's transactions by id: about every thirtieth is fraud."""
        names = [f"{card}-{number}" for card in self.cards]
        return {name: "1" if hash_of(name) % 30 == 0 else "0" for name in names}


def hash_of(name: str) -> int:
    """A hash that is the same in every process."""
    return sum(ord(letter) * 31**place for place, letter in enumerate(name))


@dataclass(frozen=True)
class Replay:
    """Scores of the same transactions in one process."""

    scores: dict[str, float]
    amended: dict[str, float]
    """Scores after a correction."""


def replayed(database: str, bank: Bank, order: list[list[str]], models: Mapping[str, Path], say: Callable[[str], None]) -> Replay:
    """Repeat what a bank has sent, without failures: one transaction after another, in a new database.

    Args:
        database: URL of the new database.
        bank: what was sent.
        order: ids of each day in the order in which the service stored them. Transactions of a merchant
            count for one another, so that scores depend on it.
        models: run folders by name; every transaction is scored by the model that its answer names.
        say: shows the progress.
    """
    loaded = {name: LoadedModel.load(path, name) for name, path in models.items()}
    scores: dict[str, float] = {}
    amended: dict[str, float] = {}
    with closing(Database(database)) as opened:
        opened.upgrade()
        scorer, stored, amender = Scorer(opened), Entities(opened), Amender(opened, Actions(None))
        schema = next(iter(loaded.values())).schema
        for number, names in enumerate(order):
            night = bank.nights[number]
            for labels in (night.labels, night.retracted):
                if labels:
                    stored.label("bank", schema, labels)
            if night.amended is not None:
                name, values = night.amended
                answer = amender.amend("bank", loaded[bank.amended[name]["model"]], name, values, Origin())
                amended[name] = answer["score"]
            if night.erased is not None:
                stored.delete("bank", night.erased)
            for name in names:
                model = loaded[bank.accepted[name]["model"]]
                row = parse_transaction(bank.sent[name], model.schema, name, time.time(), 0.0)
                scores[name] = scorer.score("bank", model, [row]).answers[0]["score"]
            if number % 20 == 0:
                say(f"replay: day {number} of {len(order)}")
    return Replay(scores, amended)
