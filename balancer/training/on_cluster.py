"""``balancer train --cluster``: the processes of a run on a Ray cluster; its folder is on shared storage."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from balancer.cluster.connection import connected
from balancer.cluster.workers import Say, run_together
from balancer.errors import InputError
from balancer.files import write_text
from balancer.names import counted
from balancer.options.train import TrainConfig
from balancer.runs.run_folder import make_folder
from balancer.training.distributed import BACKEND, WAIT, initialized_workers
from balancer.training.opening import VISIBLE_SECONDS
from balancer.training.pipeline import train_run

MARK = ".shared-storage"
"""File in the run folder by which a worker sees that it is the folder of this machine."""
Shared = tuple[TrainConfig, dict[str, Any], str, int]
"""Configuration, the flags that were typed, content of `MARK`, and columns of the console."""


def train_on_cluster(config: TrainConfig, given: dict[str, Any], console: Console) -> Path:
    """Train, or resume a run, with the workers of a cluster.

    Args:
        config: Configuration with ``cluster`` or ``workers``, and ``out``.
        given: Fields of ``config`` that were typed.
        console: Where progress is printed.

    Returns:
        The run folder.

    Raises:
        InputError: The cluster or the run can't be used, or some machine does not see the run folder.
    """
    address = config.address()
    assert address is not None
    assert config.out is not None
    out, mark = config.out, secrets.token_hex(8)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    with connected(address, None if config.workers is None else config.workers * config.threads) as ray:
        count, gpu = _workers(config, ray.cluster_resources())
        each = counted(config.threads, "CPU") + (" and a GPU" if gpu else "")
        say(f"{counted(count, 'worker')}, each with {each}, on {address}")
        new = not out.exists()
        make_folder(out)
        write_text(out / MARK, mark)
        try:
            run_together(
                train_worker,
                (replace(config, **_absolute(vars(config))), given | _absolute(given), mark, console.width),
                cluster=address,
                workers=count,
                cpus=config.threads,
                gpu=gpu,
                backend=BACKEND if gpu else "gloo",
                wait=WAIT,
                say=say,
            )
        finally:
            (out / MARK).unlink(missing_ok=True)
            if new and not any(out.iterdir()):
                out.rmdir()
    return out


def _workers(config: TrainConfig, resources: dict[str, float]) -> tuple[int, bool]:
    """Number of workers, and whether each gets a GPU.

    Raises:
        InputError: ``--device cuda``, and the cluster has no GPU.
    """
    gpus = int(resources.get("GPU", 0))
    gpu = config.device != "cpu" and gpus >= (config.workers or 1)
    if config.device == "cuda" and not gpu:
        raise InputError(f"--device cuda: the cluster has {gpus} GPUs: use --device auto or cpu, or fewer --workers")
    if config.workers is not None:
        return config.workers, gpu
    most = max(1, gpus if gpu else int(resources.get("CPU", 1)) // config.threads)
    if config.micro_batches is None:
        return most, gpu
    return max(count for count in range(1, most + 1) if config.micro_batches % count == 0), gpu


def _absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options among ``values`` that are paths, as absolute ones, because workers run in other folders."""
    paths = {name: value.absolute() for name, value in values.items() if isinstance(value, Path)}
    policy = values.get("policy")
    return paths | ({"policy": str(Path(policy).absolute())} if policy is not None and Path(policy).exists() else {})


def train_worker(shared: Shared, restarts: int, say: Say) -> None:
    """One of the processes on the cluster.

    Args:
        shared: What all of them get.
        restarts: How often they were started again.
        say: Prints a line where the command was typed.
    """
    config, given, mark, columns = shared
    workers = initialized_workers()
    assert config.out is not None
    workers.each(lambda: _check_mark(config.out / MARK, mark))  # type: ignore[operator]
    workers.again = workers.agreed(restarts > 0)
    train_run(config, given, Console(markup=False, file=_Lines(say), width=columns), workers)  # type: ignore[arg-type]


def _check_mark(file: Path, mark: str) -> None:
    """Check that this machine sees the run folder of the one where the command was typed.

    Raises:
        InputError: It does not.
    """
    last = time.monotonic() + VISIBLE_SECONDS
    while not (file.is_file() and file.read_text(encoding="utf-8") == mark):
        if time.monotonic() > last:
            raise InputError(
                f"--out {file.parent} is not on storage that this worker shares with the machine where balancer train was started: name a "
                "folder that all see, or start the command on the cluster with ray job submit"
            )
        time.sleep(0.1)


class _Lines:
    """A text file for a console that passes on whole lines."""

    def __init__(self, say: Say) -> None:
        self._say, self._begun = say, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._say(line)
        return len(text)

    def flush(self) -> None:
        """Lines are passed on as they end."""
