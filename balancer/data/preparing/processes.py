"""Run the tasks of a preparation in several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

from balancer.data.preparing.store_writing import RunTasks, Task

_THREADS = "POLARS_MAX_THREADS"


@contextmanager
def in_processes(workers: int) -> Iterator[RunTasks]:
    """Start processes for a ``with`` block.

    Args:
        workers: Number of processes.

    Yields:
        Runs the tasks of a stage in them.
    """
    given = os.environ.get(_THREADS)
    if given is None:  # the processes share the cores
        os.environ[_THREADS] = str(max(1, (os.cpu_count() or 1) // workers))
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    def run(task: Task, folder: str, numbers: Sequence[int]) -> Iterator[int]:
        started = {pool.submit(task, folder, number): number for number in numbers}
        for done in as_completed(started):
            done.result()
            yield started[done]

    try:
        yield run
    finally:
        # After an error or Ctrl-C, tasks that have not begun are left for the next try.
        pool.shutdown(wait=True, cancel_futures=True)
        if given is None:
            os.environ.pop(_THREADS, None)
