"""Options that say what the classifier is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from balancer.errors import InputError
from balancer.options.checks import check_share, check_whole
from balancer.options.flags import Flag, Options

LONG_HISTORY = 256
"""History length from which ``auto`` means sparse attention over whole histories."""


HISTORY_LENGTH = 16
"""Transactions that the classifier reads, where nothing is said."""
HYBRID_HISTORY_LENGTH = 8
"""The same of a hybrid's network: twice as many gave no more, for twice the time (docs/experiments.md)."""
HEADS = 4
"""Attention heads of the classifier, the default of ``ModelConfig``."""


@dataclass(frozen=True, kw_only=True)
class SizeOptions(Options):
    """Architecture and size of the classifier."""

    HEADING: ClassVar[str] = "Model"

    history_length: Annotated[
        int | None,
        Flag(
            "Transactions of an entity that the classifier reads, including the one it scores.",
            default=f"{HISTORY_LENGTH}, or {HYBRID_HISTORY_LENGTH} on boosted trees, whose scores of earlier transactions are fields",
            aliases=("--history",),
        ),
    ] = None
    d_model: Annotated[int, "Width of the classifier."] = 64
    layers: Annotated[int, "Number of blocks."] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "history_length", "d_model", "layers")
        if self.d_model % HEADS:
            raise InputError(f"--d-model is {self.d_model}: give a multiple of {HEADS}, the number of attention heads")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(SizeOptions):
    """Architecture and size of the classifier."""

    HEADING: ClassVar[str] = "Model"

    embedding: Annotated[
        str,
        "How the fields of a transaction become a vector: transaction, tabular (for tables without histories), "
        "or your own module:Class; auto is transaction.",
    ] = "auto"
    attention: Annotated[
        str,
        f"dense, window, sparse, or your own module:Class; auto is sparse for a history length of {LONG_HISTORY} or more, else dense.",
    ] = "auto"
    attention_window: Annotated[
        int,
        Flag("Transactions that window and sparse attention look back, including the current one.", aliases=("--window",)),
    ] = 64
    global_nodes: Annotated[int, "Earlier transactions beyond the window that sparse attention also reads."] = 8
    form: Annotated[
        Literal["auto", "rows", "histories"],
        Flag(
            "rows: each row is scored from its own copy of the transactions before it. histories: a whole history is read once and "
            f"all its rows are scored. auto is histories for a history length of {LONG_HISTORY} or more, else rows.",
            renamed={"window": "rows", "sequence": "histories"},
        ),
    ] = "auto"
    head: Annotated[str, "binary, multiclass, or your own module:Class; auto depends on the number of classes."] = "auto"
    dropout: Annotated[float, "Dropout probability inside the blocks."] = 0.2
    field_dropout: Annotated[float, "Probability in training that a field of a row is hidden in the row's whole history."] = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "attention_window")
        check_whole(self, "global_nodes", least=0)
        check_share(self, "dropout", "field_dropout")
        if self.form == "histories" and self.history_length is not None and self.history_length < 2:
            raise InputError("--form histories needs a --history-length of at least 2")

    def parts(self, *, has_entity: bool) -> dict[str, Any]:
        """The fields of a `ModelConfig` that say how histories are read, with ``auto`` resolved.

        Args:
            has_entity: Whether the table has an entity column; without one each history is a single row.
        """
        history_length = (self.history_length or HISTORY_LENGTH) if has_entity else 1
        long = history_length >= LONG_HISTORY
        attention = ("sparse" if long else "dense") if self.attention == "auto" else self.attention
        form = ("histories" if long else "rows") if self.form == "auto" else self.form
        return {
            "history_length": history_length,
            "attention": attention,
            "form": form if history_length > 1 else "rows",
            "attention_window": self.attention_window,
            "global_nodes": self.global_nodes,
        }
