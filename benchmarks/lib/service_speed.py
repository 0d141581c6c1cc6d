"""Latency of the service by length of the history, its throughput, and its state on disk."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sqlalchemy import select

from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.scoring.parsing import parse_transaction
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import entities, entity_states
from benchmarks.lib.postgres import Postgres
from benchmarks.lib.service import START, Service, cpu_seconds, details, metric, pinned, prepared, transaction
from benchmarks.lib.service_client import Bodies, Connection, load

HISTORIES = (64, 256, 1024, 2047)
"""Transactions of a card before the timed ones."""
CARDS = 8
"""Cards of each length, which take turns, so that their histories hardly grow."""
GAP = 3000.0
"""Seconds between two transactions of a card."""
STATE_HISTORIES = (64, 500, 1500, 2047)
CELLS = ((32, 1), (8, 100), (32, 100))
"""Clients, and transactions in each of their requests."""
SERVICES = (("sqlite", 1), ("sqlite", 2), ("postgresql", 2))
"""Database and number of workers."""

Found = dict[str, Any]
Say = Callable[[str], None]


class Disk:
    """Times how long the disk takes to keep 4 kB.

    The file has its full size from the start, as a log that is written over again. Otherwise the disk would
    write its directory too.

    Args:
        folder: folder of the file.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._place = os.open(folder / "disk", os.O_RDWR | os.O_CREAT), 0
        os.pwrite(self._file, bytes(1 << 20), 0)
        os.fsync(self._file)

    def seconds(self) -> float:
        """Write and wait for the disk."""
        self._place = (self._place + 4096) % (1 << 20)
        content = os.urandom(4096)
        begun = time.perf_counter()
        os.pwrite(self._file, content, self._place)
        os.fdatasync(self._file)
        return time.perf_counter() - begun

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run this process on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Median and 99th percentile in milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99])
    return 1e3 * float(p50), 1e3 * float(p99)


