"""The service: what a transaction takes, whatever the history behind it, and whether anything is lost when it is treated badly.

Claims:
- latency: one worker on one core, history 2,048, a transaction a request: 99 % within 10 ms, and no more than 1.3 times that with 64 transactions behind.
- throughput: reading on from the kept state against showing the model the whole window again.
- trouble: minutes at half the peak rate with a model swap, label uploads, a worker killed every minute and a database that is stopped in the middle. No
  accepted transaction is lost, none counts twice, and the scores are those of an unbroken replay.

The model is one of the default size for long histories (64 channels, 2 layers, window 64, 8 global nodes, history 2,048), hardly trained: what it says is
no matter here. Server and client are held on cores of their own.

    python benchmarks/service.py                 # all -> benchmarks/results/service.json
    python benchmarks/service.py --only latency
    python benchmarks/service.py --minutes 10    # of trouble
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from recording import RESULTS, ROOT, record
from sqlalchemy import select

from balancer.cli import main as balancer
from balancer.data.simulation.stream import simulate, write_simulation
from balancer.serving.scoring.registry import LoadedModel
from balancer.serving.scoring.scorer import Scorer, read_row
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import entities, transactions

sys.path.insert(0, str(ROOT / "tests"))
from serving_tools import Postgres, free_port

HISTORIES = (64, 256, 1024, 2047)
MEASURED = 400
WAIT = 120.0
SIZE = ("--history", "2048", "--epochs", "1", "--steps-per-epoch", "3", "--policy", "constant", "--threads", "1")


def trained(folder: Path, name: str, seed: int) -> Path:
    table = folder / "transactions.parquet"
    if not table.exists():
        write_simulation(simulate(6_000, seed=3, fraud_rate=0.03), table)
    assert balancer(["train", "--dataset", str(table), "--out", str(folder / "models" / name), "--seed", str(seed), *SIZE]) == 0
    return folder / "models" / name


class Service:
    """`balancer serve` in processes of its own."""

    def __init__(self, folder: Path, database: str, *flags: str, workers: int = 1, core: int | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        held = [] if core is None else ["taskset", "-c", str(core)]
        command = [*held, sys.executable, "-m", "balancer", "serve", "--port", str(self.port), "--database", database, "--rate", "0"]
        with (folder / "service.log").open("ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
            self.process = subprocess.Popen([*command, "--workers", str(workers), *flags], stderr=log, env=environment)
        self.ready()

    def ready(self) -> None:
        for _ in range(int(WAIT * 10)):
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2).json().get("model"):
                    return
            except (httpx.TransportError, ValueError):
                pass
            time.sleep(0.1)
        raise RuntimeError("the service does not answer; see service.log")

    def workers(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.process.pid).children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def row(number: int, card: str, moment: float, rng: random.Random) -> dict[str, Any]:
    return {
        "transaction_id": f"{card}-{number}",
        "card_id": card,
        "time": moment,
        "amount": round(rng.lognormvariate(3, 1), 2),
        "merchant_id": f"m{rng.randrange(300)}",
        "merchant_category": rng.choice(["grocery", "fuel", "travel", "online"]),
        "channel": rng.choice(["chip", "online"]),
        "region": f"r{rng.randrange(5)}",
        "distance_km": round(rng.expovariate(0.1), 2),
    }


def latency(folder: Path, run: Path) -> dict[str, Any]:
    service = Service(folder, f"sqlite:///{folder / 'latency.db'}", "--run", str(run), core=0)
    os.sched_setaffinity(0, {1} if (os.cpu_count() or 1) > 1 else {0})
    rng, found = random.Random(0), {}
    try:
        with httpx.Client(base_url=service.url, timeout=600) as client:
            moments: dict[int, float] = {}
            for length in HISTORIES:
                rows = [row(number, f"h{length}", 1.7e9 + 3000.0 * number, rng) for number in range(length)]
                for first in range(0, length, 250):
                    client.post("/v1/score", json={"transactions": rows[first : first + 250]}).raise_for_status()
                moments[length] = 1.7e9 + 3000.0 * length
            times: dict[int, list[float]] = {length: [] for length in HISTORIES}
            for turn in range(MEASURED + 20):
                for length in HISTORIES:  # in turns, so that what disturbs the machine disturbs all of them alike
                    moments[length] += 3000.0
                    body = {"transactions": [row(length + turn, f"h{length}", moments[length], rng)]}
                    begun = time.perf_counter()
                    client.post("/v1/score", json=body).raise_for_status()
                    if turn >= 20:
                        times[length].append(1e3 * (time.perf_counter() - begun))
            for length, own in times.items():
                p50, p99 = np.percentile(own, [50, 99])
                found[str(length)] = {"ms_p50": round(float(p50), 2), "ms_p99": round(float(p99), 2)}
            begun, done = time.perf_counter(), 0
            while time.perf_counter() - begun < 10:
                moments[64] += 3000.0
                rows = [row(10_000 + done + number, "h64", moments[64] + number, rng) for number in range(50)]
                client.post("/v1/score", json={"transactions": rows}).raise_for_status()
                done += 50
                moments[64] += 50
            fifty = done / (time.perf_counter() - begun)
    finally:
        service.stop()
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    last, first = found[str(HISTORIES[-1])], found[str(HISTORIES[0])]
    return {
        "by_history": found,
        "requests": MEASURED,
        "ratio_p50": round(last["ms_p50"] / first["ms_p50"], 3),
        "ratio_p99": round(last["ms_p99"] / first["ms_p99"], 3),
        "transactions_per_second_fifty_a_request": round(fifty, 1),
    }


def throughput(run: Path) -> dict[str, Any]:
    """The model alone, side by side: a step from the state, and the window shown again."""
    model = LoadedModel.load(run, "run")
    width, rng = len(model.schema.numeric_fields) + len(model.schema.categorical_fields), np.random.default_rng(0)
    fields = rng.random((2048, width)).astype(np.float32)
    state = model.stream.read(fields[:-1], 2047)
    ways = {"step": lambda: model.stream.step(fields[-1], state), "window_again": lambda: model.stream._judged(torch.tensor(fields))}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for turn in range(33):
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                if turn >= 3:
                    seconds[name].append(time.perf_counter() - begun)
    each = {name: float(np.median(own)) for name, own in seconds.items()}
    return {
        "ms": {name: round(1e3 * value, 2) for name, value in each.items()},
        "times_faster": round(each["window_again"] / each["step"], 1),
    }


class Bank:
    """Sends transactions day by day and never gives up on one."""

    def __init__(self, url: str, key: str, cards: int, threads: int) -> None:
        self.url, self.headers, self.threads = url, {"Authorization": f"Bearer {key}"}, threads
        self.cards = [f"card-{number}" for number in range(cards)]
        self.accepted: dict[str, dict[str, Any]] = {}
        self.sent: dict[str, dict[str, Any]] = {}
        self.refused = self.retries = 0
        self._lock, self._clients = threading.Lock(), [httpx.Client(base_url=url, headers=self.headers, timeout=60) for _ in range(threads)]

    def until_answered(self, client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT
        while True:
            try:
                answer = client.post(path, json=body)
                if answer.status_code == 200:
                    return dict(answer.json())
                if answer.status_code < 500:
                    raise RuntimeError(answer.text)
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path} was not answered within {WAIT} s")
            self.retries += 1
            time.sleep(0.1)

    def day(self, number: int, rate: float) -> None:
        """A transaction of each card, `rate` a second in all."""
        rng = random.Random(number)
        rows = [row(number, card, 1.7e9 + 86_400.0 * number + rng.random() * 86_000, rng) for card in self.cards]

        def work(thread: int) -> None:
            begun = time.monotonic()
            for place, one in enumerate(rows[thread :: self.threads]):
                pause = begun + place * self.threads / rate - time.monotonic() if rate else 0.0
                if pause > 0:
                    time.sleep(pause)
                answer = self.until_answered(self._clients[thread], "/v1/score", {"transactions": [one]})["decisions"][0]
                with self._lock:
                    self.sent[one["transaction_id"]], self.accepted[one["transaction_id"]] = one, answer

        with ThreadPoolExecutor(self.threads) as pool:
            for done in [pool.submit(work, thread) for thread in range(self.threads)]:
                done.result()

    def labels_of(self, number: int) -> dict[str, str]:
        """What is known of a day's transactions: every thirtieth is fraud."""
        names = [f"{card}-{number}" for card in self.cards]
        return {name: "1" if hash_of(name) % 30 == 0 else "0" for name in names}

    def label(self, number: int) -> None:
        labels = [{"id": name, "label": label} for name, label in self.labels_of(number).items()]
        self.until_answered(self._clients[0], "/v1/labels", {"labels": labels})


