"""What a client should do with a transaction, from its score and its decision."""

from __future__ import annotations

APPROVE, REVIEW = "approve", "review"


def action(*, alarm: bool) -> str:
    """Name the action for a transaction.

    Args:
        alarm: Whether it reaches the threshold of the model.
    """
    return REVIEW if alarm else APPROVE
