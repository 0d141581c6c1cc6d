"""The flags of ``balancer prepare``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from balancer.options.checks import check_whole
from balancer.options.cluster import ClusterOptions
from balancer.options.data import TABLE_KINDS, DataOptions
from balancer.options.flags import Flag

MOST_SHARDS = 100_000


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(DataOptions, ClusterOptions):
    """Prepare a table as a store on disk, in bounded memory, for tables that memory can't hold.

    A store is a folder that train, score, evaluate, compare and inspect take in place of the table, with the
    same results. A command that was stopped continues where it is run again with the same flags.
    """

    HEADING: ClassVar[str] = "Store"
    COMMON: ClassVar[tuple[str, ...]] = (
        *("spec", "entity", "time", "label", "label_date", "amount", "id", "numeric", "categorical", "context", "label_delay", "bad_rows"),
        *("out", "shards", "workers", "cluster"),
    )

    dataset: Annotated[Path, Flag(f"Table of transactions: {TABLE_KINDS}.", metavar="PATH")]
    out: Annotated[Path, Flag("Folder of the store.", metavar="STORE")]
    shards: Annotated[
        int | None,
        Flag("Number of shards; one shard is in memory at a time, in each process.", default="one for each million rows"),
    ] = None
    cluster: Annotated[
        str | None,
        Flag(
            "Ray cluster, with the folder on storage that all its machines share: local, auto, HOST:6379, or ray://HOST:10001.",
            metavar="ADDRESS",
            default="none: this machine",
        ),
    ] = None
    json: Annotated[bool, "Print the summary as JSON."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards is not None:
            check_whole(self, "shards", most=MOST_SHARDS)
