"""Processes that compute one thing together on a Ray cluster (Ray Train).

All call the same function of a module, in which ``torch.distributed`` is initialized. Where one of them is
lost, Ray ends the others and starts all of them again; the function continues from what it has stored.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from datetime import timedelta
from typing import Any, TypeVar

from balancer.cluster.connection import connected
from balancer.errors import InputError, LostWorkerError

Shared = TypeVar("Shared")
Say = Callable[[str], None]
"""Called with a line of text."""

RESTARTS = 5
"""How often the processes are started again after one of them was lost."""
POLL_SECONDS = 0.3
"""How often lines of the processes are fetched."""


def run_together(
    function: Callable[[Shared, int, Say], None],
    shared: Shared,
    *,
    cluster: str,
    workers: int,
    cpus: int,
    gpu: bool,
    backend: str,
    wait: timedelta,
    say: Say,
) -> None:
    """Call a function in several processes of a cluster.

    Args:
        function: A function of a module, called with ``shared``, how often the processes were started again,
            and a function that prints a line on this machine. This package must be installed on every
            machine of the cluster.
        shared: What each process gets.
        cluster: Address of the cluster, see `balancer.cluster.connection`.
        workers: Number of processes.
        cpus: CPUs of each process.
        gpu: Whether each process gets a CUDA device.
        backend: Backend of ``torch.distributed``.
        wait: Longest wait of a process for the others.
        say: Prints a line.

    Raises:
        InputError: The function raised one, or processes were lost more than `RESTARTS` times.
    """
    with connected(cluster, workers * cpus) as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        lines = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Lines).remote()
        folder = tempfile.mkdtemp(prefix="balancer-ray-")  # Ray wants one, but nothing is stored there
        trainer = TorchTrainer(
            _run,
            train_loop_config={"function": function, "shared": shared, "lines": lines, "gpu": gpu},
            torch_config=TorchConfig(backend=backend, timeout_s=int(wait.total_seconds())),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": cpus} | ({"GPU": 1} if gpu else {})
            ),
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=RESTARTS)),
        )
        ended: Future[Any] = Future()

        def fit() -> None:
            try:
                ended.set_result(trainer.fit())
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                ended.set_exception(error)

        # In a thread of its own, so that Ctrl-C ends this one, which shows what the processes print.
        threading.Thread(target=fit, daemon=True).start()
        try:
            while not ended.done():
                wait_for([ended], POLL_SECONDS)
                for line in ray.get(lines.taken.remote()):
                    say(line)
            error = ray.get(lines.error.remote())
        finally:
            ray.kill(lines)
            shutil.rmtree(folder, ignore_errors=True)
        if error is not None:
            raise InputError(error)
        try:
            ended.result()
        except (TrainingFailedError, ray.exceptions.RayError) as failed:
            text = " ".join(str(failed).split())[:500]
            raise InputError(f"the workers failed {RESTARTS + 1} times ({text}): continue with --resume") from failed


def _run(config: dict[str, Any]) -> None:
    """One of the processes."""
    import ray
    from ray.train import get_context

    lines, leads = config["lines"], get_context().get_world_rank() == 0

    def say(line: str) -> None:
        if leads:
            lines.write.remote(line)

    if config["gpu"]:
        import torch
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    try:
        config["function"](config["shared"], ray.get(lines.started.remote(leads)), say)
    except LostWorkerError:
        raise  # Ray starts the processes again
    except InputError as error:
        ray.get(lines.end.remote(str(error)))


class Lines:
    """What the processes print, and how they ended; it lives in a process of the cluster."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.starts = 0
        self.failed: str | None = None

    def started(self, leads: bool) -> int:
        """How often the processes were started before, as the one that leads knows it."""
        self.starts += leads
        return self.starts - leads

    def write(self, line: str) -> None:
        """Add a line."""
        self.waiting.append(line)

    def taken(self) -> list[str]:
        """The lines that were added since the last call."""
        lines, self.waiting = self.waiting, []
        return lines

    def end(self, error: str) -> None:
        """Keep why the processes ended; the first reason counts."""
        self.failed = self.failed or error

    def error(self) -> str | None:
        """Why they ended; None where they finished."""
        return self.failed
