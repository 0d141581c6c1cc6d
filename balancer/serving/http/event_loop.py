"""The event loop of a worker that speaks TLS."""

from __future__ import annotations

from typing import Any

import uvloop

HANDSHAKE_SECONDS = 10.0
"""Seconds for a TLS handshake. Until it has ended, a connection is not counted by `ConnectionGuard`."""


class HandshakeLimitedLoop(uvloop.Loop):
    """uvloop with a shorter limit for handshakes than its own of a minute."""

    async def create_server(self, *arguments: Any, **options: Any) -> Any:
        """Create a server; arguments as of `asyncio.loop.create_server`."""
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", HANDSHAKE_SECONDS)
        return await super().create_server(*arguments, **options)
