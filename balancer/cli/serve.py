"""`balancer serve`."""

from __future__ import annotations

from collections.abc import Sequence

from balancer.errors import InputError
from balancer.options.flags import parse


def main(arguments: Sequence[str]) -> int:
    """Parse and serve until stopped."""
    try:
        from balancer.serving.config import ServeConfig
        from balancer.serving.http.server import serve
    except ImportError as error:
        raise InputError(f"balancer serve needs {error.name}: install balancer with the extra serve") from error
    return serve(ServeConfig(**parse(ServeConfig, "balancer serve", ServeConfig.__doc__ or "", arguments)))
