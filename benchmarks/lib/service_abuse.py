"""Attacks on the service, at ten times the size at which a review broke an earlier version.

Every case starts a service of its own and does its worst, while another process asks for /healthz and reads
the memory of the worker.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from balancer.serving.config import ServeConfig
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import transactions
from benchmarks.lib.postgres import Postgres
from benchmarks.lib.service import START, Service, details, prepared
from benchmarks.lib.service_client import Answer, Bodies, Connection, flood, request_bytes
from benchmarks.lib.service_odd_values import odd_values
from benchmarks.lib.service_race import race
from benchmarks.lib.service_trouble import ended
from benchmarks.lib.service_watch import Watch

BODY = ServeConfig.max_body - 100_000
"""Bytes of a large body: as many as the service takes by default."""
TOO_LARGE = 20_000_000
FULL = "full"
Found = dict[str, Any]
Say = Callable[[str], None]


@dataclass
class Target:
    """The service that a case attacks."""

    service: Service
    key: str
    url: str
    """Of its database."""
    folder: Path
    scale: float
    """1 is the full size."""
    postgres: Postgres | None = None
    statuses: Counter[str] = field(default_factory=Counter)

    def times(self, number: int) -> int:
        """A number of things at this scale."""
        return max(2, int(number * self.scale))

    def flood(self, requests: Sequence[bytes], seconds: float, every: float = 0.0) -> list[Answer]:
        """Send requests all at once, and count how they end."""
        answers = flood(self.service.port, requests, seconds, every=every)
        self.statuses.update(each.status for each in answers)
        return answers

    def score(self, bodies: Sequence[bytes], seconds: float = 60.0) -> list[Answer]:
        """Send requests with transactions all at once."""
        return self.flood([request_bytes("POST", "/v1/score", self.key, body) for body in bodies], seconds)

    def stored(self) -> int:
        """Number of stored transactions."""
        with closing(Database(self.url)) as database:
            return int(database.read(lambda connection: connection.execute(select(func.count()).select_from(transactions)).scalar_one()))


def many_empty_rows(size: int) -> bytes:
    """A body of ``size`` bytes with a third of a million rows in each megabyte."""
    return b'{"transactions":[' + b"[]," * ((size - 24) // 3) + b"[]]}"


def unauthenticated(target: Target) -> Found:
    """Large bodies without a key, on many connections; every second one is larger than the service takes."""
    requests = [request_bytes("POST", "/v1/score", None, many_empty_rows(size)) for size in (BODY, TOO_LARGE)]
    target.flood(requests * (target.times(400) // 2), 60.0, 0.005)
    return {"connections": target.times(400), "bytes": [BODY, TOO_LARGE]}


def blow_up(target: Target) -> Found:
    """Bodies with a key whose content is small to send and large to hold or to complain about."""
    names = b",".join(b'"%06x":[]' % number for number in range((BODY - 40) // 12))
    labels = b",".join(b'{"id":%d,"label":7}' % number for number in range(BODY // 28))
    bodies = {
        "rows": ("/v1/score", many_empty_rows(BODY)),
        "objects": ("/v1/score", b'{"on_error":"skip","transactions":[' + b"{}," * ((BODY - 50) // 3) + b"{}]}"),
        "too large": ("/v1/score", many_empty_rows(TOO_LARGE)),
        "values of a row": ("/v1/score", b'{"transactions":[{' + names + b"}]}"),
        "depth": ("/v1/score", b'{"transactions":[' + b"[" * (BODY // 2)),
        "labels": ("/v1/labels", b'{"labels":[' + labels + b"]}"),
        "digits": ("/v1/score", b'{"transactions":[{"amount":' + b"9" * (BODY - 40) + b"}]}"),
    }
    for path, body in bodies.values():
        target.flood([request_bytes("POST", path, target.key, body)] * target.times(10), 120.0)
    return {"kinds": list(bodies), "at_once": target.times(10)}


def half_open(target: Target) -> Found:
    """Idle and half-sent connections: all are closed in time."""
    part = b"POST /v1/score HTTP/1.1\r\nhost: localhost\r\nx-a: "
    number = target.times(5_000)
    answers = target.flood([part if place % 2 else b"" for place in range(number)], 40.0, 0.0005)
    return {"connections": number, "left_open_after_40_s": sum(each.status == "unanswered" for each in answers)}


def few_files(target: Target) -> Found:
    """More idle connections than the service may open files."""
    number = target.times(2_600)
    answers: list[Answer] = []
    idle = threading.Thread(target=lambda: answers.extend(target.flood([b""] * number, 10.0, 0.0005)))
    idle.start()
    time.sleep(2)
    bodies = Bodies(details, START)
    scored = target.score([bodies.make(0, 1) for _ in range(10)], 8.0)
    idle.join()
    return {"connections": number, "files": 200, "scored_meanwhile": sum(each.status == "200" for each in scored), "sent_meanwhile": 10}


def hanging_database(target: Target) -> Found:
    """PostgreSQL stands still: requests end in time, and go on when it does."""
    assert target.postgres is not None
    bodies, number = Bodies(details, START), target.times(200)
    processes = target.postgres.processes()
    for each in processes:
        each.send_signal(signal.SIGSTOP)
    try:
        begun = time.perf_counter()
        during = target.score([bodies.make(place, 1) for place in range(number)], 30.0)
        with Connection(target.service.port) as client:
            ready = client.request("GET", "/readyz")[0]
        time.sleep(max(0.0, 15.0 * min(1.0, target.scale * 4) - (time.perf_counter() - begun)))
    finally:
        for each in processes:
            each.send_signal(signal.SIGCONT)
    time.sleep(1)
    after = target.score([bodies.make(place, 1) for place in range(number)], 30.0)
    return {
        "requests": number,
        "slowest_answer_seconds": max(each.seconds for each in during),
        "timeout_seconds": 10,
        "readyz": ready,
        "accepted_afterwards": sum(each.status == "200" for each in after),
    }


def big_batches(target: Target) -> Found:
    """Largest batches at once, with single transactions between them; what is refused is sent again."""
    bodies, batches, singles = Bodies(details, START), target.times(10), target.times(30)
    sent = [bodies.make(place, 1000) for place in range(batches)] + [bodies.make(100 + place, 1) for place in range(singles)]
    answers = target.score(sent, 90.0)
    again = [body for body, answer in zip(sent, answers, strict=True) if answer.status != "200"]
    repeated = target.score(again, 90.0) if again else []
    return {
        "batches_of_1000": batches,
        "singles": singles,
        "slowest_batch_seconds": max(each.seconds for each in answers[:batches]),
        "slowest_single_seconds": max(each.seconds for each in answers[batches:]),
        "sent_again": len(again),
        "refused_again": sum(each.status != "200" for each in repeated),
        "not_stored": 1000 * batches + singles - target.stored(),
    }


def full_disk(target: Target) -> Found:
    """The disk of SQLite is full, and later it is not."""
    bodies, accepted = Bodies(details, START), 0

    def send(rows: int) -> bool:
        (answer,) = target.score([bodies.make(0, rows)])
        return answer.status == "200"

    accepted += send(1)
    filler = target.folder / FULL / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(65_536))
                file.flush()
        except OSError:
            pass
    refused = 0
    for _ in range(target.times(10)):
        for rows in (1, 50, 50, 50):
            done = send(rows)
            accepted += rows * done
            refused += not done
    with Connection(target.service.port) as client:
        ready = client.request("GET", "/readyz")[0]
    filler.unlink()
    time.sleep(1)
    afterwards = send(1), send(20)
    accepted += afterwards[0] + 20 * afterwards[1]
    return {"refused": refused, "readyz": ready, "accepted_afterwards": all(afterwards), "not_stored": accepted - target.stored()}


@dataclass(frozen=True)
class Case:
    """An attack, and the service that it needs."""

    attack: Callable[[Target], Found]
    database: str = "sqlite"
    flags: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    small_disk: bool = False


CASES: dict[str, Case] = {
    "unauthenticated": Case(unauthenticated),
    "blow_up": Case(blow_up),
    "half_open": Case(half_open),
    "few_files": Case(few_files, prefix=("sh", "-c", 'ulimit -n 200; exec "$@"', "sh")),
    "hanging_database": Case(hanging_database, "postgresql", ("--timeout", "10")),
    "big_batches": Case(big_batches),
    "full_disk": Case(full_disk, small_disk=True),
    **{
        f"{name}_{database}": Case(lambda target, attack=attack: attack(target), database)  # type: ignore[misc]
        for name, attack in (("race", race), ("odd_values", odd_values))
        for database in ("sqlite", "postgresql")
    },
}


def abuse(folder: Path, run: Path, postgres: Postgres | None, scale: float, say: Say, names: Sequence[str] = ()) -> Found:
    """What every attack did to a service with one worker: by name, or why it was left out."""
    raise_file_limit()
    found: Found = {}
    for name in names or CASES:
        found[name] = attacked(folder, run, postgres, scale, name)
        say(f"{name}: {found[name]}")
    return found


def attacked(folder: Path, run: Path, postgres: Postgres | None, scale: float, name: str) -> Found:
    """What one attack did."""
    case, disk = CASES[name], folder / FULL
    if case.database == "postgresql" and postgres is None:
        return {"skipped": "PostgreSQL is not installed"}
    if case.small_disk and not mounted(disk):
        return {"skipped": "this user may not mount a small file system"}
    try:
        path = (disk if case.small_disk else folder) / f"{name}.db"
        url = f"sqlite:///{path}" if case.database == "sqlite" or postgres is None else postgres.database(name)
        (key,) = prepared(url, "bank")
        service = Service(folder, url, "--run", str(run), *case.flags, prefix=case.prefix)
        try:
            target = Target(service, key, url, folder, scale, postgres)
            workers = service.workers()
            watch = Watch(service.port, [each.pid for each in workers])
            try:
                facts = case.attack(target)
                time.sleep(0.5)
            finally:
                seen = watch.stop()
            killed = ended(workers)
        finally:
            service.stop()
    finally:
        if case.small_disk:
            subprocess.run(["umount", str(disk)], check=False)
    return {"workers_killed": killed, **seen, "statuses": dict(sorted(target.statuses.items())), **facts}


def mounted(folder: Path) -> bool:
    """Mount a file system of 24 MB; False if that is not allowed."""
    folder.mkdir(exist_ok=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        return False
    return not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=False, capture_output=True).returncode


def raise_file_limit() -> None:
    """Let this process open as many files as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
