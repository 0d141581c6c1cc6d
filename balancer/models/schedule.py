"""Schedule of the learning rate, for the classifier and for the students of the environments."""

from __future__ import annotations

import math

WARMUP_SHARE = 0.05
"""Fraction of the steps with a rising learning rate."""


def learning_rate_factor(step: int, total_steps: int) -> float:
    """Factor of the peak learning rate at a step: linear warm-up, then cosine to zero.

    >>> [round(learning_rate_factor(step, 40), 3) for step in (0, 1, 2, 21, 40)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warmup = max(1, int(WARMUP_SHARE * total_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total_steps - warmup))))
