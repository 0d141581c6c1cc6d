"""Where torch computes: the device, and the number of CPU threads for a block of code.

Results depend on the number of threads: torch splits sums by thread, so the last bits of a score can change
with
it. Training, scoring and evaluation therefore use the number that the run was trained with. The number is a
setting of the whole process. A call that changed it permanently would slow down whatever the caller does
next, or change its results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


def choose_device(name: str = "auto") -> str:
    """The device to compute on: `auto` is CUDA where torch finds a CUDA device, else the CPU.

    Raises:
        UnsupportedError: `name` is cuda and torch finds no CUDA device.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UnsupportedError("--device cuda: torch finds no CUDA device here; use --device auto or cpu")
    return "cuda" if name != "cpu" and available else "cpu"
