"""What a client should do with a transaction, from its score and its decision."""

from __future__ import annotations

from dataclasses import dataclass

APPROVE, REVIEW, DECLINE = "approve", "review", "decline"
ACTIONS = (APPROVE, REVIEW, DECLINE)


@dataclass(frozen=True)
class Actions:
    """Names the action for a transaction."""

    decline_above: float | None = None
    """Calibrated score from which a transaction is to be declined; None: alarms are reviewed, and none is
    declined."""

    def of(self, score: float, *, alarm: bool) -> str:
        """Name the action for a transaction.

        Args:
            score: Its calibrated score.
            alarm: Whether it reaches the threshold of the model.
        """
        if self.decline_above is not None and score >= self.decline_above:
            return DECLINE
        return REVIEW if alarm else APPROVE
