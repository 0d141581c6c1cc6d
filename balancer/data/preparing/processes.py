"""Run the tasks of a preparation in several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from balancer.data.preparing.store_writing import RunTasks, Task
from balancer.errors import LostWorkerError

_THREADS = "POLARS_MAX_THREADS"


@contextmanager
def in_processes(workers: int) -> Iterator[RunTasks]:
    """Start processes for a ``with`` block.

    Args:
        workers: Number of processes.

    Yields:
        Runs the tasks of a stage in them. It raises LostWorkerError where a process was lost.
    """
    given = os.environ.get(_THREADS)
    if given is None:  # the processes share the cores
        os.environ[_THREADS] = str(max(1, (os.cpu_count() or 1) // workers))
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupts)

    def run(task: Task, folder: str, numbers: Sequence[int]) -> Iterator[int]:
        started = {pool.submit(task, folder, number): number for number in numbers}
        try:
            for done in as_completed(started):
                done.result()
                yield started[done]
        except BrokenProcessPool as error:
            raise LostWorkerError(
                "a process of the preparation was lost, perhaps because memory ran out: run the same command again, with fewer --workers; "
                "more --shards, in another folder, need less memory too"
            ) from error

    try:
        yield run
    finally:
        # After an error or Ctrl-C, tasks that have not begun are left for the next try.
        pool.shutdown(wait=True, cancel_futures=True)
        if given is None:
            os.environ.pop(_THREADS, None)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; the one that started the others ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
