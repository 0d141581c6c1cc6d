"""What ``torchrun`` tells the processes that it starts; torch is not imported for it."""

from __future__ import annotations

import os


def started_by_torchrun() -> bool:
    """Whether ``torchrun``, or a launcher with the same variables, started this process as one of several."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def leads() -> bool:
    """Whether this process prints: it is alone, or the first of those that ``torchrun`` started."""
    return not started_by_torchrun() or os.environ["RANK"] == "0"
