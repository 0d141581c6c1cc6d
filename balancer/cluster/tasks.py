"""Independent tasks: one after another in this process, side by side in several, or on a Ray cluster.

A task is a call ``function(shared, item, tell)`` of a function of a module. It gets everything that it needs
as arguments, so its result does not depend on where it runs. Results come back as tasks finish; whoever calls
stores them, so that a stopped command continues with the tasks that are missing.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from balancer.cluster.connection import connected
from balancer.cluster.processes import POLL_SECONDS, RETRIES, Processes
from balancer.errors import InputError, LostWorkerError, UnsupportedError

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")
Tell = Callable[[str], None]
"""Called by a task with a short text about its progress."""
TaskTell = Callable[[int, str], None]
"""Called with the number of a task and its text."""


def run_tasks(
    function: Callable[[Shared, Item, Tell], Result],
    items: Sequence[Item],
    *,
    shared: Shared,
    cluster: str | None = None,
    workers: int | None = None,
    cpus: int = 1,
    gpus: float = 0,
    tell: TaskTell | None = None,
) -> Generator[tuple[int, Result]]:
    """Run one task for each item.

    With one worker and without a cluster the tasks run in this process, in the order of the items. Else they
    run side by side and come back in the order in which they finish. Where the caller closes the generator
    (``contextlib.closing``), or Ctrl-C is typed, the other tasks are cancelled.

    Args:
        function: A function of a module; on a cluster this package must be installed on every machine.
        items: What differs between the tasks.
        shared: What all tasks get; it is sent to each process or machine once.
        cluster: Address of a cluster (:mod:`balancer.cluster.connection`); None for this machine.
        workers: Most tasks at once; None: one on this machine, and as many as a cluster has room for.
        cpus: CPUs that a task takes on a cluster, which is the number of its threads.
        gpus: GPUs that a task takes on a cluster.
        tell: Called with the texts of running tasks.

    Yields:
        Number of an item and the result of its task.

    Raises:
        InputError: A task raised it, or was lost more than `RETRIES` times, or no machine of the cluster has
            what a task takes.
    """
    if not items:
        return
    if cluster is None and (workers or 1) > 1:
        with Processes(min(workers or 1, len(items)), shared) as processes:
            yield from processes.run(function, items, tell)
        return
    if cluster is None:
        for index, item in enumerate(items):
            yield index, function(shared, item, _told(tell, index))
        return
    with connected(cluster, workers) as ray:
        _check_room(ray, cpus, gpus)
        yield from _run_on(ray, function, items, shared, workers, {"num_cpus": cpus, "num_gpus": gpus}, tell)


def _told(tell: TaskTell | None, index: int) -> Tell:
    return lambda text: None if tell is None else tell(index, text)


def _check_room(ray: Any, cpus: int, gpus: float) -> None:
    """Check that some machine has what a task takes; Ray would wait for one.

    Raises:
        UnsupportedError: None has.
    """
    machines = [node.get("Resources", {}) for node in ray.nodes() if node.get("Alive")]
    for resource, amount in (("CPU", cpus), ("GPU", gpus)):
        most = max((machine.get(resource, 0.0) for machine in machines), default=0.0)
        if most < amount:
            flag = "--device cpu" if resource == "GPU" else f"--threads {int(most)}"
            raise UnsupportedError(f"a task takes {amount:g} {resource}, and no machine of the cluster has more than {most:g}: use {flag}")


def _run_on(
    ray: Any,
    function: Callable[[Shared, Item, Tell], Result],
    items: Sequence[Item],
    shared: Shared,
    workers: int | None,
    resources: dict[str, Any],
    tell: TaskTell | None,
) -> Generator[tuple[int, Result]]:
    board = None if tell is None else ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board).remote()
    task = ray.remote(max_retries=RETRIES, **resources)(_task)
    key, common, waiting = uuid.uuid4().hex, (ray.put(shared), os.getcwd()), list(range(len(items)))
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and (workers is None or len(running) < workers):
                index = waiting.pop(0)
                running[task.remote(function, key, common, items[index], index, board)] = index
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            if board is not None and tell is not None:
                for index, text in ray.get(board.taken.remote()).items():
                    tell(index, text)
            for reference in ready:
                yield running.pop(reference), _result(ray, reference)
    finally:
        for reference in running:
            ray.cancel(reference)  # raises KeyboardInterrupt in it, as Ctrl-C does
        if board is not None:
            ray.kill(board)


def _task(function: Callable[[Any, Any, Tell], Result], key: str, common: tuple[Any, str], item: Any, index: int, board: Any) -> Result:
    """One task on a worker of the cluster.

    ``common`` has a reference to what all tasks get, and the folder in which the command was typed.
    """
    if key not in _shared:
        import ray

        reference, folder = common
        with suppress(OSError):  # another machine may lack it; then relative paths are not found, which is said
            os.chdir(folder)
        _shared.clear()
        _shared[key] = ray.get(reference)
    return function(_shared[key], item, lambda text: None if board is None else board.write.remote(index, text))


_shared: dict[str, Any] = {}
"""In a worker: what the tasks of one call of `run_tasks` get, so that it is unpacked once."""


def _result(ray: Any, reference: Any) -> Any:
    """The result of a finished task.

    Raises:
        InputError: The task raised it, or was lost too often.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, InputError):
            raise cause from error
        raise
    except ray.exceptions.RayError as error:  # the worker or its machine is gone, or has no memory left
        lines = str(error).strip().splitlines()
        reason = lines[0].rstrip(".:") if lines else type(error).__name__
        raise LostWorkerError(
            f"a task was lost {RETRIES + 1} times, the last time because: {reason}; finished tasks are kept: give the tasks more memory "
            "(fewer --workers), and continue"
        ) from error


class Board:
    """The last text of every running task; it lives in a process of the cluster."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}

    def write(self, index: int, text: str) -> None:
        """Replace the text of a task."""
        self.texts[index] = text

    def taken(self) -> dict[int, str]:
        """The texts that were written since the last call."""
        texts, self.texts = self.texts, {}
        return texts
