"""One seed, one result: the sample trained twice, and once more killed (SIGKILL) at three random moments and resumed.

Claim: the three reports are equal but for their times, and so are the weights of model and policy, byte for byte.

    python benchmarks/repeatability.py                  # -> benchmarks/results/repeatability.json
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recording import RESULTS, ROOT, record

from balancer.evaluation.report_json import compare_reports

SAMPLE = ROOT / "data_samples" / "transactions.parquet"
BYTES = ("model.safetensors", "policy/policy.safetensors", "decision.json")


def start(out: Path, *flags: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "balancer", "train", "--out", str(out), *flags], cwd=ROOT, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.monotonic()
        for out in ("first", "second"):
            if start(folder / out, "--dataset", str(SAMPLE)).wait():
                raise SystemExit("a run failed")
        length = (time.monotonic() - begin) / 2
        killed, kills = folder / "killed", []
        moments = random.Random(arguments.seed)
        process = start(killed, "--dataset", str(SAMPLE))
        for _ in range(3):
            wait = moments.uniform(0.12, 0.38) * length
            time.sleep(wait)
            stage = sorted(path.name for path in (killed / "work").glob("*"))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills.append({"seconds_after_start": round(wait, 1), "work_at_that_moment": stage})
            process = start(killed, "--resume")
        if process.wait():
            raise SystemExit("the resumed run failed")
        reports = {out: json.loads((folder / out / "report.json").read_text()) for out in ("first", "second", "killed")}
        result = {
            "minutes_of_an_unbroken_run": round(length / 60, 2),
            "differing_keys_second_run": compare_reports(reports["first"], reports["second"]),
            "differing_keys_killed_and_resumed": compare_reports(reports["first"], reports["killed"]),
            "equal_bytes": {
                file: len({(folder / out / file).read_bytes() for out in ("first", "second", "killed")}) == 1 for file in BYTES
            },
            "kills": kills,
        }
    record(result, RESULTS / "repeatability.json")


if __name__ == "__main__":
    main()