def latency(folder: Path, run: Path, postgres: Postgres | None, requests: int, histories: tuple[int, ...], say: Say) -> Found:
    """Milliseconds of a request with one transaction by database and length of the history.

    One worker runs on the first core and the client on the second; PostgreSQL may use both. Before every
    request the disk is timed.
    """
    urls = {"sqlite": f"sqlite:///{folder / 'latency.db'}"}
    if postgres is not None:
        urls["postgresql"] = postgres.database("latency")
    found: Found = {"requests": requests, "cards_of_each_length": CARDS, "databases": {}}
    with ExitStack() as stack:
        stack.enter_context(on_core(min(1, (os.cpu_count() or 1) - 1)))
        disk, rng = stack.enter_context(closing(Disk(folder))), random.Random(0)
        services, clients = {}, {}
        for name, url in urls.items():
            (key,) = prepared(url, "bank")
            services[name] = Service(folder, url, "--run", str(run), prefix=pinned(0))
            stack.callback(services[name].stop)
            clients[name] = stack.enter_context(Connection(services[name].port, key))
            for length in histories:
                say(f"{name}: {CARDS} cards of {length} transactions")
                for card in range(CARDS):
                    rows = [transaction(place, f"h{length}-{card}", START + GAP * place, rng) for place in range(length)]
                    for first in range(0, length, 250):
                        accept(clients[name], json.dumps({"transactions": rows[first : first + 250]}).encode())
        times: dict[tuple[str, int], list[float]] = {(name, length): [] for name in urls for length in histories}
        disk_times: dict[str, list[float]] = {name: [] for name in urls}
        warmup = max(CARDS, requests // 20)
        for name, client in clients.items():  # one after the other: the worker has its core and its cache for itself
            used = 0.0
            for turn in range(warmup + requests):
                if turn == warmup:
                    used = cpu_seconds(services[name].process.pid)
                if turn % 100 == 0:
                    say(f"{name}: request {turn} of {warmup + requests}")
                for length in histories:  # in turns, so that what slows the machine down slows all of them
                    place = length + turn // CARDS
                    one = transaction(place, f"h{length}-{turn % CARDS}", START + GAP * place, rng)
                    body = json.dumps({"transactions": [one]}).encode()
                    waited = disk.seconds()
                    begun = time.perf_counter()
                    accept(client, body)
                    took = time.perf_counter() - begun
                    if turn >= warmup:
                        times[name, length].append(took)
                        disk_times[name].append(waited)
            cpu = (cpu_seconds(services[name].process.pid) - used) / (requests * len(histories))
            found["databases"][name] = latencies({length: times[name, length] for length in histories}, disk_times[name])
            found["databases"][name]["service_cpu_ms_a_request"] = 1e3 * cpu
    return found


def accept(client: Connection, body: bytes) -> None:
    """Have transactions scored.

    Raises:
        RuntimeError: the service refuses them.
    """
    status, content = client.request("POST", "/v1/score", body)
    if status != 200:
        raise RuntimeError(f"status {status}: {content[:300].decode()}")


def latencies(times: dict[int, list[float]], disk: list[float]) -> Found:
    """Percentiles by history, with and without those of the disk, and the ratio of longest to shortest."""
    disk50, disk99 = percentiles(disk)
    by_history: Found = {}
    for length, seconds in times.items():
        p50, p99 = percentiles(seconds)
        by_history[str(length)] = {"ms_p50": p50, "ms_p99": p99, "less_disk_ms_p50": p50 - disk50, "less_disk_ms_p99": p99 - disk99}
    first, *_, last = by_history.values()
    ratios = {f"ratio_{name}": last[f"ms_{name}"] / first[f"ms_{name}"] for name in ("p50", "p99")}
    return {"by_history": by_history, "disk": {"ms_p50": disk50, "ms_p99": disk99}, **ratios}


def throughput(folder: Path, run: Path, postgres: Postgres | None, seconds: float, say: Say) -> Found:
    """Transactions a second, CPU time and bytes of the log, by database, workers, clients and rows."""
    found: Found = {"seconds": seconds, "cells": []}
    for database, workers in SERVICES:
        if database == "postgresql" and postgres is None:
            continue
        path = folder / f"throughput-{workers}.db"
        url = f"sqlite:///{path}" if database == "sqlite" or postgres is None else postgres.database("throughput")
        (key,) = prepared(url, "bank")
        service = Service(folder, url, "--run", str(run), workers=workers)
        try:
            bodies = Bodies(details, START)
            with Connection(service.port, key) as client, closing(Database(url)) as opened:
                for clients, rows in CELLS:
                    load(service.port, key, bodies, clients=clients, rows=rows, seconds=seconds / 5)
                    cell = measured(
                        service, None if database == "sqlite" else postgres, client, opened, bodies, (key, clients, rows), seconds
                    )
                    if database == "sqlite":
                        cell["wal_bytes_a_transaction"] = sqlite_log(path, service.port, key, bodies, (clients, rows), seconds / 5)
                    found["cells"].append({"database": database, "workers": workers, "clients": clients, "rows": rows, **cell})
                    speed, size = cell["transactions_per_second"], cell["rows_of_a_batch"]
                    say(
                        f"{database}, {workers} workers, {clients} clients, {rows} rows: {speed:.0f} a second, {size:.1f} rows committed together"
                    )
        finally:
            service.stop()
    return found


def measured(
    service: Service,
    postgres: Postgres | None,
    client: Connection,
    database: Database,
    bodies: Bodies,
    sent: tuple[str, int, int],
    seconds: float,
) -> Found:
    """A cell of `throughput`: `sent` is the key, the number of clients, and the rows of a request."""
    key, clients, rows = sent

    def counters() -> dict[str, float]:
        batches = {name: metric(client, f"balancer_batch_rows_{name}") for name in ("sum", "count")}
        cpu = {"service": cpu_seconds(service.process.pid), "client": time.process_time()}
        if postgres is None:
            return batches | cpu
        written = database.read(lambda connection: connection.exec_driver_sql(_WRITTEN).scalar_one())
        return batches | cpu | {"database": cpu_seconds(postgres.processes()[0].pid), "written": float(written)}

    before = counters()
    result = load(service.port, key, bodies, clients=clients, rows=rows, seconds=seconds)
    used = {name: value - before[name] for name, value in counters().items()}
    cell = {
        "transactions_per_second": result["transactions"] / result["seconds"],
        "ms_p50": result["ms_p50"],
        "ms_p99": result["ms_p99"],
        "cpu_seconds_per_1000": {
            name: 1e3 * used[name] / result["transactions"] for name in ("service", "database", "client") if name in used
        },
        "rows_of_a_batch": used["sum"] / max(1.0, used["count"]),
    }
    if "written" in used:
        cell["wal_bytes_a_transaction"] = used["written"] / result["transactions"]
    return cell


_WRITTEN = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"


def sqlite_log(path: Path, port: int, key: str, bodies: Bodies, sent: tuple[int, int], seconds: float) -> float:
    """Bytes of SQLite's write-ahead log a transaction.

    Meanwhile a reader keeps SQLite from beginning the log anew, so its size tells what was written.
    """
    clients, rows = sent
    log = path.with_name(f"{path.name}-wal")
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM api_keys").fetchone()
        load(port, key, bodies, clients=clients, rows=rows, seconds=0.2)  # by now the log is written on from its end
        before = log.stat().st_size
        result = load(port, key, bodies, clients=clients, rows=rows, seconds=seconds)
        return (log.stat().st_size - before) / result["transactions"]


def storage(folder: Path, run: Path, starts: int, say: Say) -> Found:
    """Bytes of the stored state of a card, and time and memory of a service that starts."""
    path, rng = folder / "storage.db", random.Random(0)
    url = f"sqlite:///{path}"
    (key,) = prepared(url, "bank")
    model = LoadedModel.load(run, run.name)
    database = Database(url)
    scorer = Scorer(database)
    sizes = {}
    for length in STATE_HISTORIES:
        raw = [transaction(place, f"s{length}", START + GAP * place, rng) for place in range(length)]
        rows = [parse_transaction(each, model.schema, each["card_id"], time.time(), 0.0) for each in raw]
        for first in range(0, length, 250):
            scorer.score("bank", model, rows[first : first + 250])
        sizes[str(length)] = state_sizes(database, "bank")[f"s{length}"]
        say(f"state after {length} transactions: {sizes[str(length)]:,} bytes")
    database.close()
    begun = [started(folder, url, run, key, number) for number in range(starts)]
    for each in begun:
        say(f"ready after {each['ready_seconds']:.2f} s, first answer after {each['first_answer_seconds']:.2f} s")
    return {
        "state_bytes_by_history": sizes,
        "starts": starts,
        **{
            name: float(np.median([each[name] for each in begun]))
            for name in ("ready_seconds", "first_answer_seconds", "parent_mb", "worker_mb")
        },
        "ready_seconds_most": max(each["ready_seconds"] for each in begun),
        "processes_with_torch": max(each["processes_with_torch"] for each in begun),
        "parent_has_torch": any(each["parent_has_torch"] for each in begun),
    }


def state_sizes(database: Database, tenant: str) -> dict[str, int]:
    """Bytes of the stored states by card."""
    columns, states = entities.c, entity_states.c
    chosen = select(columns.name, states.state).join(entities, columns.id == states.entity).where(columns.tenant == tenant)
    return {row.name: len(row.state) for row in database.read(lambda connection: connection.execute(chosen).all())}


def started(folder: Path, url: str, run: Path, key: str, number: int) -> Found:
    """Start a service with one worker: how long until it was ready and had answered, and its memory."""
    service = Service(folder, url, "--run", str(run))
    try:
        with Connection(service.port, key) as client:
            one = transaction(number, f"first-{number}", START, random.Random(number))
            accept(client, json.dumps({"transactions": [one]}).encode())
        answered = time.perf_counter() - service.begun
        processes = [psutil.Process(service.process.pid), *service.workers()]
        torch = [any("libtorch" in each.path for each in process.memory_maps()) for process in processes]
        memory = [process.memory_info().rss / 1e6 for process in processes]
        return {
            "ready_seconds": service.ready_after,
            "first_answer_seconds": answered,
            "parent_mb": memory[0],
            "worker_mb": memory[1],
            "processes_with_torch": sum(torch),
            "parent_has_torch": torch[0],
        }
    finally:
        service.stop()
