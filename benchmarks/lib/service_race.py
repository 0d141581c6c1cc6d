"""Labels of a card against its erasure, at the same time: afterwards nothing may be counted."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection as Database_Connection
from sqlalchemy import func, or_, select

from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import context_rows, context_spans, labelled, labelled_days, labelled_hours
from benchmarks.lib.service import START, details
from benchmarks.lib.service_client import Connection

if TYPE_CHECKING:
    from benchmarks.lib.service_abuse import Target

ROUNDS = 600
KINDS: tuple[tuple[str | None, str | None], ...] = (("1", None), ("1", "0"), (None, "1"))
"""Label before, and label that is sent while the card is erased."""


def race(target: Target) -> dict[str, Any]:
    """Send and remove labels while cards are erased; how many counts are left."""
    rng, rounds = random.Random(0), target.times(ROUNDS)
    client, other = (Connection(target.service.port, target.key) for _ in range(2))

    def ask(connection: Connection, method: str, path: str, body: Any = None) -> None:
        status = connection.post(path, body)[0] if method == "POST" else connection.request(method, path)[0]
        target.statuses[str(status)] += 1

    with client, other:
        for number in range(rounds):
            before, then = KINDS[number % len(KINDS)]
            names = [f"r{number}-{place}" for place in range(3)]
            rows = [
                {"transaction_id": name, "card_id": "one", "time": START + 100.0 * number + place, **details(rng), "merchant_id": "m"}
                for place, name in enumerate(names)
            ]
            ask(client, "POST", "/v1/score", {"transactions": rows})
            if before is not None:
                ask(client, "POST", "/v1/labels", {"labels": [{"id": name, "label": before} for name in names]})
            wait = rng.random() * 0.01

            def erase(wait: float = wait) -> None:
                time.sleep(wait)
                ask(other, "DELETE", "/v1/entities/one")

            erasing = threading.Thread(target=erase)
            erasing.start()
            time.sleep(0.005)
            ask(client, "POST", "/v1/labels", {"labels": [{"id": name, "label": then} for name in names]})
            erasing.join()
    with closing(Database(target.url)) as database:
        return {"rounds": rounds, "counts_left": database.read(counts_left)}


def counts_left(connection: Database_Connection) -> int:
    """How many counts there are, though nothing is stored that they could count."""
    left = 0
    for table in (context_rows, labelled):
        left += connection.execute(select(func.count()).select_from(table)).scalar_one()
    for table in (labelled_hours, labelled_days):
        wrong = or_(table.c.known != 0, table.c.frauds != 0)
        left += connection.execute(select(func.count()).select_from(table).where(wrong)).scalar_one()
    spans = context_spans.c
    wrong = or_(spans.rows != 0, spans.sum_level != 0, spans.sum_square != 0)
    return int(left + connection.execute(select(func.count()).select_from(context_spans).where(wrong)).scalar_one())
