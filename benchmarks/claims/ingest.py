"""Reading a public stream with `load_dataset`: wall-clock time and peak memory.

Reading includes checks, features, split and store. Each stream is read in a new process with two threads, so
that its peak memory is measured alone.

Claim: handbook, with 1.75 million rows, takes at most 25 s and 1.5 GiB. The script ends with status 1 if it
takes more.

    python -m benchmarks.claims.ingest                  # -> benchmarks/results/ingest.json
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, ROOT, record
from benchmarks.lib.streams import PUBLIC, STREAMS, missing

THREADS = 2
LIMITS = {"handbook": {"seconds": 25.0, "gibibytes": 1.5}}
"""Most seconds and memory by stream; a stream without limits is only measured."""


def measure(name: str) -> dict[str, Any]:
    """Read one stream in this process. The time of the imports counts, as it does for a user."""
    begin = time.perf_counter()
    from balancer.data.dataset import load_dataset
    from balancer.data.spec import Spec, read_spec_file

    imported = time.perf_counter()
    stream = STREAMS[name]
    assert stream.spec is not None
    dataset = load_dataset(stream.table, Spec.from_dict(read_spec_file(stream.spec)))
    end = time.perf_counter()
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return {
        "stream": name,
        "rows": len(dataset.store),
        "fields": dataset.store.values.shape[1],
        "seconds": round(end - begin, 2),
        "processor_seconds": round(time.process_time(), 2),
        "import_seconds": round(imported - begin, 2),
        "peak_gibibytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3),
    }


def measure_apart(name: str) -> dict[str, Any]:
    """Read one stream in a new process."""
    threads = {key: str(THREADS) for key in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.claims.ingest", "--stream", name]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=RESULTS / "ingest.json", help="JSON file for the result")
    options.add_argument("--stream", choices=PUBLIC, help="read this stream in the present process and print its figures, nothing else")
    arguments = options.parse_args()
    if arguments.stream:
        print(json.dumps(measure(arguments.stream)))
        return 0
    reasons = {name: missing(name) for name in PUBLIC}
    for reason in filter(None, reasons.values()):
        print(reason, file=sys.stderr)
    results = [measure_apart(name) for name in PUBLIC if reasons[name] is None]
    if results:
        record({"threads": THREADS, "limits": LIMITS, "results": results}, arguments.out)
    late = [
        row["stream"]
        for row in results
        if (limit := LIMITS.get(row["stream"])) and (row["seconds"] > limit["seconds"] or row["peak_gibibytes"] > limit["gibibytes"])
    ]
    if late:
        print(f"over the limit: {', '.join(late)}", file=sys.stderr)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
