"""The service in separate processes: start it, watch its processes, and make transactions for it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from balancer.serving.storage import keys
from balancer.serving.storage.database import Database
from benchmarks.lib.commands import BALANCER
from benchmarks.lib.ports import free_port
from benchmarks.lib.service_client import Connection

WAIT = 120.0
"""Seconds that the service may take to start or to answer."""
START = 1.6e9
"""Time of the first transaction, in seconds since 1970; a bank sends thousands of days after it."""
DAY = 86_400.0
SCOPES = ("score", "sessions", "admin", "operator")


class Service:
    """A running `balancer serve`.

    Args:
        folder: folder for its log, ``service.log``.
        database: URL of its database.
        flags: further flags of `balancer serve`.
        workers: number of worker processes.
        prefix: command that runs it, such as `pinned`.
    """

    def __init__(self, folder: Path, database: str, *flags: str, workers: int = 1, prefix: Sequence[str] = ()) -> None:
        self.port, self.log = free_port(), folder / "service.log"
        self.url = f"http://127.0.0.1:{self.port}"
        command = [*prefix, *BALANCER, "serve", "--port", str(self.port), "--database", database, "--rate", "0"]
        self.begun = time.perf_counter()
        with self.log.open("ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
            self.process = subprocess.Popen([*command, "--workers", str(workers), *flags], stderr=log, env=environment)
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self.ready_after = time.perf_counter() - self.begun
        """Seconds until it was ready."""

    def wait_until_ready(self) -> None:
        """Wait until a model is loaded.

        Raises:
            RuntimeError: the service does not answer in time.
        """
        while time.perf_counter() - self.begun < WAIT and self.process.poll() is None:
            try:
                with Connection(self.port, timeout=2) as connection:
                    if connection.get("/readyz")[1].get("model"):
                        return
            except (OSError, ValueError):
                pass
            time.sleep(0.02)
        raise RuntimeError(f"the service does not answer; see {self.log}")

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if "spawn_main" in " ".join(child.cmdline())]

    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            for each in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                each.kill()
            self.process.wait(60)


def pinned(core: int) -> Sequence[str]:
    """A prefix for a command that runs on one CPU core."""
    return ("taskset", "-c", str(core))


def cpu_seconds(process: int) -> float:
    """CPU seconds of a process and all that it started, those included that have ended."""
    root, total = psutil.Process(process), 0.0
    for each in [root, *root.children(recursive=True)]:
        try:
            total += sum(each.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def prepared(url: str, *tenants: str) -> list[str]:
    """Create the tables of a database, and a key of each tenant."""
    database = Database(url, patience=60)
    database.upgrade()
    found = [keys.create(database, tenant, SCOPES)[1] for tenant in tenants]
    database.close()
    return found


def metric(connection: Connection, name: str) -> float:
    """A metric without labels, by its name in the text of /metrics; 0 if it is not there yet."""
    status, content = connection.request("GET", "/metrics")
    if status != 200:
        raise RuntimeError(f"/metrics is answered with {status}")
    values = dict(line.rsplit(" ", 1) for line in content.decode().splitlines() if line and line[0] != "#")
    return float(values.get(name, 0.0))


def transaction(number: int, card: str, time: float, rng: random.Random) -> dict[str, Any]:
    """A random transaction of a card, as a client sends it."""
    return {"transaction_id": f"{card}-{number}", "card_id": card, "time": time, **details(rng)}


def details(rng: random.Random) -> Mapping[str, Any]:
    """Random values of a transaction that name neither the card nor the time."""
    return {
        "amount": round(rng.lognormvariate(3, 1), 2),
        "merchant_id": f"m{rng.randrange(300)}",
        "merchant_category": rng.choice(["grocery", "fuel", "travel", "online"]),
        "channel": rng.choice(["chip", "online"]),
        "region": f"r{rng.randrange(5)}",
        "distance_km": round(rng.expovariate(0.1), 2),
    }
