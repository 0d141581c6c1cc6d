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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from balancer.errors import InputError
from balancer.options.flags import from_dict, to_dict
from balancer.serving.config import ServeConfig
from balancer.serving.http.logs import LOGGER, log_to_stderr
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database

if TYPE_CHECKING:
    from fastapi import FastAPI

CONFIG = "BALANCER_SERVE"
"""Environment variable with the configuration of the workers."""


def worker_app() -> FastAPI:
    """Build the application of a worker process from the configuration in its environment."""
    from balancer.serving.http.app import create_app

    log_to_stderr()
    return create_app(from_dict(ServeConfig, json.loads(os.environ[CONFIG])))


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Returns:
        The exit code.

    Raises:
        InputError: If the run, the database or the address can't be used, or if others could connect without
            a key.
    """
    config = replace(_absolute(config), database=config.database_url, database_file=None)
    database = Database(config.database_url, patience=config.timeout)
    database.upgrade()
    has_keys = keys.any_ever(database)
    if not config.is_loopback and not has_keys and not config.oidc_issuer:
        raise InputError(f"--host {config.host} lets others connect, but there is no API key yet: create one with balancer keys create")
    note = _check_model(config, database)
    database.close()
    with tempfile.TemporaryDirectory(prefix="balancer-metrics-") as folder:
        os.environ |= {CONFIG: json.dumps(to_dict(config)), "PROMETHEUS_MULTIPROC_DIR": folder}
        log_to_stderr()
        server = _server(config)
        bound = server.bind_socket()
        # Every connection inherits this. Otherwise an answer of two packets would wait 40 ms for the
        # acknowledgement of the first.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fields = {
            "url": f"http{'s' if config.tls_key else ''}://{config.host}:{config.port}",
            "database": database.shown,
            "workers": config.workers,
        }
        if note is not None:
            logging.getLogger(LOGGER).warning(note)
        logging.getLogger(LOGGER).info("starting", extra={"fields": fields | {"keys": has_keys}})
        Multiprocess(server, [bound]).run()
    return 0


def _server(config: ServeConfig) -> uvicorn.Config:
    options: dict[str, Any] = {}
    if config.tls_key is not None:
        options = {"ssl_certfile": str(config.tls_certificate), "ssl_keyfile": str(config.tls_key)}
    return uvicorn.Config(
        "balancer.serving.http.server:worker_app",
        factory=True,
        host=config.host,
        port=config.port,
        workers=config.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, int(config.timeout) + 1),
        **options,
    )


def _check_model(config: ServeConfig, database: Database) -> str | None:
    """Load the model once here, so that an error is reported once and not by every worker.

    Returns:
        A note on the speed of its trees, if there is one.
    """
    from balancer.serving.scoring.registry import Registry

    registry = Registry(database, config.run, config.models, config.precision)
    registry.begin()
    stages = None if registry.current is None else registry.current.detector.stages
    return None if stages is None else stages.note


def _absolute(config: ServeConfig) -> ServeConfig:
    """Make the paths absolute, so that they are the same in every process."""
    paths = {name: getattr(config, name) for name in ("run", "models", "tls_certificate", "tls_key")}
    absolute: dict[str, Any] = {name: path.absolute() for name, path in paths.items() if isinstance(path, Path)}
    return replace(config, **absolute)
