"""Connections to PostgreSQL that don't wait for ever for a server that no longer answers.

What is special: the server's own `statement_timeout` does not help where the server is frozen, and TCP does
not notice it, because its kernel still confirms what it receives. So the client looks at the clock while it
waits. All that psycopg does over a connection passes `wait`: statements, commits, pipelines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from typing import Any, TypeVar, cast

import psycopg
from psycopg.abc import PQGen

from balancer.serving.storage.deadline import REQUEST

Result = TypeVar("Result")
CONNECT_SECONDS = 5
"""Most seconds to establish a connection."""
FEWEST_SECONDS = 2.0
"""A statement may always take so long, even if its request is overdue."""

# What the driver logs about a lost connection is no line of a command's output; the service has a handler.
logging.getLogger("psycopg").addHandler(logging.NullHandler())


class LimitedConnection(psycopg.Connection[Any]):
    """A connection that is closed when the server does not answer within `seconds`.

    The limit is for one journey to the server and not for a transaction: a long transaction of many
    statements goes on as long as the server answers. Near the end of its request a statement gets less time,
    but a commit does not: when it is broken off, it is not known whether it has happened.
    """

    seconds: float = 0.0
    """Limit of one journey; 0 for none."""
    _commits = False

    def wait(self, gen: PQGen[Result], *arguments: Any, **options: Any) -> Result:
        """Wait for the server.

        Raises:
            psycopg.OperationalError: If it did not answer in time; the connection is then closed.
        """
        if not self.seconds:
            return super().wait(gen, *arguments, **options)
        return super().wait(cast("PQGen[Result]", self._limited(gen)), *arguments, **options)

    def commit(self) -> None:
        """Commit the transaction."""
        self._commits = True
        try:
            super().commit()
        finally:
            self._commits = False

    def _limited(self, gen: PQGen[Result]) -> Generator[Any, Any, Result]:
        begun = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and self._is_overdue(begun):
                    self.pgconn.finish()
                    raise psycopg.OperationalError("the server did not answer in time, so the connection was closed")
                wanted = gen.send(ready)
        except StopIteration as done:
            return cast("Result", done.value)

    def _is_overdue(self, begun: float) -> bool:
        now, request = time.monotonic(), REQUEST.get()
        if now - begun > self.seconds:
            return True
        least = min(FEWEST_SECONDS, self.seconds)
        return request is not None and not self._commits and now > request.end_by and now - begun > least


def connect(seconds: float, *arguments: Any, **options: Any) -> LimitedConnection:
    """Open a connection.

    Args:
        seconds: Limit of one journey to the server; 0 for none. The server gets it too, as the limit of a
            statement and of waiting for a lock.
        arguments: Of `psycopg.connect`.
        options: Of `psycopg.connect`; those that the URL names take precedence.
    """
    settings: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    settings |= {"application_name": "balancer"}
    if seconds:
        milliseconds = max(1, int(1e3 * seconds))
        settings["connect_timeout"] = 2  # the least that the driver knows; the connection is tried again
        settings["tcp_user_timeout"] = milliseconds
        # Before what the URL says, so that the URL wins.
        limits = f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
        options["options"] = f"{limits} {options.get('options', '')}".strip()
    connection = LimitedConnection.connect(*arguments, **(settings | options))
    connection.seconds = seconds
    return connection
