"""Processes of this machine that run independent tasks side by side.

A process ends with the one that started it, also where that one is killed. A task that was lost with its
process is run again.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from multiprocessing import reduction, resource_tracker
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self, TypeVar

from balancer.cluster.stopping import interrupt_on_sigterm, sigterm_restored, stops_deferred
from balancer.errors import LostWorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 3
"""How often tasks that were lost with a process are run again."""
POLL_SECONDS = 0.5
"""How often the texts of running tasks are fetched."""
END_SECONDS = 5.0
"""How long a task that is stopped may take to remove its temporary files."""
_BEGUN = -1
"""In the place of the number of a task: a process has begun."""
_WARNED = -2
"""In the place of the number of a task: a warning of a process."""


class Processes:
    """Processes for a ``with`` block; they start with the first task.

    Where the block ends with an error, or by Ctrl-C, running tasks are stopped and the others are not begun.

    Args:
        workers: Number of processes.
        shared: What all tasks get; it is sent to each process once.
    """

    def __init__(self, workers: int, shared: Any = None) -> None:
        self.workers, self._shared = workers, shared
        self._arguments = shared
        self._begun = False
        self._warned: dict[Any, Any] = {}
        self._context = multiprocessing.get_context("spawn")

    def __enter__(self) -> Self:
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            # It imports a script without the line that `run` names; the process that started it says so.
            os._exit(1)
        self._other_children = set(multiprocessing.active_children())
        with ExitStack() as stack:
            # The processes share the cores.
            stack.enter_context(_variable("POLARS_MAX_THREADS", str(max(1, (os.cpu_count() or 1) // self.workers))))
            stack.enter_context(sigterm_restored())
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # a program of the user may have its own handler
                interrupt_on_sigterm()
            if hasattr(os, "memfd_create"):
                self._arguments = stack.enter_context(closing(_Held(self._shared)))
            self._open()
            self._restored = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._restored:
            if kind is None:
                self._pool.shutdown()
            else:
                self._stop()

    def _stop(self) -> None:
        children = self._children()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()
        for child in children:
            child.join(END_SECONDS)
            if child.is_alive():
                child.kill()
        self._pool.shutdown()

    def _children(self) -> set[Any]:
        return set(multiprocessing.active_children()) - self._other_children

    def _open(self) -> None:
        # Where this process is killed, the tracker would warn of semaphores, which it deletes.
        with _variable("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker"):
            resource_tracker.ensure_running()
        self._texts: Any = self._context.SimpleQueue()
        arguments = (self._arguments, self._texts)
        self._pool = ProcessPoolExecutor(self.workers, mp_context=self._context, initializer=_begin, initargs=arguments)

    def run(
        self,
        function: Callable[[Any, Item, Callable[[str], None]], Result],
        items: Sequence[Item],
        tell: Callable[[int, str], None] | None = None,
    ) -> Generator[tuple[int, Result]]:
        """Run one task for each item; see :func:`balancer.cluster.tasks.run_tasks`.

        Raises:
            LostWorkerError: Tasks were lost more than `RETRIES` times, or no process could start.
        """
        left, lost, children = dict(enumerate(items)), 0, self._children()
        while left:
            try:
                with stops_deferred():
                    running = {self._pool.submit(_task, function, item, index): index for index, item in left.items()}
                children = self._children()
                while running:
                    finished, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                    self._pass_on(tell)
                    for index, result in _results({future: running.pop(future) for future in finished}):
                        del left[index]
                        yield index, result
            except BrokenProcessPool as error:
                self._pool.shutdown()
                self._pass_on(tell)
                if not self._begun and any((child.exitcode or 0) > 0 for child in children):  # not those that were killed
                    raise LostWorkerError(
                        f"none of {self.workers} processes could start: in a script, make this call below the line "
                        "if __name__ == '__main__': and keep the script in a file; or use one worker"
                    ) from None
                lost += 1
                if lost > RETRIES:
                    raise LostWorkerError(
                        f"a process was lost {lost} times, perhaps because memory ran out; finished tasks are kept: "
                        "run the same command again, with fewer --workers"
                    ) from error
                self._open()

    def _pass_on(self, tell: Callable[[int, str], None] | None) -> None:
        texts: dict[int, str] = {}
        while not self._texts.empty():
            index, text = self._texts.get()
            if index == _BEGUN:
                self._begun = True
            elif index == _WARNED:  # each is shown once, however many processes have it
                message, category, file, line = text
                warnings.warn_explicit(message, category, file, line, registry=self._warned)
            else:
                texts[index] = text
        if tell is not None:
            for index, text in texts.items():
                tell(index, text)


def _results(finished: dict[Future[Result], int]) -> Generator[tuple[int, Result]]:
    """The results of finished tasks, before the error of one that was lost."""
    lost = [future for future in finished if isinstance(future.exception(), BrokenProcessPool)]
    for future, index in finished.items():
        if future not in lost:
            yield index, future.result()
    if lost:
        lost[0].result()


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment, which processes inherit; one that is set already stays."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


class _Held:
    """A value in memory that processes inherit, and read when they start.

    A process gets its arguments through a pipe. There a large value would block this process until the other
    one has read it, and for ever where that one is killed before. Other systems than Linux lack such memory.
    """

    def __init__(self, value: Any) -> None:
        self._file = os.fdopen(os.memfd_create("balancer"), "wb")
        pickle.dump(value, self._file, protocol=pickle.HIGHEST_PROTOCOL)
        self._file.flush()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _read_held, (reduction.DupFd(self._file.fileno()),)

    def close(self) -> None:
        """Give the memory back where no process has it any more."""
        self._file.close()


def _read_held(inherited: Any) -> Any:
    # All processes have one place in the file, so it is mapped instead of read.
    with os.fdopen(inherited.detach(), "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return pickle.loads(content)  # noqa: S301 - the process that started this one has just written it


class _Worker:
    """State of a process."""

    shared: Any = None
    """What all tasks get."""
    texts: Any = None
    """Queue for the texts of tasks, which the process that started this one reads."""
    busy = False
    ending = False


def _begin(shared: Any, texts: Any) -> None:
    """First call in a process."""
    _Worker.shared, _Worker.texts = shared, texts
    # Ctrl-C reaches every process of the terminal; the one that started the others ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.showwarning = _pass_warning_on
    texts.put((_BEGUN, ""))


def _pass_warning_on(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object, **__: object) -> None:
    """Instead of the display of this process; the one that started it shows the warning."""
    _Worker.texts.put((_WARNED, (str(message), category, filename, lineno)))


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    """Interrupt a task, so that it removes its temporary files; without a task, end."""
    if not _Worker.busy:
        os._exit(1)
    _Worker.ending = True
    # The pool sends another signal when it finds that a process has ended; it must not cut the cleaning up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # so that a running task removes its temporary files
        time.sleep(END_SECONDS)
        os._exit(1)


def _task(function: Callable[[Any, Item, Callable[[str], None]], Result], item: Item, index: int) -> Result:
    _Worker.busy = True
    try:
        return function(_Worker.shared, item, lambda text: _Worker.texts.put((index, text)))
    finally:
        _Worker.busy = False
        if _Worker.ending:  # else the process would begin the next task
            os._exit(1)
