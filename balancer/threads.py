"""The number of CPU threads that torch uses: set for a block of code and restored after it.

The number is part of what a result depends on: torch splits sums by thread, so the last bits of a score can change with
it. Training, scoring and evaluation therefore run with the number that the run was trained with. It is a setting of the
whole process, so a call that changed it for good would slow down, or change the results of, whatever the caller does next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` CPU threads in a `with` block or in a decorated function, then restore the number.

    Threads of the process that first use torch during the block begin with `count` too, and keep it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
