"""What ``torchrun`` tells the processes that it starts; torch is not imported for it."""

from __future__ import annotations

import os


def started_by_torchrun() -> bool:
    """Whether ``torchrun``, or a launcher with the same variables, started this process as one of several."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
