"""The flags of ``balancer pretrain``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar, Literal

from balancer.options.data import DataOptions
from balancer.options.fit import Budget, FitOptions
from balancer.options.flags import Flag
from balancer.options.model import ModelOptions
from balancer.options.run import RunOptions
from balancer.options.train import TrainConfig

TASKS = ("next_fields", "masked_fields")
"""What is learned in pretraining."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(DataOptions, ModelOptions, FitOptions, RunOptions):
    """Pretrain a model without labels on masked fields and the next transaction.

    Only the training rows of the time split are used. balancer train --from continues with labels.
    """

    HEADING: ClassVar[str] = "Output"
    COMMON: ClassVar[tuple[str, ...]] = (
        *("spec", "entity", "time", "amount", "categorical", "history_length", "budget", "device", "seed", "out", "resume", "json"),
    )
    BUDGETS: ClassVar[dict[str, Budget]] = {
        "quick": Budget(epochs=8, steps_per_epoch=100),
        "standard": Budget(epochs=12, steps_per_epoch=300),
        "thorough": Budget(epochs=20, steps_per_epoch=800),
    }

    budget: Annotated[Literal["quick", "standard", "thorough"], "How long to train: 800, 3,600 or 16,000 steps."] = "quick"
    epochs: Annotated[int | None, Flag("Epochs.", default="the budget's")] = None
    label: Annotated[
        str | None,
        Flag("Column with the class, or none. Labels are used only for the features of --context.", metavar="COLUMN"),
    ] = None
    dropout: float = 0.1
    json: Annotated[bool, "Print the losses as JSON instead of a table."] = False

    # Not flags: there is no head to choose yet, and the task hides fields itself.
    embedding: str = field(default="auto", init=False)
    head: str = field(default="auto", init=False)
    field_dropout: float = field(default=0.0, init=False)
    warmup: float = field(default=0.4, init=False)
    optimizer: Literal["adamw", "adamw8bit"] = field(default="adamw", init=False)

    def as_train(self) -> TrainConfig:
        """The configuration of the run folder, with the budget resolved to epochs and steps."""
        schedule = self.schedule()
        shared = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "budget"}
        length = {"epochs": schedule.epochs, "steps_per_epoch": schedule.steps_per_epoch}
        return TrainConfig(**shared | length | {"policy": "start", "tasks": TASKS, "task_weights": "1"})
