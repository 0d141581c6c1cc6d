"""Watch a service from a process of its own: how long /healthz takes, and how much memory its workers have.

    python -m benchmarks.lib.service_watch PORT PID...   # until the end of its standard input; prints JSON

A process of its own does not wait for the threads of a client that is busy.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import psutil

from benchmarks.lib.service_client import Connection

PAUSE = 0.02
"""Seconds between two looks."""
PATIENCE = 60.0
"""Seconds that /healthz may take."""


class Watch:
    """Watches a service until `stop`.

    Args:
        port: port of the service.
        processes: whose memory is summed.
    """

    def __init__(self, port: int, processes: Sequence[int]) -> None:
        command = [sys.executable, "-m", "benchmarks.lib.service_watch", str(port), *map(str, processes)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it has begun

    def stop(self) -> dict[str, Any]:
        """Milliseconds of /healthz, largest and 99th percentile, failures, and growth of the memory in MB."""
        output, _ = self._process.communicate("")
        found: dict[str, Any] = json.loads(output)
        return found


def memory(processes: Sequence[psutil.Process]) -> int:
    """Resident bytes of the processes that still run."""
    total = 0
    for each in processes:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def main(arguments: Sequence[str]) -> None:
    port, processes = int(arguments[0]), [psutil.Process(int(each)) for each in arguments[1:]]
    before = peak = memory(processes)
    ended = threading.Event()

    def look() -> None:
        nonlocal peak
        while not ended.wait(PAUSE):
            peak = max(peak, memory(processes))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    times: list[float] = []
    failures, slowest_at = 0, 0.0
    print("begun", flush=True)
    start = time.perf_counter()
    while not select.select([sys.stdin], [], [], PAUSE)[0]:
        begun = time.perf_counter()
        try:
            with Connection(port, timeout=PATIENCE) as connection:  # a new one, as that of a balancer in front
                failures += connection.request("GET", "/healthz")[0] != 200
        except OSError:
            failures += 1
        took = time.perf_counter() - begun
        slowest_at = begun - start if took >= max(times, default=0.0) else slowest_at
        times.append(took)
    ended.set()
    looking.join()
    times.sort()
    print(
        json.dumps(
            {
                "healthz_ms_most": 1e3 * times[-1] if times else 0.0,
                "healthz_ms_p99": 1e3 * times[int(0.99 * (len(times) - 1))] if times else 0.0,
                "healthz_slowest_at_s": slowest_at,
                "healthz_failures": failures,
                "healthz_requests": len(times),
                "memory_growth_mb": (peak - before) / 1e6,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
