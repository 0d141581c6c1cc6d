"""The flags of ``balancer train``, which are also the saved configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from balancer.options.data import DataOptions
from balancer.options.fit import FitOptions, StartOptions, TaskOptions
from balancer.options.model import ModelOptions
from balancer.options.policy import PolicyOptions
from balancer.options.run import RunOptions


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataOptions, ModelOptions, FitOptions, TaskOptions, StartOptions, PolicyOptions, RunOptions):
    """Learn sampling weights with PPO, train a fraud classifier with them, and compare it with baselines."""

    HEADING: ClassVar[str] = "Output"

    quantize: Annotated[bool, "Quantize the trained model too, as balancer quantize does."] = False
    json: Annotated[bool, "Print the report as JSON instead of tables."] = False


NOT_PART_OF_THE_RESULT = frozenset({"out", "resume", "json", "quantize"})
"""Fields that do not change the result of a run: they may differ when it is resumed."""
