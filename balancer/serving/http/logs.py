"""Logs of the service as lines of JSON, without anything that a client sent."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = "balancer.service"
"""Name of the logger of the service."""
_DRIVER = "psycopg"
"""Name of the logger of PostgreSQL's driver."""


class JsonLines(logging.Formatter):
    """Formats a log record as one line of JSON.

    The fields of a line are the time, the level, the message, and what the caller passes as `extra={"fields":
    {...}}`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": _driver_message(record) if record.name.startswith(_DRIVER) else record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # The type and the place of an error, but not its text, which may quote what was sent.
            trace = record.exc_info[2]
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            place = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
            line |= {"error": record.exc_info[0].__name__, "at": place}
        return json.dumps(line)


def _driver_message(record: logging.LogRecord) -> str:
    """The message of the driver of the database without its values, which may be anything that was sent."""
    return f"driver of the database: {re.sub('%[a-z]', '…', str(record.msg))}"


def log_to_stderr() -> None:
    """Write the logs of the service, the server and the driver of the database to stderr as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in (LOGGER, "uvicorn", "uvicorn.error", _DRIVER):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    # The middleware logs every request. The access log of uvicorn would contain the query.
    logging.getLogger("uvicorn.access").disabled = True
