"""Part ``training`` of ``benchmarks/gpu.sh``: bfloat16 with 8-bit AdamW against float32 with AdamW.

``balancer train`` trains a network on the sample in each way, and its baselines too: wall-clock time, and the
average precision on the test rows. On CUDA ``balancer train`` always uses bfloat16 autocast; for float32 it
is switched off from outside. A short training on a small table comes before, because the first one starts
CUDA; a dry run makes short ones only, in the first two ways.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from balancer.cli.train import main as train
from balancer.data.simulation.stream import simulate, write_simulation
from balancer.files import read_json
from benchmarks.lib.gpu_part import SEED, Part, main
from benchmarks.lib.streams import SAMPLE

FLAGS = ("--learner", "network", "--policy", "auto", "--budget", "quick", "--attention", "dense", "--history-length", "16", "--json")
SHORT = ("--epochs", "1", "--steps-per-epoch", "2", "--d-model", "16", "--layers", "1")
ROWS = 4_000
"""Transactions of the small table."""
MARGIN = 1.3
"""A training is started only if this many times the seconds of the longest so far are left."""
WAYS = {"bf16, AdamW8bit": ("adamw8bit", False), "fp32, AdamW": ("adamw", True), "bf16, AdamW": ("adamw", False)}
"""Optimizer, and whether in float32."""


def measure(part: Part) -> None:
    """Train in every way for which there is time, and keep each as soon as it is there."""
    found: dict[str, dict[str, Any]] = {}
    if not part.dry:
        part.attempt("short training before", partial(trained, part, "adamw", False, short=True))
    for name in list(WAYS)[:2] if part.dry else WAYS:
        optimizer, exact = WAYS[name]
        if found and part.seconds_left < MARGIN * max(one["seconds"] for one in found.values()):
            part.keep(left_out=name)
            break
        on_cuda_only = optimizer == "adamw8bit"
        one = part.attempt(name, partial(trained, part, optimizer, exact, short=part.dry), needs_cuda=on_cuda_only)
        if one is not None:
            found[name] = one
            part.keep(headline(found), trainings=found)


def trained(part: Part, optimizer: str, exact: bool, *, short: bool) -> dict[str, Any]:
    """Seconds of one training, of its stages, and the average precision on the test rows."""
    with tempfile.TemporaryDirectory() as folder, float32() if exact else nullcontext():
        out, table = Path(folder) / "run", SAMPLE
        if short:
            table = Path(folder) / "transactions.parquet"
            write_simulation(simulate(ROWS, seed=SEED, fraud_rate=0.03), table)
        where = ("--dataset", str(table), "--device", part.device, "--seed", str(SEED), "--out", str(out))
        started = time.monotonic()
        status = train([*FLAGS, *(SHORT if short else ()), *where, "--threads", str(1 if short else threads()), "--optimizer", optimizer])
        seconds = time.monotonic() - started
        if status:
            raise RuntimeError(f"balancer train ended with status {status}")
        report = read_json(out / "report.json", what="it is the report of the run")
    return {
        "optimizer": optimizer,
        "float32": exact,
        "seconds": seconds,
        "seconds_by_stage": report["timing"]["seconds"],
        "average_precision": report["test"]["average_precision"],
        "schedule": report["run"]["schedule"],
    }


def threads() -> int:
    """CPU threads of a training; its baseline LightGBM takes long with one."""
    return min(4, os.cpu_count() or 1)


@contextmanager
def float32() -> Iterator[None]:
    """Switch off the bfloat16 autocast of training and scoring."""
    with (
        mock.patch("balancer.training.trainer.autocast", return_value=nullcontext()),
        mock.patch("balancer.inference.scoring.autocast", return_value=nullcontext()),
    ):
        yield


def headline(found: dict[str, dict[str, Any]]) -> str:
    """Seconds of the network and average precision of each training."""
    each = [f"{name} {one['seconds_by_stage']['network']:.3g} s, AP {one['average_precision']:.3f}" for name, one in found.items()]
    return "; ".join(each)


if __name__ == "__main__":
    sys.exit(main("training", measure, __doc__))
