"""Loading a public stream: wall time and peak memory of `load_dataset` (read, check, features, split, store).

What is special: each stream is loaded in a fresh process limited to two threads, so that its peak memory is its own. Run from the root of
a checkout:

    python benchmarks/ingest.py --data ../shared/data --out benchmarks/results/ingest.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STREAMS = ("handbook", "sparkov")
THREADS = 2
LIMITS = {"handbook": {"seconds": 25.0, "gibibytes": 1.5}}
"""What a stream may cost; a stream without limits is only measured."""


def measure(name: str, data: Path) -> dict[str, Any]:
    """Load one stream in this process; import time counts, as it does for a person."""
    begin = time.perf_counter()
    sys.path.insert(0, str(ROOT))
    from balancer.data.dataset import load_dataset
    from balancer.data.spec import Spec, read_spec_file

    imported = time.perf_counter()
    spec = Spec.from_dict(read_spec_file(ROOT / "benchmarks" / "datasets" / f"{name}.toml"))
    dataset = load_dataset(data / name / "transactions.parquet", spec)
    end = time.perf_counter()
    # ru_maxrss is in KiB on Linux, in bytes on macOS.
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


def measure_apart(name: str, data: Path) -> dict[str, Any]:
    """Load one stream in a process of its own."""
    threads = {key: str(THREADS) for key in ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, str(Path(__file__)), "--data", str(data), "--stream", name]
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def cpu_model() -> str:
    """The processor's name, without the machine's."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "polars")}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder that holds handbook/ and sparkov/")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    parser.add_argument("--stream", choices=STREAMS, help="load this stream in the present process, and nothing else")
    arguments = parser.parse_args()
    if arguments.stream:
        print(json.dumps(measure(arguments.stream, arguments.data)))
        return 0
    results = [measure_apart(name, arguments.data) for name in STREAMS]
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": THREADS, "system": platform.system()},
        "versions": versions(),
        "limits": LIMITS,
        "results": results,
    }
    print(json.dumps(report, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
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
