"""The same seed reproduces a run exactly, also when the run is killed and resumed.

The sample is trained twice, and once more with three kills (SIGKILL) at random moments, each followed by a
resume.

Claim: the three reports are equal except for their times, and the weights of model and policy are equal byte
for byte.

    python -m benchmarks.claims.repeatability           # -> benchmarks/results/repeatability.json
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from balancer.evaluation.report_json import compare_reports
from benchmarks.lib.commands import BALANCER, parser
from benchmarks.lib.recording import RESULTS, ROOT, record
from benchmarks.lib.streams import SAMPLE

BYTES = ("model.safetensors", "model.quantized.safetensors", "precision.json", "policy/policy.safetensors", "decision.json")


def start(out: Path, *flags: str) -> subprocess.Popen[bytes]:
    """Start ``balancer train`` for the run folder ``out``."""
    return subprocess.Popen([*BALANCER, "train", "--out", str(out), *flags], cwd=ROOT, stdout=subprocess.DEVNULL)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    arguments = options.parse_args()
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
        runs = ("first", "second", "killed")
        reports = {out: json.loads((folder / out / "report.json").read_text()) for out in runs}
        result = {
            "minutes_of_an_unbroken_run": round(length / 60, 2),
            "differing_keys_second_run": compare_reports(reports["first"], reports["second"]),
            "differing_keys_killed_and_resumed": compare_reports(reports["first"], reports["killed"]),
            "equal_bytes": {file: len({(folder / out / file).read_bytes() for out in runs}) == 1 for file in BYTES},
            "kills": kills,
        }
    record(result, RESULTS / "repeatability.json")


if __name__ == "__main__":
    main()
