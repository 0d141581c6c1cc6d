"""Where torch computes: the device, and the threads and the global random state for a block of code.

Results depend on the number of threads: torch splits sums by thread, so the last bits of a score can change
with it. Training, scoring and evaluation therefore use the number that the run was trained with. The number
is a setting of the whole process. A call that changed it permanently would slow down whatever the caller does
next, or change its results. The same holds for the global random generators.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from balancer.errors import UnsupportedError


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` CPU threads in a `with` block or a decorated function, then restore the number.

    One thread is best for small products: on a busy machine two threads that wait for each other took 20
    times as long as one.

    Threads of the process that first use torch during the block begin with `count` too, and keep it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore the global generators of torch, NumPy and Python after a `with` block or a decorated function.

    Trainings seed them, because layers and Stable-Baselines3 draw from them. Without this the random numbers
    of the caller would be the same after each training.
    """
    python, numpy, seed = random.getstate(), np.random.get_state(), torch.initial_seed()  # noqa: NPY002 (the global one)
    known = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if known else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if torch.cuda.is_initialized() and not known:
            torch.cuda.manual_seed_all(seed)  # as torch begins where CUDA is first used


def choose_device(name: str = "auto") -> str:
    """The device to compute on: `auto` is CUDA where torch finds a CUDA device, else the CPU.

    Raises:
        UnsupportedError: `name` is cuda and torch finds no CUDA device.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UnsupportedError("--device cuda: torch finds no CUDA device here; use --device auto or cpu")
    return "cuda" if name != "cpu" and available else "cpu"
