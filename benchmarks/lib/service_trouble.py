"""The service under failures, compared with what was sent and with a replay in one process."""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sqlalchemy import Connection, func, select

from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import (
    context_rows,
    context_spans,
    decisions,
    entities,
    labelled,
    labelled_days,
    labelled_hours,
    transactions,
)
from benchmarks.lib.postgres import Postgres
from benchmarks.lib.service import Service, prepared
from benchmarks.lib.service_bank import Bank, replayed
from benchmarks.lib.service_speed import state_sizes

THREADS = 8
MEMORY = Path("/dev/shm")
"""The database of the replay is here, where there is one: it does not wait for a disk."""
FOLLOW = 5.0
"""Seconds after which every worker uses a new model."""
START_SECONDS = 10.0
"""Least seconds between two kills."""
PROBE_DAYS = 4
"""Days that are sent as fast as possible, by another tenant, to find the peak rate."""


class Failures:
    """Kills a worker every minute and restarts the database once, in a separate thread.

    In a run of a few minutes the kills follow one another faster, but a worker has time to start.
    """

    def __init__(self, service: Service, postgres: Postgres, minutes: float) -> None:
        self.service, self.postgres, self.seconds = service, postgres, 60 * minutes
        self.kills = self.restarts = 0
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        begun = time.monotonic()
        while not self._stop.wait(min(60.0, max(START_SECONDS, self.seconds / 6))):
            workers = self.service.workers()
            if workers:
                workers[self.kills % len(workers)].send_signal(signal.SIGKILL)
                self.kills += 1
            if not self.restarts and time.monotonic() - begun > self.seconds / 3:
                self.postgres.stop("immediate")
                time.sleep(3)
                self.postgres.start()
                self.restarts += 1


class Order:
    """Reads in which order the service stored the transactions of a day.

    It must be read before a card is erased, because its decisions are erased too.
    """

    def __init__(self, database: Database) -> None:
        self.days: list[list[str]] = []
        self._database, self._last = database, 0

    def read(self) -> None:
        """Read the order of one more day."""

        def work(connection: Connection) -> list[Any]:
            column = decisions.c
            chosen = select(column.number, column.transaction).where(column.tenant == "bank", column.kind == "scored")
            return list(connection.execute(chosen.where(column.number > self._last).order_by(column.number)).all())

        rows = self._database.read(work)
        self.days.append([row.transaction for row in rows])
        self._last = rows[-1].number if rows else self._last


