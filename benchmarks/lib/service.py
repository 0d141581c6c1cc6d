"""The service in separate processes, and a client that sends it transactions like a bank."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.lib.commands import BALANCER
from benchmarks.lib.ports import free_port

WAIT = 120.0
"""Seconds that the service may take to start or to answer."""
START = 1.7e9
"""Time of the first transaction, in seconds since 1970."""
DAY = 86_400.0


class Service:
    """A running `balancer serve`.

    Args:
        folder: folder for its log, ``service.log``.
        database: URL of its database.
        flags: further flags of `balancer serve`.
        workers: number of worker processes.
        core: CPU core to run on; None for all.
    """

    def __init__(self, folder: Path, database: str, *flags: str, workers: int = 1, core: int | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        command = [*pinned, *BALANCER, "serve", "--port", str(self.port), "--database", database, "--rate", "0"]
        with (folder / "service.log").open("ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
            self.process = subprocess.Popen([*command, "--workers", str(workers), *flags], stderr=log, env=environment)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until a model is loaded.

        Raises:
            RuntimeError: the service does not answer in time.
        """
        for _ in range(int(WAIT * 10)):
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2).json().get("model"):
                    return
            except (httpx.TransportError, ValueError):
                pass
            time.sleep(0.1)
        raise RuntimeError("the service does not answer; see service.log")

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        return [child for child in psutil.Process(self.process.pid).children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]

    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def transaction(number: int, card: str, time: float, rng: random.Random) -> dict[str, Any]:
    """A random transaction of a card, as a client sends it."""
    return {
        "transaction_id": f"{card}-{number}",
        "card_id": card,
        "time": time,
        "amount": round(rng.lognormvariate(3, 1), 2),
        "merchant_id": f"m{rng.randrange(300)}",
        "merchant_category": rng.choice(["grocery", "fuel", "travel", "online"]),
        "channel": rng.choice(["chip", "online"]),
        "region": f"r{rng.randrange(5)}",
        "distance_km": round(rng.expovariate(0.1), 2),
    }


class Bank:
    """A client that sends transactions day by day, and repeats each request until it is answered.

    Args:
        url: address of the service.
        key: API key.
        cards: number of cards; each makes one transaction per day.
        threads: requests that are sent at the same time.
    """

    def __init__(self, url: str, key: str, cards: int, threads: int) -> None:
        self.url, self.headers, self.threads = url, {"Authorization": f"Bearer {key}"}, threads
        self.cards = [f"card-{number}" for number in range(cards)]
        self.accepted: dict[str, dict[str, Any]] = {}
        self.sent: dict[str, dict[str, Any]] = {}
        self.retries = 0
        self._lock, self._clients = threading.Lock(), [httpx.Client(base_url=url, headers=self.headers, timeout=60) for _ in range(threads)]

    def post(self, path: str, body: dict[str, Any], thread: int = 0) -> dict[str, Any]:
        """Send a request until it is answered, and return the answer.

        Raises:
            RuntimeError: the service refused the request, or did not answer in time.
        """
        deadline = time.monotonic() + WAIT
        while True:
            try:
                answer = self._clients[thread].post(path, json=body)
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
        """Send one transaction of each card, ``rate`` per second in all; 0 is as fast as possible."""
        rng = random.Random(number)
        rows = [transaction(number, card, START + DAY * number + rng.random() * 86_000, rng) for card in self.cards]

        def work(thread: int) -> None:
            begun = time.monotonic()
            for place, row in enumerate(rows[thread :: self.threads]):
                pause = begun + place * self.threads / rate - time.monotonic() if rate else 0.0
                if pause > 0:
                    time.sleep(pause)
                answer = self.post("/v1/score", {"transactions": [row]}, thread)["decisions"][0]
                with self._lock:
                    self.sent[row["transaction_id"]], self.accepted[row["transaction_id"]] = row, answer

        with ThreadPoolExecutor(self.threads) as pool:
            for done in [pool.submit(work, thread) for thread in range(self.threads)]:
                done.result()

    def labels_of(self, number: int) -> dict[str, str]:
        """Labels of a day's transactions by id: about every thirtieth is fraud."""
        names = [f"{card}-{number}" for card in self.cards]
        return {name: "1" if hash_of(name) % 30 == 0 else "0" for name in names}

    def label(self, number: int) -> None:
        """Upload the labels of a day."""
        self.post("/v1/labels", {"labels": [{"id": name, "label": label} for name, label in self.labels_of(number).items()]})


def hash_of(name: str) -> int:
    """A hash that is the same in every process."""
    return sum(ord(letter) * 31**place for place, letter in enumerate(name))
