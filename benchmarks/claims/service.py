"""The service: latency with short and long histories, and correctness under failures.

Claims:

- latency: with one worker on one core, a history of 2,048 and one transaction per request, 99 % of the
  requests take at most 10 ms, and at most 1.3 times as long as with a history of 64 transactions.
- throughput: reading one more transaction from the stored state is faster than reading the whole window
  again; the result says how many times.
- trouble: for some minutes the service runs at half of its peak rate, with a model swap, label uploads, a
  worker killed every minute, and a restart of the database. No accepted transaction is lost, none is counted
  twice, and the scores are those of an uninterrupted replay.

The model has the default size for long histories (64 channels, 2 layers, window 64, 8 global nodes, history
2,048). It is hardly trained, because the quality of its scores does not matter here. Server and client run on
different cores.

    python -m benchmarks.claims.service                 # all -> benchmarks/results/service.json
    python -m benchmarks.claims.service --only latency  # one part; the recorded others are kept
    python -m benchmarks.claims.service --minutes 10    # length of the part trouble
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from sqlalchemy import Connection, select

from balancer.cli import main as balancer
from balancer.data.simulation.stream import simulate, write_simulation
from balancer.devices import torch_threads
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.parsing import parse_transaction
from balancer.serving.scoring.registry import LoadedModel
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import entities, transactions
from benchmarks.lib.commands import parser
from benchmarks.lib.postgres import Postgres
from benchmarks.lib.recording import RESULTS, record, recorded
from benchmarks.lib.service import START, Bank, Service, transaction
from benchmarks.lib.timing import Call

PARTS = ("latency", "throughput", "trouble")
HISTORIES = (64, 256, 1024, 2047)
"""Transactions before the timed one."""
MEASURED, WARMUP = 400, 20
"""Timed requests, and requests before them that are not counted."""
GAP = 3000.0
"""Seconds between two transactions of a card."""
LABEL_DELAY_DAYS = 7
CARDS, THREADS = 400, 4
SIZE = ("--history-length", "2048", "--epochs", "1", "--steps-per-epoch", "3", "--policy", "constant", "--threads", "1")


def trained(folder: Path, name: str, seed: int) -> Path:
    """Train a model for a few steps, and return its run folder."""
    table = folder / "transactions.parquet"
    if not table.exists():
        write_simulation(simulate(6_000, seed=3, fraud_rate=0.03), table)
    if balancer(["train", "--dataset", str(table), "--out", str(folder / "models" / name), "--seed", str(seed), *SIZE]):
        raise SystemExit("balancer train failed")
    return folder / "models" / name


def latency(folder: Path, run: Path) -> dict[str, Any]:
    """Milliseconds of a request by length of the history, and the rate with 50 transactions per request."""
    service = Service(folder, f"sqlite:///{folder / 'latency.db'}", "--run", str(run), core=0)
    os.sched_setaffinity(0, {1} if (os.cpu_count() or 1) > 1 else {0})
    rng, found = random.Random(0), {}
    try:
        with httpx.Client(base_url=service.url, timeout=600) as client:
            moments: dict[int, float] = {}
            for length in HISTORIES:
                rows = [transaction(number, f"h{length}", START + GAP * number, rng) for number in range(length)]
                for first in range(0, length, 250):
                    client.post("/v1/score", json={"transactions": rows[first : first + 250]}).raise_for_status()
                moments[length] = START + GAP * length
            times: dict[int, list[float]] = {length: [] for length in HISTORIES}
            for turn in range(MEASURED + WARMUP):
                for length in HISTORIES:  # in turns, so that what slows the machine down slows all of them
                    moments[length] += GAP
                    body = {"transactions": [transaction(length + turn, f"h{length}", moments[length], rng)]}
                    begun = time.perf_counter()
                    client.post("/v1/score", json=body).raise_for_status()
                    if turn >= WARMUP:
                        times[length].append(1e3 * (time.perf_counter() - begun))
            for length, milliseconds in times.items():
                p50, p99 = np.percentile(milliseconds, [50, 99])
                found[str(length)] = {"ms_p50": round(float(p50), 2), "ms_p99": round(float(p99), 2)}
            begun, done = time.perf_counter(), 0
            while time.perf_counter() - begun < 10:
                moments[64] += GAP
                rows = [transaction(10_000 + done + number, "h64", moments[64] + number, rng) for number in range(50)]
                client.post("/v1/score", json={"transactions": rows}).raise_for_status()
                done += 50
                moments[64] += 50
            fifty = done / (time.perf_counter() - begun)
    finally:
        service.stop()
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    last, first_found = found[str(HISTORIES[-1])], found[str(HISTORIES[0])]
    return {
        "by_history": found,
        "requests": MEASURED,
        "ratio_p50": round(last["ms_p50"] / first_found["ms_p50"], 3),
        "ratio_p99": round(last["ms_p99"] / first_found["ms_p99"], 3),
        "transactions_per_second_fifty_a_request": round(fifty, 1),
    }


@torch_threads(1)
def throughput(run: Path) -> dict[str, Any]:
    """Compare, without the service, one step from a state with reading the whole window again."""
    model = LoadedModel.load(run, "run")
    width, rng = len(model.schema.numeric_fields) + len(model.schema.categorical_fields), np.random.default_rng(0)
    fields = rng.random((2048, width)).astype(np.float32)
    stream = model.stream
    assert stream is not None
    state = stream.read(fields[:-1], 2047)
    ways: dict[str, Call] = {
        "step": lambda: stream.step(fields[-1], state),
        "window_again": lambda: stream._score_last(torch.tensor(fields)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for turn in range(33):
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                if turn >= 3:
                    seconds[name].append(time.perf_counter() - begun)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {
        "ms": {name: round(1e3 * value, 2) for name, value in medians.items()},
        "times_faster": round(medians["window_again"] / medians["step"], 1),
    }


class Trouble:
    """Kills a worker every minute and restarts the database once, in a separate thread."""

    def __init__(self, service: Service, postgres: Postgres, minutes: float) -> None:
        self.service, self.postgres, self.minutes = service, postgres, minutes
        self.kills = self.restarts = 0
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        begun = time.monotonic()
        while not self._stop.wait(60.0):
            workers = self.service.workers()
            if workers:
                workers[self.kills % len(workers)].send_signal(signal.SIGKILL)
                self.kills += 1
            if not self.restarts and time.monotonic() - begun > 20 * self.minutes:
                self.postgres.stop("immediate")
                time.sleep(3)
                self.postgres.start()
                self.restarts += 1


def trouble(folder: Path, minutes: float) -> dict[str, Any]:
    """Run the service under failures; compare what it stored with what was sent and with a replay."""
    postgres = Postgres(Path(tempfile.mkdtemp(prefix="postgres-")))
    url = postgres.database("bank")
    database = Database(url, patience=60)
    database.upgrade()
    key, warm = (keys.create(database, tenant, ("score", "operator"))[1] for tenant in ("bank", "warm"))
    models = folder / "models"
    service = Service(folder, url, "--run", str(models / "one"), "--models", str(models), workers=2)
    try:
        probe = Bank(service.url, warm, CARDS, THREADS)
        begun = time.monotonic()
        for number in range(4):
            probe.day(number, 0.0)
        peak = len(probe.accepted) / (time.monotonic() - begun)
        bank, end = Bank(service.url, key, CARDS, THREADS), time.monotonic() + 60 * minutes
        failures = Trouble(service, postgres, minutes)
        number, swapped = 0, None
        while time.monotonic() < end:
            if number >= LABEL_DELAY_DAYS:
                bank.label(number - LABEL_DELAY_DAYS)
            if swapped is None and time.monotonic() > end - 30 * minutes:
                bank.post("/v1/models", {"name": "two"})
                time.sleep(5)  # by now both workers use the new model
                swapped = number
            bank.day(number, peak / 2)
            number += 1
        failures.stop()
    finally:
        service.stop()

    def stored(connection: Connection) -> list[Any]:
        columns = (transactions.c.id, entities.c.name, transactions.c.position, transactions.c.answer)
        chosen = select(*columns).join(entities, entities.c.id == transactions.c.entity).where(transactions.c.tenant == "bank")
        return list(connection.execute(chosen.order_by(entities.c.name, transactions.c.position)))

    rows = database.read(stored)
    database.close()
    postgres.stop()
    names = [row.id for row in rows]
    answers = {row.id: row.answer for row in rows}
    replay = replayed(folder, bank, number, swapped)
    equal = sum(answers.get(name, {}).get("score") == score for name, score in replay.items())
    largest = max((abs(answers[name]["score"] - score) for name, score in replay.items() if name in answers), default=0.0)
    return {
        "minutes": minutes,
        "workers": 2,
        "database": "PostgreSQL",
        "peak_per_second": round(peak, 1),
        "workers_killed": failures.kills,
        "database_restarts": failures.restarts,
        "model_swaps": int(swapped is not None),
        "labels": CARDS * max(0, number - LABEL_DELAY_DAYS),
        "accepted": len(bank.accepted),
        "sent_again": bank.retries,
        "lost": len(set(bank.accepted) - set(names)),
        "counted_twice": len(names) - len(set(names)),
        "stored_though_never_sent": len(set(names) - set(bank.sent)),
        "answers_differing_from_what_is_stored": sum(
            answers.get(name, {}).get("score") != answer["score"] for name, answer in bank.accepted.items()
        ),
        "scores_equal_to_an_unbroken_replay": equal,
        "largest_difference_from_it": largest,
    }


def replayed(folder: Path, bank: Bank, days: int, swapped: int | None) -> dict[str, float]:
    """Scores by id of the same days in one process with a new database, without failures."""
    database = Database(f"sqlite:///{folder / 'replay.db'}")
    database.upgrade()
    scorer, models = Scorer(database), {name: LoadedModel.load(folder / "models" / name, name) for name in ("one", "two")}
    scores: dict[str, float] = {}
    for number in range(days):
        model = models["one" if swapped is None or number < swapped else "two"]
        if number >= LABEL_DELAY_DAYS:
            Entities(database).label("bank", model.schema, dict(bank.labels_of(number - LABEL_DELAY_DAYS)))
        for card in bank.cards:
            row = parse_transaction(bank.sent[f"{card}-{number}"], model.schema, card, time.time(), 0.0)
            scores[row.id] = scorer.score("bank", model, [row]).answers[0]["score"]
    return scores


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    options.add_argument("--minutes", type=float, default=10.0, help="length of the part trouble")
    arguments = options.parse_args()
    path = RESULTS / "service.json"
    found = recorded(path).get("results", {})
    with tempfile.TemporaryDirectory(prefix="balancer-service-") as name:
        folder = Path(name)
        run = trained(folder, "one", 0)
        if "latency" in arguments.only:
            found["latency"] = latency(folder, run)
            print(json.dumps(found["latency"]), flush=True)
        if "throughput" in arguments.only:
            found["throughput"] = throughput(run)
            print(json.dumps(found["throughput"]), flush=True)
        if "trouble" in arguments.only:
            trained(folder, "two", 1)
            found["trouble"] = trouble(folder, arguments.minutes)
            print(json.dumps(found["trouble"]), flush=True)
    record({"seeds": [0, 1], "results": found}, path)


if __name__ == "__main__":
    main()
