"""A connection to a Ray cluster, or a Ray of its own on this machine.

An address is ``local`` (Ray is started on this machine for the command alone), ``auto`` (the cluster that
``ray start`` started on this machine, or that of ``ray job submit``), ``HOST:6379`` (a cluster that this
machine belongs to) or ``ray://HOST:10001`` (a cluster that this machine does not belong to).
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from balancer.cluster.stopping import exit_on_sigterm, sigterm_restored
from balancer.dependencies import require
from balancer.errors import InputError, UnsupportedError

LOCAL = "local"
AUTO = "auto"
START = "ray start --head"
ANSWER_SECONDS = 10.0
"""How long the machine of a cluster may take to answer."""
_ADDRESS = re.compile(r"(ray://)?[^\s/:]+:\d{1,5}")


def check_address(address: str) -> None:
    """Check the form of an address, before anything is read or connected.

    Args:
        address: See the module.

    Raises:
        InputError: It has another form, or Ray is not installed.
    """
    if address not in (LOCAL, AUTO) and not _ADDRESS.fullmatch(address):
        raise InputError(
            f"--cluster {address} is no address of a Ray cluster: give local (Ray on this machine), auto (the cluster of this machine), "
            "HOST:6379, or ray://HOST:10001"
        )
    require("ray", f"--cluster {address}")


@contextmanager
def connected(address: str, workers: int | None = None) -> Iterator[Any]:
    """Connect this process to a cluster for a ``with`` block.

    A process that is connected already keeps its connection, also after the block. So blocks can be nested,
    and all of them use the outermost one.

    Args:
        address: See the module.
        workers: CPUs of the Ray that ``local`` starts; None: those of this machine. Another cluster has the
            CPUs that it has.

    Yields:
        The module ``ray``.

    Raises:
        InputError: The address has another form.
        UnsupportedError: Nothing answers there, or Ray can't be started.
    """
    check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    import ray

    if ray.is_initialized():
        yield ray
        return
    with sigterm_restored():
        _connect(ray, address, workers)
        try:
            exit_on_sigterm()  # instead of Ray's handler, which ends the process at once
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str, workers: int | None) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    if address == LOCAL:
        # A secret of this process alone; without one Ray would write one into the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        try:
            ray.init(address=LOCAL, num_cpus=workers, include_dashboard=False, **quiet)
        except (ConnectionError, RuntimeError, OSError, TimeoutError) as error:
            raise UnsupportedError(f"--cluster {LOCAL}: Ray can't be started on this machine: {_first_line(error)}") from error
        return
    try:
        if address != AUTO:  # at once; Ray would try for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        ray.init(address=address, **quiet)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        if address == AUTO:
            remedy = f"no Ray cluster runs on this machine: start one with {START}, or give --cluster {LOCAL}"
        else:
            remedy = f"no Ray cluster answers there ({_first_line(error)}): start one with {START}, or give the address that it prints"
        raise UnsupportedError(f"--cluster {address}: {remedy}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
