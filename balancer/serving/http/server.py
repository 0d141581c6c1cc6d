"""Start and stop the worker processes.

A worker finishes its requests before it ends; a worker that dies is replaced.

What is special: the socket is bound before the workers start, so requests that arrive while a worker is being
replaced wait instead of failing.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from balancer.errors import InputError
from balancer.options.database import DATABASE_VARIABLE
from balancer.options.flags import from_dict, to_dict
from balancer.serving.config import ServeConfig
from balancer.serving.http.connections import ConnectionGuard, LimitedProtocol
from balancer.serving.http.file_limit import connections_allowed, raise_file_limit
from balancer.serving.http.logs import LOGGER, log_to_stderr
from balancer.serving.http.supervisor import Supervisor, report_start_error
from balancer.serving.operations.migration import check_file_exists, require_newest, used
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database, UnavailableError

if TYPE_CHECKING:
    from fastapi import FastAPI

CONFIG = "BALANCER_SERVE"
"""Environment variable with the configuration of the workers."""
_BACKLOG = 2048
"""Connections that wait at the socket until a worker takes them."""


def worker_app() -> FastAPI:
    """Build the application of a worker process from the configuration in its environment."""
    log_to_stderr()
    config = from_dict(ServeConfig, json.loads(os.environ[CONFIG]))
    most = connections_allowed(config.max_connections or 0)
    most_of_address = min(most, config.max_connections_per_address or max(1, most // 2))
    LimitedProtocol.guard = ConnectionGuard(most, most_of_address, config.header_timeout, config.idle_timeout)
    from balancer.serving.http.app import create_app

    try:
        app = create_app(config)
        with suppress(UnavailableError):  # the lifespan of the application tries again and says so
            app.state.registry.begin()
    except InputError as error:
        if not report_start_error(error):
            logging.getLogger(LOGGER).error(f"the worker can't start: {error}")
        logging.shutdown()
        os._exit(STARTUP_FAILURE)  # at once: to take torch down in order takes seconds
    return app


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Returns:
        The exit code.

    Raises:
        InputError: If the run, the database or the address can't be used, or if others could connect without
            a key.
    """
    raise_file_limit()
    source, config = _source(config), replace(_absolute(config), database=config.database_url, database_file=None)
    with used(Database(config.database_url, patience=config.timeout)) as database:
        if config.no_migrate:
            check_file_exists(database)
            require_newest(database)
        else:
            database.upgrade()
        has_keys = keys.any_ever(database)
    if not config.is_loopback and not has_keys and not config.oidc_issuer:
        raise InputError(f"--host {config.host} lets others connect, but there is no API key yet: create one with balancer keys create")
    bound = _bind(config.host, config.port)
    log_to_stderr()
    with tempfile.TemporaryDirectory(prefix="balancer-metrics-") as folder:
        os.environ |= {CONFIG: json.dumps(to_dict(config)), "PROMETHEUS_MULTIPROC_DIR": folder}
        fields = {
            "url": f"http{'s' if config.tls_key else ''}://{config.host}:{config.port}",
            "database": database.shown,
            "database_from": source,
            "workers": config.workers,
            "keys": has_keys,
        }
        log = logging.getLogger(LOGGER)
        if source == "--database" and database.engine.url.password is not None:
            log.warning(f"other users can read the password on the command line; use --database-file or {DATABASE_VARIABLE}")
        log.info("starting", extra={"fields": fields})
        Supervisor(_server(config), [bound], Path(folder), fields).run()
    return 0


def _bind(host: str, port: int) -> socket.socket:
    """Listen on an address, which the workers inherit.

    Raises:
        InputError: It can't be used.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(_BACKLOG)  # at once: until then another process could bind the same address
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = error.strerror or "it can't be used"
        raise InputError(f"--host {host} --port {port}: {reason}; choose another address, or stop what uses it") from error
    # Every connection inherits this. Otherwise an answer of two packets would wait 40 ms for the
    # acknowledgement of the first.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    bound.set_inheritable(True)
    return bound


def _source(config: ServeConfig) -> str:
    """What named the database."""
    if config.database is not None:
        return "--database"
    if config.database_file is not None:
        return f"--database-file {config.database_file}"
    return DATABASE_VARIABLE if os.environ.get(DATABASE_VARIABLE) else "the default"


def _server(config: ServeConfig) -> uvicorn.Config:
    options: dict[str, Any] = {}
    if config.tls_key is not None:
        options = {"ssl_certfile": str(config.tls_certificate), "ssl_keyfile": str(config.tls_key)}
        if os.name == "posix":
            options["loop"] = "balancer.serving.http.event_loop:HandshakeLimitedLoop"
    return uvicorn.Config(
        "balancer.serving.http.server:worker_app",
        factory=True,
        http=LimitedProtocol,
        ws="none",
        timeout_keep_alive=max(1, int(config.idle_timeout)),
        host=config.host,
        port=config.port,
        workers=config.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, int(config.timeout) + 1),
        **options,
    )


def _absolute(config: ServeConfig) -> ServeConfig:
    """Make the paths absolute, so that they are the same in every process."""
    paths = {name: getattr(config, name) for name in ("run", "models", "tls_certificate", "tls_key")}
    absolute: dict[str, Any] = {name: path.absolute() for name, path in paths.items() if isinstance(path, Path)}
    return replace(config, **absolute)