def hash_of(name: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(name))


def trouble(folder: Path, minutes: float) -> dict[str, Any]:
    place = Path(tempfile.mkdtemp(prefix="postgres-"))
    postgres = Postgres(place)
    url = postgres.database("bank")
    database = Database(url, patience=60)
    database.upgrade()
    key, warm = (keys.create(database, tenant, ("score", "admin"))[1] for tenant in ("bank", "warm"))
    models = folder / "models"
    service = Service(folder, url, "--run", str(models / "one"), "--models", str(models), workers=2)
    try:
        probe = Bank(service.url, warm, 400, 4)
        begun = time.monotonic()
        for number in range(4):
            probe.day(number, 0.0)
        peak = len(probe.accepted) / (time.monotonic() - begun)
        bank, end = Bank(service.url, key, 400, 4), time.monotonic() + 60 * minutes
        kills, restarts, stop = 0, 0, threading.Event()

        def misfortune() -> None:
            nonlocal kills, restarts
            begun = time.monotonic()
            while not stop.wait(60.0):
                found = service.workers()
                if found:
                    found[kills % len(found)].send_signal(signal.SIGKILL)
                    kills += 1
                if not restarts and time.monotonic() - begun > 20 * minutes:
                    postgres.stop("immediate")
                    time.sleep(3)
                    postgres.start()
                    restarts += 1

        trouble_maker = threading.Thread(target=misfortune)
        trouble_maker.start()
        number, swapped = 0, None
        while time.monotonic() < end:
            if number >= 7:
                bank.label(number - 7)
            if swapped is None and time.monotonic() > end - 30 * minutes:
                with httpx.Client(base_url=service.url, headers=bank.headers, timeout=60) as client:
                    bank.until_answered(client, "/v1/models", {"name": "two"})
                time.sleep(5)  # both workers have followed
                swapped = number
            bank.day(number, peak / 2)
            number += 1
        stop.set()
        trouble_maker.join()
    finally:
        service.stop()

    def stored(connection: Any) -> list[Any]:
        columns = (transactions.c.id, entities.c.name, transactions.c.position, transactions.c.answer)
        chosen = select(*columns).join(entities, entities.c.id == transactions.c.entity).where(transactions.c.tenant == "bank")
        return list(connection.execute(chosen.order_by(entities.c.name, transactions.c.position)))

    kept = database.read(stored)
    database.close()
    postgres.stop()
    names = [each.id for each in kept]
    by_name = {each.id: each.answer for each in kept}
    unbroken = replayed(folder, bank, number, swapped)
    equal = sum(by_name.get(name, {}).get("score") == score for name, score in unbroken.items())
    off = max((abs(by_name[name]["score"] - score) for name, score in unbroken.items() if name in by_name), default=0.0)
    return {
        "minutes": minutes,
        "workers": 2,
        "database": "PostgreSQL",
        "peak_per_second": round(peak, 1),
        "workers_killed": kills,
        "database_restarts": restarts,
        "model_swaps": int(swapped is not None),
        "labels": 400 * max(0, number - 7),
        "accepted": len(bank.accepted),
        "sent_again": bank.retries,
        "lost": len(set(bank.accepted) - set(names)),
        "counted_twice": len(names) - len(set(names)),
        "stored_though_never_sent": len(set(names) - set(bank.sent)),
        "answers_differing_from_what_is_stored": sum(
            by_name.get(name, {}).get("score") != answer["score"] for name, answer in bank.accepted.items()
        ),
        "scores_equal_to_an_unbroken_replay": equal,
        "largest_difference_from_it": off,
    }


def replayed(folder: Path, bank: Bank, days: int, swapped: int | None) -> dict[str, float]:
    """The same days on one worker and a database of its own, without any trouble."""
    database = Database(f"sqlite:///{folder / 'replay.db'}")
    database.upgrade()
    scorer, models = Scorer(database), {name: LoadedModel.load(folder / "models" / name, name) for name in ("one", "two")}
    scores: dict[str, float] = {}
    for number in range(days):
        model = models["one" if swapped is None or number < swapped else "two"]
        if number >= 7:
            scorer.label("bank", model.schema, dict(bank.labels_of(number - 7)))
        for card in bank.cards:
            one = read_row(bank.sent[f"{card}-{number}"], model.schema, card, time.time(), 0.0)
            answer = scorer.score("bank", model, [one]).answers[0]
            scores[one.id] = answer["score"]
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("latency", "throughput", "trouble"), default=("latency", "throughput", "trouble"))
    parser.add_argument("--minutes", type=float, default=10.0, help="of trouble")
    arguments = parser.parse_args()
    target = RESULTS / "service.json"
    found: dict[str, Any] = json.loads(target.read_text())["results"] if target.exists() else {}
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
    record({"seeds": [0, 1], "results": found}, target)


if __name__ == "__main__":
    main()
