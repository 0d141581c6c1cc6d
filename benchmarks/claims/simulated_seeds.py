"""The main job on simulated tables like the sample, seed after seed: is what the sample's report shows the rule, or luck?

Claim: over the seeds the run's test average precision is above that of 1:1 over-sampling and of no sampling. Losses are in the table too.

    python benchmarks/simulated_seeds.py                # seeds 7 to 12 -> benchmarks/results/simulated_seeds.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from recording import RESULTS, ROOT, record

ROWS, FRAUD_RATE = 60_000, 0.02


def measure(seed: int, threads: int) -> dict[str, Any]:
    """Simulate, train at the quick budget, and return the figures of every model."""
    with tempfile.TemporaryDirectory() as name:
        table, out = Path(name) / "table.parquet", Path(name) / "run"
        balancer = [sys.executable, "-m", "balancer"]
        simulate = ["simulate", "--rows", str(ROWS), "--fraud-rate", str(FRAUD_RATE), "--seed", str(seed), "--out", str(table)]
        subprocess.run([*balancer, *simulate], cwd=ROOT, check=True)
        subprocess.run([*balancer, "train", "--dataset", str(table), "--out", str(out), "--threads", str(threads)], cwd=ROOT, check=True)
        report = json.loads((out / "report.json").read_text())
    return {
        name: {
            "average_precision": own["average_precision"],
            "f1": own["f1"],
            "f1_at_half": own["f1_at_half"],
            "false_alarms_per_10k_at_recall": own["false_alarms_per_10k_at_recall"],
        }
        for name, own in ({"run": report["test"]} | report["baselines"]).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(7, 13)))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    path = RESULTS / "simulated_seeds.json"
    kept = json.loads(path.read_text())["tables"] if path.exists() else {}
    for seed in arguments.seeds:
        kept[str(seed)] = measure(seed, arguments.threads)
        tables = {key: kept[key] for key in sorted(kept, key=int)}
        against = {}
        for name in ("none", "one_to_one", "class_weight", "lightgbm"):
            differences = [own["run"]["average_precision"] - own[name]["average_precision"] for own in tables.values()]
            error = stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else None
            against[name] = {"mean_difference": mean(differences), "standard_error": error, "won": sum(d > 0 for d in differences)}
        record({"rows": ROWS, "fraud_rate": FRAUD_RATE, "average_precision_against": against, "tables": tables}, path)


if __name__ == "__main__":
    main()
