"""Options of commands whose tasks can run on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from balancer.cluster.connection import chosen_address
from balancer.options.checks import check_whole
from balancer.options.flags import Flag, Options


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(Options):
    """Run on several processes or machines with Ray (``balancer[cluster]``); the results are the same."""

    HEADING: ClassVar[str] = "Cluster"

    cluster: Annotated[
        str | None,
        Flag(
            "Ray cluster: local (started on this machine for the command), auto (the cluster of this machine or job), HOST:6379, or "
            "ray://HOST:10001.",
            metavar="ADDRESS",
            default="none, or local if --workers is above 1",
        ),
    ] = None
    workers: Annotated[int | None, Flag("Most processes at once.", default="1, or as many as the cluster has CPUs for")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "workers", most=4096)

    def address(self) -> str | None:
        """Address of the cluster, or None for this process alone.

        Raises:
            InputError: ``--cluster`` has another form, or Ray is not installed.
        """
        return chosen_address(self.cluster, self.workers)