def trouble(folder: Path, models: Path, postgres: Postgres, *, minutes: float, cards: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the service under failures; compare what it stored with what was sent and with a replay.

    Args:
        folder: for logs and databases.
        models: folder of the runs ``one`` and ``two``.
        postgres: which is restarted.
        minutes: how long.
        cards: each makes one transaction per day.
        say: shows the progress.
    """
    url = postgres.database("trouble")
    key, warm = prepared(url, "bank", "warm")
    with closing(Database(url, patience=60)) as database:
        service = Service(folder, url, "--run", str(models / "one"), "--models", str(models), workers=2)
        try:
            peak = peak_rate(service, warm, cards)
            bank, order = Bank(service.port, key, cards, THREADS), Order(database)
            begun, swapped = time.monotonic(), None
            failures, number = Failures(service, postgres, minutes), 0
            try:
                while time.monotonic() - begun < 60 * minutes:
                    if swapped is None and time.monotonic() - begun > 30 * minutes:
                        bank.ask("POST", "/v1/models", {"name": "two"})
                        time.sleep(FOLLOW)
                        swapped = number
                    bank.night(number)
                    bank.day(number, peak / 2)
                    order.read()
                    number += 1
                    if number % 10 == 0:
                        say(f"day {number}: {len(bank.accepted):,} transactions, {failures.kills} kills, {failures.restarts} restarts")
            finally:
                failures.stop()
        finally:
            service.stop()
        found: dict[str, Any] = dict(compared(database, bank, swapped))
        found["state_bytes_a_card"] = float(np.mean(list(state_sizes(database, "bank").values()) or [0]))
    runs = {name: models / name for name in ("one", "two")}
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else folder) as name:
        replay = replayed(f"sqlite:///{name}/replay.db", bank, order.days, runs, say)
    differences = [abs(bank.accepted[name]["score"] - score) for name, score in replay.scores.items()]
    differences += [abs(bank.amended[name]["score"] - score) for name, score in replay.amended.items()]
    return {
        "minutes": minutes,
        "workers": 2,
        "database": "PostgreSQL",
        "peak_per_second": peak,
        "workers_killed": failures.kills,
        "database_restarts": failures.restarts,
        "model_swaps": int(swapped is not None),
        "labels": sum(len(night.labels) for night in bank.nights),
        "labels_removed": sum(len(night.retracted) for night in bank.nights),
        "cards_erased": sum(night.erased is not None for night in bank.nights),
        "amounts_corrected": len(bank.amended),
        "accepted": len(bank.accepted),
        "sent_again": bank.retries,
        **found,
        "scores_compared_with_a_replay": len(differences),
        "scores_missing_in_it": len(set(bank.accepted) - set(replay.scores)) + len(set(bank.amended) - set(replay.amended)),
        "scores_equal_to_it": sum(difference == 0 for difference in differences),
        "largest_difference_from_it": max(differences, default=0.0),
    }


def peak_rate(service: Service, key: str, cards: int) -> float:
    """Transactions a second of a bank that sends as fast as it can."""
    probe = Bank(service.port, key, cards, THREADS)
    begun = time.monotonic()
    for number in range(PROBE_DAYS):
        probe.day(number, 0.0)
    return len(probe.accepted) / (time.monotonic() - begun)


def compared(database: Database, bank: Bank, swapped: int | None) -> dict[str, int]:
    """What the database holds, compared with what was sent and answered."""

    def stored(connection: Connection) -> list[Any]:
        columns = transactions.c
        chosen = select(columns.id, columns.position, columns.answer, entities.c.name, entities.c.rows)
        joined = chosen.join(entities, entities.c.id == columns.entity).where(columns.tenant == "bank")
        return list(connection.execute(joined.order_by(entities.c.name, columns.position)))

    rows = database.read(stored)
    names, answers = [row.id for row in rows], {row.id: row.answer for row in rows}
    cards: dict[str, list[Any]] = {}
    for row in rows:
        cards.setdefault(row.name, []).append(row)
    kept = {name: answer for name, answer in bank.accepted.items() if name not in bank.erased}
    return {
        "lost": len(set(kept) - set(names)),
        "counted_twice": len(names) - len(set(names)),
        "cards_with_wrong_counts": sum([row.position for row in each] != list(range(each[0].rows)) for each in cards.values()),
        "sums_that_differ_from_their_rows": database.read(wrong_sums),
        "stored_though_never_sent": len(set(names) - set(bank.sent)),
        "stored_though_erased": len(set(names) & bank.erased),
        "answers_differing_from_what_is_stored": sum(
            answers.get(name, {}).get("score") != answer["score"] for name, answer in kept.items()
        ),
        "scored_by_the_old_model_after_the_swap": 0
        if swapped is None
        else sum(answer["model"] != "two" for name, answer in bank.accepted.items() if int(name.rsplit("-", 1)[1]) >= swapped),
    }


def wrong_sums(connection: Connection) -> int:
    """How many totals differ from the rows that they count: labels, frauds, transactions."""

    def total(column: Any, *where: Any) -> int:
        return int(connection.execute(select(func.coalesce(func.sum(column), 0)).where(*where)).scalar_one())

    def count(table: Any, *where: Any) -> int:
        return int(connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one())

    known, frauds = count(labelled), count(labelled, labelled.c.fraud)
    pairs = [(total(table.c.known), known) for table in (labelled_hours, labelled_days)]
    pairs += [(total(table.c.frauds), frauds) for table in (labelled_hours, labelled_days)]
    pairs += [(total(context_spans.c.rows, context_spans.c.width == 0), count(context_rows))]
    return sum(one != other for one, other in pairs)


def ended(processes: list[psutil.Process]) -> int:
    """How many of these processes have ended."""
    return sum(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in processes)
