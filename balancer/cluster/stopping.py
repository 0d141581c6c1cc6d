"""Ctrl-C and SIGTERM in work of several processes.

SIGTERM stops it as Ctrl-C does, so that tasks end and the command says how to continue. ``kill``,
``ray job stop``, a container that ends and a batch system send it. Python would end the process at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def sigterm_restored() -> Iterator[None]:
    """Restore the handler of SIGTERM after a ``with`` block; only the main thread can change it."""
    if not _in_main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:  # None: a handler that Python does not know
            signal.signal(signal.SIGTERM, before)


def interrupt_on_sigterm() -> None:
    """Let the next SIGTERM raise `KeyboardInterrupt` in the main thread; later ones are ignored."""
    _raise_on_sigterm(KeyboardInterrupt())


def exit_on_sigterm() -> None:
    """Let the next SIGTERM end the process as an error does, with its exit code; later ones are ignored."""
    _raise_on_sigterm(SystemExit(128 + signal.SIGTERM))


def _raise_on_sigterm(error: BaseException) -> None:
    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one must not cut the cleaning up
        raise error

    if _in_main_thread():
        signal.signal(signal.SIGTERM, stop)


@contextmanager
def stops_deferred() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM back until the end of a block that starts processes.

    A process that is half started is not in the list of those to stop. It inherits that Ctrl-C is kept back,
    and so prints no traceback while it is importing. Windows can't keep signals back.
    """
    came: list[int] = []
    main, masks = _in_main_thread(), hasattr(signal, "pthread_sigmask")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    for number in handlers:
        signal.signal(number, lambda number, _: came.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
