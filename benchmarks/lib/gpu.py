"""Run everything that needs a CUDA device, in parts with a time limit each; ``benchmarks/gpu.sh`` calls this.

Each part of the table :data:`PARTS` runs in a separate process and writes ``gpu_NAME.json`` as soon as it has
one number, so a part that fails or is stopped neither loses what it has nor keeps the others from running.
``gpu.json`` says how each part ended, with its last lines where it failed; parts that were not chosen are
kept. At the end a table of the parts is printed.

With ``--dry`` the same code runs on the CPU with tiny sizes, and what exists on CUDA only is skipped. It is
for finding faults before a machine with a GPU is at hand: its exit status is 0 only if every part wrote a
complete result without any failure. Its figures mean nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from balancer.files import write_json
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, ROOT, environment, recorded

PARTS = {"tests": 115, "attention": 135, "population": 60, "quantization": 70, "training": 75}
"""Seconds of each part at most. Together with the start they must fit into 8 minutes (480 seconds)."""
SLACK = 3
SUMMARY = "gpu.json"
LAST_LINES = 20
THREADS = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
FINISHED, INTERRUPTED = "finished", "interrupted"


@dataclass(frozen=True)
class Step:
    """A part as it is run."""

    name: str
    module: str
    seconds: float
    """Time limit."""
    file: Path
    """Where the part writes its result."""


def steps(names: Iterable[str], out: Path, *, dry: bool) -> list[Step]:
    """The parts with these names, in the order of :data:`PARTS`.

    Those of a dry run have more time, because the CPU may be busy; it takes less than a minute of CPU time.
    """
    chosen, factor = set(names), SLACK if dry else 1
    return [
        Step(name, f"benchmarks.lib.gpu_{name}", factor * limit, out / f"gpu_{name}.json")
        for name, limit in PARTS.items()
        if name in chosen
    ]


def run_all(chosen: list[Step], summary: Path, *, dry: bool) -> dict[str, dict[str, Any]]:
    """Run parts one after another, and write the summary after each; Ctrl-C stops the part and the rest.

    Returns:
        How each part ended that was run.
    """
    ended: dict[str, dict[str, Any]] = {}
    earlier = recorded(summary)
    kept = earlier.get("parts", {}) if earlier.get("dry") == dry else {}
    for step in chosen:
        print(f"{step.name}: at most {step.seconds:g} s", flush=True)
        ended[step.name] = run(step, dry=dry)
        summary.parent.mkdir(parents=True, exist_ok=True)
        write_json(summary, {"dry": dry, "parts": kept | ended} | environment())
        if ended[step.name]["status"] == INTERRUPTED:
            break
    return ended


def run(step: Step, *, dry: bool) -> dict[str, Any]:
    """Run one part for at most its seconds.

    Returns:
        Status, seconds, limit and date, what the result says, and the last lines of a part that did not
        finish. The status is :data:`FINISHED` only if the part ended with status 0 and wrote a complete
        result.
    """
    before = stamp(step.file)
    command = [sys.executable, "-m", step.module, "--out", str(step.file), "--limit", f"{step.seconds:g}", *(["--dry"] if dry else [])]
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        # In a session of its own a part can be ended together with the processes that it started.
        process = subprocess.Popen(
            command, cwd=ROOT, env=THREADS | dict(os.environ), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(step.seconds)
            status = FINISHED if code == 0 else f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped at its limit of {step.seconds:g} s"
        except KeyboardInterrupt:
            status = INTERRUPTED
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines = last_lines(log)
    result = result_of(step.file) if stamp(step.file) != before else None
    if status == FINISHED and not (result and result["complete"]):
        status = "wrote no complete result"
    found = result or {}
    outcome: dict[str, Any] = {
        "status": status,
        "seconds": round(time.monotonic() - started, 1),
        "limit": step.seconds,
        "date": environment()["date"],
        "result": found.get("headline", ""),
        "written": result is not None,
    }
    outcome |= {key: found[key] for key in ("device", "failed", "skipped") if found.get(key)}
    return outcome if status == FINISHED else outcome | {"last_lines": lines}


def stamp(file: Path) -> int | None:
    """When a file was last written; None if it is not there."""
    return file.stat().st_mtime_ns if file.is_file() else None


def result_of(file: Path) -> dict[str, Any] | None:
    """The result that a part wrote; None if it is no well-formed result."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return (
            content if {"part", "dry", "complete", "headline", "seed", "device", "machine", "versions", "date"} <= content.keys() else None
        )
    except (OSError, ValueError, AttributeError):
        return None


def last_lines(log: IO[bytes]) -> list[str]:
    """The last lines of what a process printed."""
    log.seek(0)
    return [line[:300] for line in log.read().decode(errors="replace").splitlines() if line.strip()][-LAST_LINES:]


def table(ended: dict[str, dict[str, Any]], chosen: list[Step], *, dry: bool) -> str:
    """A line for each part: its seconds, and its result or why there is none."""
    lines = [f"{'part':<14}{'seconds':>8}  result"]
    for step in chosen:
        one = ended.get(step.name)
        if one is None:
            lines.append(f"{step.name:<14}{'-':>8}  not started")
            continue
        texts = [] if one["status"] == FINISHED else [one["status"], *one["last_lines"][-1:]]
        texts += [one["result"]] if one["result"] else []
        texts += ["dry run on the CPU: no figures of a GPU"] if dry and one["status"] == FINISHED else []
        texts += [f"{len(one[key])} {key}" for key in ("failed", "skipped") if key in one]
        lines.append(f"{step.name:<14}{one['seconds']:>8.1f}  {'; '.join(texts)}")
    return "\n".join(lines)


def main(given: list[str] | None = None) -> int:
    """Run the chosen parts; the exit status is 0 only if all finished."""
    options = parser(__doc__)
    options.add_argument("--dry", action="store_true", help="run the same code on the CPU with tiny sizes")
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    options.add_argument("--out", type=Path, help="folder for the results (default: benchmarks/results; of a dry run, a temporary one)")
    arguments = options.parse_args(given)
    dry: bool = arguments.dry
    if not dry:
        import torch

        if not torch.cuda.is_available():
            print("torch finds no CUDA device on this machine: nothing is measured; --dry tries the code on the CPU")
            return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is finished is kept then, too
    with tempfile.TemporaryDirectory() as temporary:
        out = (arguments.out or (Path(temporary) if dry else RESULTS)).absolute()
        chosen = steps(arguments.only, out, dry=dry)
        ended = run_all(chosen, out / SUMMARY, dry=dry)
    print(table(ended, chosen, dry=dry))
    if any(one["status"] == INTERRUPTED for one in ended.values()):
        return 130
    return int(any(one["status"] != FINISHED for one in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
