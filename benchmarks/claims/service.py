"""The service: latency, throughput, storage, and what it does under failures and attacks.

Claims. Times of this machine are shown beside them, with those of its disk:

- latency: one worker on one core, one transaction a request, HTTP included, a history of 2,047, SQLite and
  PostgreSQL: at most 2 ms in the median, and 5 ms at the 99th percentile less that of the disk, which is
  timed in turns with the requests; at most 1.3 times the time with a history of 64.
- throughput: two cores for everything, 32 clients: at least 1,000 single transactions a second, and 3,000 in
  batches of 100. PostgreSQL writes at most 15 kB of its log a transaction.
- storage: at most 100 kB of state a card. A worker is ready 5 s after `balancer serve`, and the first answer
  is there after 10 s. One process has torch loaded, or none.
- step: the native step takes at most a twentieth of the CPU time of torch's, in turns.
- trouble: some minutes at half of the peak rate, with workers that are killed, a restart of the database, a
  model swap, labels, removed labels, erased cards and corrected amounts. Nothing is lost and nothing counted
  twice, and every score is that of a replay in one process, to the last bit.
- abuse: attacks at ten times the size at which an earlier version broke: no worker is killed, /healthz takes
  less than 100 ms, memory grows by at most 256 MB, and nothing is answered with status 500.

The model is the default detector with a history of 2,048, trained for a few steps, because the quality of its
scores does not matter here. Trees and network both weigh in its scores.

    python -m benchmarks.claims.service                     # all -> benchmarks/results/service.json
    python -m benchmarks.claims.service --only latency step # some parts; the recorded others are kept
    python -m benchmarks.claims.service --minutes 10        # length of the part trouble
    python -m benchmarks.claims.service --quick             # seconds for each part, nothing is written

Every part is recorded when it ends, so a run can be interrupted. Without PostgreSQL what needs it is left
out, and the result says so.
"""

from __future__ import annotations

import json
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from balancer.cli import main as balancer
from balancer.data.simulation.stream import simulate, write_simulation
from balancer.devices import torch_threads
from balancer.models.step import absence
from benchmarks.claims import stream_step
from benchmarks.lib.commands import parser
from benchmarks.lib.postgres import Postgres, postgres_programs
from benchmarks.lib.recording import RESULTS, recorded, rounded, write
from benchmarks.lib.service_abuse import abuse
from benchmarks.lib.service_claims import claims
from benchmarks.lib.service_speed import HISTORIES, latency, storage, throughput
from benchmarks.lib.service_trouble import trouble

PARTS = ("latency", "throughput", "storage", "step", "trouble", "abuse")
FILE = RESULTS / "service.json"
MISSING = {"skipped": "PostgreSQL is not installed: apt-get install postgresql"}
FLAGS = (
    "--learner",
    "hybrid",
    "--history-length",
    "2048",
    "--epochs",
    "1",
    "--steps-per-epoch",
    "3",
    "--policy",
    "constant",
    "--threads",
    "1",
)
STEPS = (("histories", "sparse", 2048), ("rows", "dense", 8))
"""Form, attention and history length: those of the model here, and of the default detector."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    requests: int = 1000
    histories: tuple[int, ...] = HISTORIES
    seconds: float = 15.0
    starts: int = 7
    rounds: int = 300
    minutes: float = 10.0
    scale: float = 1.0
    cards: int = 400


QUICK = Size(20, (8, 16), 0.5, 1, 5, 0.4, 0.005, 40)


def trained(folder: Path, name: str, seed: int) -> Path:
    """Train a model for a few steps, and return its run folder.

    Raises:
        SystemExit: the training failed, or the network or the trees don't weigh in the scores.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table, run = folder / "transactions.parquet", folder / "models" / name
    if not table.exists():
        write_simulation(simulate(30_000, seed=3, fraud_rate=0.03), table)
    if not (run / "decision.json").exists() and balancer(
        ["train", "--dataset", str(table), "--out", str(run), "--seed", str(seed), *FLAGS]
    ):
        raise SystemExit("balancer train failed")
    members = json.loads((run / "decision.json").read_text())["members"]
    if not min(members.values()) > 0.05:
        raise SystemExit(f"the members of the model weigh {members}: both must weigh")
    return run


@torch_threads(1)
def step(rounds: int) -> list[dict[str, Any]] | dict[str, str]:
    """CPU time of a step in C++ and in torch, in turns."""
    reason = absence()
    if reason is not None:
        return {"skipped": reason}
    return [stream_step.measure(form, attention, min(length, 8 * rounds), rounds) for form, attention, length in STEPS]


class Parts:
    """Measures the parts, each when it is asked for.

    Args:
        folder: an empty folder for models, databases and logs.
        runs: folder of models that are kept for the next time; None trains them.
        size: how much is measured.
        say: shows the progress.
    """

    def __init__(self, folder: Path, runs: Path | None, size: Size, say: Callable[[str], None]) -> None:
        self.folder, self.models, self.size, self.say = folder, runs or folder, size, say
        self._postgres: Postgres | None = None
        if postgres_programs() is not None:
            self._postgres = Postgres(Path(tempfile.mkdtemp(prefix="postgres-", dir=folder)))

    def close(self) -> None:
        """End the database."""
        if self._postgres is not None:
            self._postgres.stop("immediate")

    def measure(self, name: str) -> Any:
        """What a part found."""
        size, folder = self.size, Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

        def say(line: str) -> None:
            self.say(f"{name}: {line}")

        if name == "step":
            return step(size.rounds)
        if name == "trouble" and self._postgres is None:
            return MISSING
        run = trained(self.models, "one", 0)
        if name == "latency":
            return latency(folder, run, self._postgres, size.requests, size.histories, say)
        if name == "throughput":
            return throughput(folder, run, self._postgres, size.seconds, say)
        if name == "storage":
            return storage(folder, run, size.starts, say)
        if name == "abuse":
            return abuse(folder, run, self._postgres, size.scale, say)
        assert self._postgres is not None
        trained(self.models, "two", 1)
        return trouble(folder, self.models / "models", self._postgres, minutes=size.minutes, cards=size.cards, say=say)


def stop(*_: object) -> None:
    """End as after Ctrl-C: services and databases are stopped.

    Raises:
        KeyboardInterrupt: always.
    """
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"parts to measure: {', '.join(PARTS)}")
    options.add_argument("--minutes", type=float, help="length of the part trouble (default: 10)")
    options.add_argument("--models", type=Path, help="folder in which the models are kept for the next time")
    options.add_argument("--quick", action="store_true", help="seconds for each part, nothing is written")
    given = options.parse_args(arguments)
    size = QUICK if given.quick else Size()
    size = size if given.minutes is None else replace(size, minutes=given.minutes)
    found: dict[str, Any] = {} if given.quick else {name: part for name, part in recorded(FILE).get("results", {}).items() if name in PARTS}
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:7.1f} s  {line}", flush=True)

    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="balancer-service-") as name, closing(Parts(Path(name), given.models, size, say)) as parts:
        for part in (each for each in PARTS if each in given.only):
            say(part)
            found[part] = rounded(parts.measure(part), 4)
            if not given.quick:
                write({"seeds": [0, 1], "results": found, "claims": claims(found)}, FILE)
            print(json.dumps(found[part], indent=2), flush=True)
    for claim in claims(found):
        print(f"{'holds' if claim['holds'] else 'FAILS'}  {claim['claim']}: {claim['found']} (wanted: {claim['wanted']})")


if __name__ == "__main__":
    main()
