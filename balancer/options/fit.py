"""Options of training: length and method, auxiliary tasks, and the weights to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from balancer.errors import InputError
from balancer.names import AUXILIARY_TASKS, PARTS
from balancer.options.checks import check_names, check_whole
from balancer.options.flags import Flag, Options


@dataclass(frozen=True)
class Budget:
    """Length of a training, the same for a run and each of its baselines."""

    epochs: int
    """The sampling weights are updated after each epoch."""
    steps_per_epoch: int
    """Mini-batches per epoch; a small table gets fewer."""


BUDGETS: dict[str, Budget] = {
    "quick": Budget(epochs=8, steps_per_epoch=60),
    "standard": Budget(epochs=10, steps_per_epoch=160),
    "thorough": Budget(epochs=16, steps_per_epoch=400),
}


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions(Options):
    """Length and method of training."""

    HEADING: ClassVar[str] = "Training"

    epochs: Annotated[int | None, Flag("Epochs; the sampling weights are updated after each.", default="the budget's")] = None
    steps_per_epoch: Annotated[int | None, Flag("Mini-batches per epoch.", default="the budget's, fewer for a small table")] = None
    batch_size: Annotated[int, "Rows of a mini-batch."] = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "epochs", "steps_per_epoch", "batch_size")


@dataclass(frozen=True, kw_only=True)
class FitOptions(ScheduleOptions):
    """Length and method of training."""

    HEADING: ClassVar[str] = "Training"
    BUDGETS: ClassVar[Mapping[str, Budget]] = BUDGETS

    budget: Annotated[
        Literal["quick", "standard", "thorough"],
        "How long to train the policy, the classifier and the baselines; the estimated time of each budget is printed first.",
    ] = "quick"
    learning_rate: Annotated[float, "Peak learning rate of AdamW."] = 2e-3
    warmup: Annotated[
        float,
        "Share of the training steps in which sparse attention is dense, while it learns which transactions to select.",
    ] = 0.4
    optimizer: Annotated[
        Literal["adamw", "adamw8bit"],
        "adamw8bit keeps its moments in 8 bits (bitsandbytes, CUDA only): a quarter of their memory.",
    ] = "adamw"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warmup <= 1:
            raise InputError(f"--warmup is {self.warmup}: give a share of the steps from 0 to 1")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"--learning-rate is {self.learning_rate}: give a number between 0 and 1, such as 0.002")

    def schedule(self) -> Budget:
        """The budget, with ``epochs`` and ``steps_per_epoch`` in its place where they are given."""
        base = self.BUDGETS[self.budget]
        return Budget(self.epochs or base.epochs, self.steps_per_epoch or base.steps_per_epoch)


@dataclass(frozen=True, kw_only=True)
class TaskOptions(Options):
    """Self-supervised tasks that are trained together with the classifier; they use unlabelled rows too."""

    HEADING: ClassVar[str] = "Auxiliary tasks"

    tasks: Annotated[tuple[str, ...] | None, f"One or more of {', '.join(AUXILIARY_TASKS)}."] = None
    task_weights: Annotated[
        str,
        Flag("Weight of each auxiliary loss (the classifier's is 1), or uncertainty: the weights are learned.", metavar="X"),
    ] = "0.1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.tasks or (), AUXILIARY_TASKS, "--tasks", "task")
        self.fixed_task_weights()

    def fixed_task_weights(self) -> dict[str, float] | None:
        """The weight of each auxiliary task, or None where the weights are learned."""
        if self.task_weights == "uncertainty":
            return None
        try:
            weight = float(self.task_weights)
        except ValueError:
            weight = -1.0
        if not 0 <= weight < 1e6:
            raise InputError(f"--task-weights is {self.task_weights!r}: give uncertainty, or a number from 0 up")
        return dict.fromkeys(self.tasks or (), weight)


@dataclass(frozen=True, kw_only=True)
class StartOptions(Options):
    """Start from the model of another run instead of new weights."""

    HEADING: ClassVar[str] = "Starting from another run"

    from_: Annotated[
        Path | None,
        Flag("Run of balancer train or pretrain to start from; the model's sizes are taken from it.", metavar="RUN"),
    ] = None
    train_only: Annotated[
        tuple[str, ...] | None,
        f"Train and store only these parts, needs --from: {', '.join(PARTS)}.",
    ] = None
    adapter_rank: Annotated[int, "Rank of the low-rank adapters that --train-only adapter trains."] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "adapter_rank")
        if self.train_only is not None:
            if self.from_ is None:
                raise InputError("--train-only needs --from: name the run whose other parts stay")
            check_names(sorted(self.train_only), PARTS, "--train-only", "part")
            if not self.train_only:
                raise InputError(f"--train-only names no part: give one or more of {', '.join(PARTS)}")

    def new_adapter_rank(self) -> int:
        """Rank of the adapters that are trained; 0 if none are."""
        return self.adapter_rank if "adapter" in (self.train_only or ()) else 0
