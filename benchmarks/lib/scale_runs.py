"""Commands of ``balancer`` on several processes and on two nodes of Ray on this machine; what they wrote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors import safe_open

from benchmarks.lib.commands import BALANCER
from benchmarks.lib.recording import ROOT

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(ROOT),
}
"""One thread a process, so that a gain comes from processes; the Ray of this script has no token."""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
Usage = dict[str, float]


def run(*words: object, torchrun: int = 0, restarts: int = 0, module: str = "balancer") -> Usage:
    """Run a command to its end.

    Args:
        words: Its arguments.
        torchrun: Number of processes that torchrun starts; 0 for the command alone.
        restarts: How often torchrun may start them again.
        module: Module to run.

    Returns:
        ``seconds``, ``cpu_seconds`` of all its processes, ``peak_gibibytes`` of the largest one.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(_command(words, torchrun, restarts, module), env=os.environ | ENVIRONMENT, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        if status:
            output.seek(0)
            raise RuntimeError(f"{' '.join(map(str, words))} ended with {status}:\n{output.read()[-4000:]}")
    peak = usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_gibibytes": peak}


def run_killed(ready: Callable[[], bool], *words: object) -> None:
    """Start a command, and kill it with SIGKILL when ``ready`` says so.

    Raises:
        RuntimeError: It ended before.
    """
    process = subprocess.Popen(
        _command(words, 0, 0, "balancer"), env=os.environ | ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(map(str, words))} ended with {process.returncode} before it was killed")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _command(words: tuple[object, ...], torchrun: int, restarts: int, module: str) -> list[str]:
    if not torchrun:
        return [*BALANCER, *map(str, words)] if module == "balancer" else [sys.executable, "-m", module, *map(str, words)]
    processes = [f"--nproc-per-node={torchrun}", f"--max-restarts={restarts}"]
    return [*TORCHRUN, *processes, "-m", module, *map(str, words)]


@contextmanager
def two_nodes() -> Iterator[str]:
    """A Ray cluster of two nodes of one CPU each on this machine; its address."""
    os.environ.update(ENVIRONMENT)
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def write_table(path: Path, rows: int, *, fraud_rate: float = 0.03, seed: int = 3) -> Path:
    """Write simulated transactions to a Parquet file."""
    from balancer.data.simulation.stream import simulate, write_simulation

    write_simulation(simulate(rows, seed=seed, fraud_rate=fraud_rate), path)
    return path


def predictions(run_folder: Path) -> pl.DataFrame:
    """The scored test rows of a run."""
    return pl.read_parquet(run_folder / "predictions.parquet")


def difference(one: pl.DataFrame, other: pl.DataFrame) -> float:
    """Largest difference of the scores of two tables with the same rows."""
    return float(np.abs(one["score"].to_numpy() - other["score"].to_numpy()).max())


def weights(run_folder: Path) -> list[Any]:
    """The sampling weights of every epoch of a run."""
    epochs = pl.read_parquet(run_folder / "epochs.parquet")
    return epochs.select([name for name in ("share", "hardness") if name in epochs.columns]).rows()


def rows_by_step(log: Path, attempt: int) -> dict[int, Counter[int]]:
    """How often each row entered each step, over all processes of an attempt."""
    found: dict[int, Counter[int]] = {}
    for file in log.glob(f"{attempt}-*.txt"):
        for line in file.read_text().splitlines():
            step, *rows = map(int, line.split())
            found.setdefault(step, Counter()).update(rows)
    return found


def network_seconds(run_folder: Path) -> float:
    """Seconds that the network of a run was trained for."""
    return float(json.loads((run_folder / "report.json").read_text())["timing"]["seconds"]["network"])


def parameters(run_folder: Path) -> int:
    """Number of parameters of the network of a run."""
    with safe_open(run_folder / "model.safetensors", framework="numpy") as stored:
        return sum(int(np.prod(stored.get_slice(name).get_shape())) for name in stored.keys())  # noqa: SIM118 (not a mapping)


def compared_cells(folder: Path) -> dict[str, Any]:
    """The document of a comparison, without the flags, which say where it ran."""
    content: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    return {key: value for key, value in content.items() if key != "flags"}


def scored(folder: Path) -> pl.DataFrame:
    """The scores of a store in the order of their ids, and the decision columns."""
    files = sorted(folder.glob("part-*.parquet")) if folder.is_dir() else [folder]
    return pl.read_parquet(files, glob=False).sort("transaction_id").select("transaction_id", "score", "decision", "class")


def exponent(rows: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log rows by least squares."""
    return float(np.polyfit(np.log(rows), np.log(seconds), 1)[0])
