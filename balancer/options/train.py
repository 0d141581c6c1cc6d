"""What ``balancer train`` can be told: one frozen dataclass that is the flags, their help and the saved configuration of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from balancer.errors import InputError


@dataclass(frozen=True)
class Budget:
    """How long to train; the same for the run and for each of its baselines."""

    epochs: int
    """Times that the sampling weights are recomputed."""
    steps_per_epoch: int
    """Mini-batches between two recomputations, on a table large enough to deserve them."""


LONG_HISTORY = 256
"""From here on `auto` shows whole histories and attends sparsely."""

BUDGETS: dict[str, Budget] = {
    "quick": Budget(epochs=8, steps_per_epoch=60),
    "standard": Budget(epochs=10, steps_per_epoch=160),
    "thorough": Budget(epochs=16, steps_per_epoch=400),
}


@dataclass(frozen=True)
class TrainConfig:
    """Learn class-sampling weights by PPO, train a fraud classifier under them, and report it beside its baselines."""

    dataset: Path
    """Table of transactions: a Parquet or CSV file, or a folder of Parquet files."""
    spec: Path | None = None
    """TOML file with the roles of the columns and the split; flags below override it."""
    entity: str | None = None
    """Column whose rows form one history: card, account, customer."""
    time: str | None = None
    """Column of the time: a datetime, or a number of seconds."""
    label: str | None = None
    """Column of the class: yes/no or named classes; null means unlabelled."""
    negative: str | None = None
    """The legitimate class among the label's values."""
    unlabelled: str | None = None
    """The label's value that means: not known."""
    amount: str | None = None
    """Column of the amount; negative ones are refunds."""
    id: str | None = None
    """Column that names each transaction."""
    numeric: tuple[str, ...] | None = None
    """Further numeric columns to use."""
    categorical: tuple[str, ...] | None = None
    """Categorical columns to use."""
    context: tuple[str, ...] | None = None
    """Keys whose past, delayed labels are a feature: terminal, merchant."""
    hash_buckets: int = 0
    """Codes that categorical values of fewer than 5 training rows, and unseen ones, share by their hash; 0 gives all unseen ones one code."""
    label_delay: str | None = None
    """How long it takes until a label is known, as 7d, 12h or seconds (default: 7d, or the spec's)."""
    gap: str | None = None
    """Time left out between training and validation rows (default: the label delay)."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with rows that can't be used, as an amount that is no number: stop, or drop and count them."""
    policy: str = "ppo"
    """Who sets the sampling weights: ppo (learned here), auto (learned beforehand, shipped), bandit, constant[:share=.2,hardness=1], schedule, rule, or the
    folder of a policy."""
    reward: Literal["f1", "average_precision", "partial_auc"] = "f1"
    """What PPO maximises on the validation rows."""
    budget: Literal["quick", "standard", "thorough"] = "quick"
    """How long to train policy, classifier and baselines; what each costs here is printed first."""
    epochs: int | None = None
    """Epochs of the classifiers, instead of the budget's."""
    steps_per_epoch: int | None = None
    """Mini-batches an epoch, instead of the budget's."""
    policy_rollouts: int | None = None
    """PPO rollouts, instead of the budget's."""
    history_length: int = field(default=16, metadata={"aliases": ("--history",)})
    """Transactions of an entity that the classifier sees, the one to judge included."""
    embedding: str = "auto"
    """How fields become channels: transaction (auto), tabular for tables without histories, or module:Class of your own."""
    attention: str = "auto"
    """Attention of the classifier: dense, window, sparse, or module:Class of your own; auto is dense, and sparse for histories of 256 and more."""
    head: str = "auto"
    """What decides: binary or multiclass (auto, by the label's values), or module:Class of your own."""
    form: Literal["auto", "rows", "histories"] = "auto"
    """What the classifier is shown: a window of history for each row, or whole histories of which each row is judged by what came before it; auto is
    sequence for histories of 256 and more."""
    attention_window: int = field(default=64, metadata={"aliases": ("--window",)})
    """Transactions back, its own included, that windowed and sparse attention see."""
    global_nodes: int = 8
    """Earlier transactions beyond the window that sparse attention keeps in sight."""
    warmup: float = 0.4
    """Share of the steps in which sparse attention is dense and learns which transactions to keep in sight."""
    d_model: int = 64
    """Width of the classifier."""
    layers: int = 2
    """Blocks of the classifier."""
    dropout: float = 0.2
    """Dropout inside the blocks."""
    field_dropout: float = 0.15
    """Probability that a field is hidden over the whole window of a row while training."""
    from_: Path | None = None
    """Run (of balancer train or pretrain) whose model to start from; its sizes are taken over."""
    train_only: tuple[str, ...] | None = None
    """With --from: parts to train (head, attention, embedding, adapter, tasks); all else stays what it is and is not stored again."""
    adapter_rank: int = 8
    """Rank of the low-rank adapters that --train-only adapter trains."""
    tasks: tuple[str, ...] | None = None
    """Further tasks on the same trunk: next_category, next_amount, next_time, next_fields, masked_fields; they learn from unlabelled rows too."""
    task_weights: str = "0.1"
    """What the loss of each further task counts beside 1 for the decision, or uncertainty: learned for all of them."""
    batch_size: int = 256
    """Rows of a mini-batch."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where it is."""
    threads: int = 1
    """CPU threads of classifiers and boosted trees. Small models gain little by more, lose much where cores are busy, and end in other last bits."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit keeps its moments in 8 bits by bitsandbytes: a quarter of their memory, CUDA only."""
    quantize: bool = False
    """At the end make the model smaller and faster too, as balancer quantize does."""
    seed: int = 0
    """One seed, one result."""
    out: Path | None = None
    """Run folder to write (default: runs/NAME-DATE-TIME)."""
    resume: bool = False
    """Continue the run in --out to the result it would have had; other flags may be repeated, not changed."""
    json: bool = False
    """Print the report as JSON instead of tables."""

    def __post_init__(self) -> None:
        positive = (
            "epochs",
            "steps_per_epoch",
            "policy_rollouts",
            "history_length",
            "attention_window",
            "d_model",
            "layers",
            "batch_size",
            "threads",
            "adapter_rank",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}: give a whole number from 1 up")
        for name in ("dropout", "field_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}: give a share from 0 to below 1")
        if not 0 <= self.hash_buckets <= 1_000_000:
            raise InputError(f"--hash-buckets is {self.hash_buckets}: give a whole number from 0 to 1000000")
        if self.global_nodes < 0:
            raise InputError(f"--global-nodes is {self.global_nodes}: give a whole number from 0 up")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"--warmup is {self.warmup}: give a share of the steps from 0 to 1")
        if self.form == "histories" and self.history_length < 2:
            raise InputError("--form histories needs a --history-length of at least 2")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"--learning-rate is {self.learning_rate}: give a number between 0 and 1, as 0.002")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"--seed is {self.seed}: give a whole number from 0 to 2147483647")
        if self.train_only is not None:
            if self.from_ is None:
                raise InputError("--train-only needs --from: name the run whose other parts stay")
            from balancer.models.parts import check_parts  # torch is not imported to print the help

            check_parts(self.train_only, "--train-only")
        self.fixed_task_weights()
        if self.resume and self.out is None:
            raise InputError("--resume needs --out: name the run folder to continue")

    def fixed_task_weights(self) -> dict[str, float] | None:
        """The weight of each further task where they are fixed, None where they are learned."""
        if self.task_weights == "uncertainty":
            return None
        try:
            weight = float(self.task_weights)
        except ValueError:
            weight = -1.0
        if not 0 <= weight < 1e6:
            raise InputError(f"--task-weights is {self.task_weights!r}: give uncertainty, or a number from 0 up")
        return dict.fromkeys(self.tasks or (), weight)

    def schedule(self) -> Budget:
        """The budget with ``epochs`` and ``steps_per_epoch`` put in."""
        base = BUDGETS[self.budget]
        return Budget(self.epochs or base.epochs, self.steps_per_epoch or base.steps_per_epoch)

    def parts(self, history_length: int) -> dict[str, Any]:
        """The fields of a `ModelConfig` that say how a history of at most ``history_length`` transactions is looked at, ``auto`` put in."""
        long = history_length >= LONG_HISTORY
        attention = ("sparse" if long else "dense") if self.attention == "auto" else self.attention
        form = ("histories" if long else "rows") if self.form == "auto" else self.form
        return {
            "history_length": history_length,
            "attention": attention,
            "form": form if history_length > 1 else "rows",  # a table without an entity has histories of one row
            "attention_window": self.attention_window,
            "global_nodes": self.global_nodes,
        }

    def role_overrides(self) -> dict[str, object]:
        """The role flags that were given, by spec key."""
        names = (
            "entity",
            "time",
            "label",
            "negative",
            "unlabelled",
            "amount",
            "id",
            "numeric",
            "categorical",
            "context",
            "label_delay",
            "gap",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


NOT_PART_OF_THE_RESULT = frozenset({"out", "resume", "json", "quantize"})
"""Fields that may differ between a run and its resumption."""
