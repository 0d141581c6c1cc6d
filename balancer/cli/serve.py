"""``balancer serve``."""

from __future__ import annotations

from collections.abc import Sequence

from balancer.cli.early import check_run
from balancer.options.flags import read_flags


def main(arguments: Sequence[str]) -> int:
    """Serve until stopped; returns the exit code."""
    from balancer.serving.config import ServeConfig

    config = read_flags(ServeConfig, "balancer serve", arguments)
    if config.run is not None:
        check_run(config.run)
    from balancer.serving.http.server import serve

    return serve(config)
