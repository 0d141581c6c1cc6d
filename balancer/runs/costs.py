"""What an alarm and a missed fraud cost: saved with a run for the pages that show money.

What is special: the costs are in a file of their own, which neither scoring nor the service reads. So a
change of the costs alone does not change the identity of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from balancer.errors import CorruptFileError, InputError
from balancer.files import read_json, write_json

COSTS_FILE = "costs.json"


@dataclass(frozen=True)
class Costs:
    """What decisions cost.

    Raises:
        InputError: A cost is negative or not finite, or the share is not between 0 and 1.
    """

    per_alarm: float = 5.0
    """Cost of investigating one alarm, in the currency of the table."""
    loss_share: float = 1.0
    """Share of the amount of a missed fraud that is lost."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.per_alarm) and self.per_alarm >= 0):
            raise InputError(f"the cost of an alarm is {self.per_alarm}: give a number of at least 0")
        if not 0 <= self.loss_share <= 1:
            raise InputError(f"the share of a missed amount that is lost is {self.loss_share}: give a number from 0 to 1")

    @property
    def words(self) -> str:
        """Both costs in words."""
        return f"{self.per_alarm:,g} per alarm and {100 * self.loss_share:g} % of the amount of every missed fraud"

    def save(self, folder: Path) -> None:
        """Write `costs.json` to a run folder, atomically."""
        write_json(folder / COSTS_FILE, {"per_alarm": self.per_alarm, "loss_share": self.loss_share})

    @classmethod
    def load(cls, folder: Path) -> Costs | None:
        """Read `costs.json` of a run folder; None if none were saved.

        Raises:
            CorruptFileError: The file is damaged.
        """
        file = folder / COSTS_FILE
        if not file.is_file():
            return None
        content = read_json(file, what="it holds the costs of alarms and of missed frauds")
        values = [content.get(name) for name in ("per_alarm", "loss_share")]
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            raise CorruptFileError(f"{file} lacks per_alarm or loss_share as numbers: delete it, and set the costs again")
        try:
            return cls(*map(float, values))  # type: ignore[arg-type]
        except InputError as error:
            raise CorruptFileError(f"{file} can't be used ({error}): delete it, and set the costs again") from error
