"""The flags of ``balancer train``, which are also the saved configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from balancer.errors import InputError
from balancer.options.checks import check_whole
from balancer.options.cluster import TogetherOptions
from balancer.options.data import DataOptions
from balancer.options.fit import FitOptions, StartOptions, TaskOptions
from balancer.options.flags import Flag, Options, flag_of
from balancer.options.model import ModelOptions
from balancer.options.policy import PolicyOptions
from balancer.options.run import RunOptions

MAX_DROP = 0.003
"""Average precision on validation rows that the precision plan of a run may cost; the default of ``balancer
quantize``."""


@dataclass(frozen=True, kw_only=True)
class LearnerOptions(Options):
    """What the detector consists of."""

    HEADING: ClassVar[str] = "Detector"

    learner: Annotated[
        Literal["auto", "hybrid", "network", "trees"],
        "hybrid: boosted trees, their scores of earlier transactions, and a network on top of them; network: the network alone; "
        "trees: boosted trees with their earlier scores alone. auto is hybrid, or network where there are too few frauds for trees, "
        "or where --from names a run without trees.",
    ] = "auto"
    margin: Annotated[
        Literal["trees", "none"],
        "What a hybrid's network adds to: the log-odds of the first stage of the trees, or nothing.",
    ] = "trees"


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(TogetherOptions):
    """Train the networks with several processes, which torchrun or a Ray cluster (--cluster) starts."""

    HEADING: ClassVar[str] = "Several processes"

    micro_batches: Annotated[
        int | None,
        Flag(
            "Parts of a mini-batch whose gradients are added; a multiple of the number of processes. With the same number of parts, the "
            "results do not depend on the number of processes beyond rounding.",
            default="1, or 4 with several processes",
        ),
    ] = None
    deterministic: Annotated[
        bool,
        "Add the gradients of the micro-batches in a fixed order, so that the results do not depend on the number of processes at all.",
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "micro_batches", most=4096)
        if self.micro_batches is not None and self.workers is not None and self.micro_batches % self.workers:
            raise InputError(f"--micro-batches is {self.micro_batches}: give a multiple of the {self.workers} processes of --workers")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    DataOptions, LearnerOptions, ModelOptions, FitOptions, TaskOptions, StartOptions, PolicyOptions, RunOptions, ProcessOptions
):
    """Learn sampling weights with PPO, train a fraud classifier with them, and compare it with baselines."""

    HEADING: ClassVar[str] = "Output"
    COMMON: ClassVar[tuple[str, ...]] = (
        *("spec", "entity", "time", "label", "amount", "categorical", "context", "label_delay", "bad_rows"),
        *("learner", "budget", "from_", "policy", "device", "seed", "out", "resume", "json"),
    )

    precision: Annotated[
        Literal["planned", "full"],
        f"planned: layers of the trained network get INT8 weights where that costs at most {MAX_DROP} of average precision on validation "
        "rows, and score, serve and the app use that network; full: all layers stay in float32.",
    ] = "planned"
    quantize: Annotated[bool, "Without effect: training ends with a precision plan (--precision)."] = False
    json: Annotated[bool, "Print the report as JSON instead of tables."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin == "none" and self.learner in ("network", "trees"):
            raise InputError(f"--margin none has no effect on --learner {self.learner}, which has no margin: leave it out")
        if self.learner == "trees":
            for name in ("from_", "train_only", "tasks", "quantize"):
                if getattr(self, name):
                    raise InputError(
                        f"--learner trees trains no network, so {flag_of(name)} has no effect: leave it out, or use --learner hybrid"
                    )


NOT_PART_OF_THE_RESULT = frozenset({"out", "resume", "json", "quantize", "cluster", "workers"})
"""Fields that do not change the result of a run: they may differ when it is resumed."""
