"""`balancer serve`."""

from __future__ import annotations

from collections.abc import Sequence

from balancer.options.flags import parse


def main(arguments: Sequence[str]) -> int:
    """Parse and serve until stopped."""
    from balancer.serving.config import ServeConfig

    config = ServeConfig(**parse(ServeConfig, "balancer serve", ServeConfig.__doc__ or "", arguments))
    from balancer.serving.http.server import serve

    return serve(config)
