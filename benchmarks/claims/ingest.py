"""Reading a public stream, and a large CSV file, into the store: time and peak memory.

Reading includes checks, features, split and store; for the CSV file also the roles of its columns, which are
inferred. Each table is read in a new process with two threads, so that its peak memory is measured alone. The
CSV file has 5 million rows and 6 columns (card, time, amount, two categories, label) and is written first.

Claims: handbook, with 1.75 million rows, takes at most 25 s and 1.5 GiB; the CSV file at most 40 seconds of
the processor and 2.5 GiB. The script ends with status 1 if either takes more.

    python -m benchmarks.claims.ingest                  # -> benchmarks/results/ingest.json
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, ROOT, record
from benchmarks.lib.streams import PUBLIC, STREAMS, missing

THREADS = 2
CSV = "csv"
"""Name of the CSV file among the results."""
CSV_ROWS = 5_000_000
LIMITS = {
    "handbook": {"seconds": 25.0, "peak_gibibytes": 1.5},
    CSV: {"processor_seconds": 40.0, "peak_gibibytes": 2.5},
}
"""Most seconds and memory by table; a table without limits is only measured."""


def write_csv(path: Path, rows: int = CSV_ROWS, seed: int = 0) -> None:
    """Write a table of card transactions over 180 days."""
    draw = np.random.default_rng(seed)
    seconds = np.sort(draw.integers(0, 180 * 86_400, rows))
    columns = {
        "card_id": 4_970_000_000 + draw.integers(0, max(rows // 12, 1), rows),
        "time": np.datetime64("2024-01-01T00:00:00", "us") + seconds.astype("timedelta64[s]"),
        "amount": np.round(np.exp(draw.normal(3.0, 1.0, rows)), 2),
        "category": draw.choice(["grocery", "fuel", "travel", "online", "cash", "food"], rows),
        "channel": draw.choice(["chip", "contactless", "web", "phone"], rows),
        "is_fraud": (draw.random(rows) < 0.01).astype(np.int64),
    }
    pl.DataFrame(columns).write_csv(path, datetime_format="%Y-%m-%d %H:%M:%S")


def measure(table: Path, spec_file: Path | None) -> dict[str, Any]:
    """Read one table in this process. The time of the imports counts, as it does for a user."""
    begin = time.perf_counter()
    from balancer.data.dataset import load_dataset
    from balancer.data.roles import resolve_spec
    from balancer.data.spec import Spec, read_spec_file

    imported = time.perf_counter()
    spec = resolve_spec(table) if spec_file is None else Spec.from_dict(read_spec_file(spec_file))
    dataset = load_dataset(table, spec)
    end = time.perf_counter()
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return {
        "rows": len(dataset.store),
        "fields": dataset.store.values.shape[1],
        "seconds": round(end - begin, 2),
        "processor_seconds": round(time.process_time(), 2),
        "import_seconds": round(imported - begin, 2),
        "peak_gibibytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3),
    }


def measure_apart(name: str, *source: str) -> dict[str, Any]:
    """Read one table in a new process; `source` are the flags that name it."""
    threads = {key: str(THREADS) for key in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.claims.ingest", *source]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    result: dict[str, Any] = {"stream": name} | json.loads(done.stdout)
    return result


def measure_csv(rows: int) -> dict[str, Any]:
    """Write the CSV file to a temporary folder and read it in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transactions.csv"
        write_csv(path, rows)
        size = round(path.stat().st_size / 2**20, 1)
        return measure_apart(CSV, "--csv", str(path)) | {"file_mebibytes": size}


def over_limits(results: list[dict[str, Any]]) -> list[str]:
    """Names of the tables that took more than their limits."""
    return [row["stream"] for row in results if any(row[key] > most for key, most in LIMITS.get(row["stream"], {}).items())]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=RESULTS / "ingest.json", help="JSON file for the result")
    options.add_argument("--rows", type=int, default=CSV_ROWS, help="rows of the CSV file that is written")
    options.add_argument("--stream", choices=PUBLIC, help="read this stream in the present process and print its figures, nothing else")
    options.add_argument("--csv", type=Path, help="read this CSV file in the present process and print its figures, nothing else")
    arguments = options.parse_args()
    if arguments.stream:
        stream = STREAMS[arguments.stream]
        assert stream.spec is not None
        print(json.dumps(measure(stream.table, stream.spec)))
        return 0
    if arguments.csv:
        print(json.dumps(measure(arguments.csv, None)))
        return 0
    reasons = {name: missing(name) for name in PUBLIC}
    for reason in filter(None, reasons.values()):
        print(reason, file=sys.stderr)
    results = [measure_apart(name, "--stream", name) for name in PUBLIC if reasons[name] is None]
    results.append(measure_csv(arguments.rows))
    record({"threads": THREADS, "limits": LIMITS, "results": results}, arguments.out)
    late = over_limits(results)
    if late:
        print(f"over the limit: {', '.join(late)}", file=sys.stderr)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
