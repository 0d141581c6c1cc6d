"""Where a request came from, for the audit of its decisions."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Origin:
    """Who asked, when, and under which id."""

    key: str = ""
    """Id of the key, or subject of the token; empty without keys."""
    request: str = ""
    """Id of the request, as in the log and in the header of the answer."""
    received: float = field(default_factory=time.time)
    """Seconds since 1970, by the clock of the service."""
