"""The main job on real public streams: what `balancer train` reaches beside its baselines, in what time and memory.

Claims: on two cores handbook and sparkov end within 30 minutes and 4 GiB at the standard budget, with a test average precision of at least .77 and
.94; the LightGBM of the report reaches .75 and .97.

    python benchmarks/main_job.py                       # handbook, sparkov and the sample -> benchmarks/results/main_job.json
    python benchmarks/main_job.py --only sample         # one of them; the others' figures in the result file are kept
    python benchmarks/main_job.py --device cuda         # -> benchmarks/results/main_job_cuda.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from recording import RESULTS, ROOT, SHARED, record

DATASETS = {
    "sample": (ROOT / "data_samples" / "transactions.parquet", None, "quick"),
    "handbook": (SHARED / "handbook" / "transactions.parquet", ROOT / "benchmarks" / "datasets" / "handbook.toml", "standard"),
    "sparkov": (SHARED / "sparkov" / "transactions.parquet", ROOT / "benchmarks" / "datasets" / "sparkov.toml", "standard"),
}
FIGURES = ("average_precision", "f1", "f1_at_half", "precision", "recall", "fpr", "card_precision_at_100", "brier", "ece")


def measure(name: str, device: str, seed: int, threads: int | None) -> dict[str, Any] | None:
    """Train on one data set in a process of its own; None where its table is absent."""
    table, spec, budget = DATASETS[name]
    if not table.exists():
        print(f"{name}: {table.name} is absent, left out", file=sys.stderr)
        return None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "balancer", "train", "--dataset", str(table), "--budget", budget, "--device", device]
        command += ["--seed", str(seed), "--out", str(out), *(["--spec", str(spec)] if spec else [])]
        command += ["--threads", str(threads)] if threads else []
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        if status:
            raise SystemExit(f"{name}: balancer train ended with status {status}")
        report = json.loads((out / "report.json").read_text())
    models = {"run": report["test"]} | report["baselines"]
    return {
        "budget": budget,
        "seed": seed,
        "device": device,
        "threads": report["run"]["threads"],
        "minutes": round(seconds / 60, 2),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
        "models": {
            key: {figure: value[figure] for figure in FIGURES}
            | {"false_alarms_per_10k_at_recall": value["false_alarms_per_10k_at_recall"]}
            | {"average_precision_per_class": {c: own["average_precision"] for c, own in value["per_class"].items()}}
            for key, value in models.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=DATASETS, help="one data set")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="as balancer train's; with 1, two data sets can be run side by side on two cores")
    arguments = parser.parse_args()
    path = RESULTS / ("main_job.json" if arguments.device == "cpu" else "main_job_cuda.json")
    for name in [arguments.only] if arguments.only else DATASETS:
        result = measure(name, arguments.device, arguments.seed, arguments.threads)
        if result is not None:
            results = json.loads(path.read_text())["datasets"] if path.exists() else {}
            results[name] = result
            record({"datasets": results}, path)


if __name__ == "__main__":
    main()
