"""Options of commands that can run in several processes, on this machine or on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from balancer.cluster.connection import LOCAL, check_address
from balancer.options.checks import check_whole
from balancer.options.flags import Flag, Options

_CLUSTER = "Ray cluster: local (started on this machine for the command), auto (the cluster of this machine or job), HOST:6379, or ray://HOST:10001."


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(Options):
    """Run in several processes, or on machines with Ray (``balancer[cluster]``); the results are the same."""

    HEADING: ClassVar[str] = "Cluster"

    cluster: Annotated[str | None, Flag(_CLUSTER, metavar="ADDRESS", default="none: this machine")] = None
    workers: Annotated[
        int | None, Flag("Most processes at once, of this machine or of the cluster.", default="1, or as many as the cluster has CPUs for")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "workers", most=4096)

    def address(self) -> str | None:
        """Address of the cluster, or None for this machine without Ray.

        Raises:
            InputError: ``--cluster`` has another form, or Ray is not installed.
        """
        if self.cluster is not None:
            check_address(self.cluster)
        return self.cluster

    def several(self) -> bool:
        """Whether more than one process may work at once."""
        return self.cluster is not None or (self.workers or 1) > 1


@dataclass(frozen=True, kw_only=True)
class TogetherOptions(ClusterOptions):
    """Run in several processes with Ray (``balancer[cluster]``), on this machine or on several."""

    HEADING: ClassVar[str] = "Cluster"

    cluster: Annotated[str | None, Flag(_CLUSTER, metavar="ADDRESS", default="none; local with --workers above 1")] = None

    def address(self) -> str | None:
        """Address of the cluster; that of this machine where several processes work; or None.

        Raises:
            InputError: ``--cluster`` has another form, or Ray is not installed.
        """
        if self.cluster is None and self.several():
            check_address(LOCAL)
            return LOCAL
        return super().address()
