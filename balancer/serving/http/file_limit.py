"""The limit of open files of a process, and how many connections it allows."""

from __future__ import annotations

import logging
import os

from balancer.serving.http.logs import LOGGER

LOG = logging.getLogger(LOGGER)
MOST_CONNECTIONS = 10_000
_RESERVED = 96
"""Files that a worker may need besides its connections: the database, modules, logs."""
_UNLIMITED = 65_536


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns the limit."""
    if os.name != "posix":
        return _UNLIMITED
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _UNLIMITED if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
        except (OSError, ValueError):
            LOG.warning("the limit of open files can't be raised", extra={"fields": {"limit": soft}})
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


def connections_allowed(wanted: int) -> int:
    """Return the number of connections of a worker.

    Args:
        wanted: What `--max-connections` says; 0: as many as the files allow.
    """
    allowed = max(8, raise_file_limit() - _open_files() - _RESERVED)
    if wanted > allowed:
        LOG.warning(
            "--max-connections is more than the limit of open files allows", extra={"fields": {"wanted": wanted, "connections": allowed}}
        )
    return min(wanted or MOST_CONNECTIONS, allowed)


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 32  # no such folder on this system
