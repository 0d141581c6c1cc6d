"""The application of one worker: its parts, its start and its end."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from balancer import __version__
from balancer.serving.audit.amend import Amender
from balancer.serving.audit.decisions import Decisions
from balancer.serving.audit.explanations import Explanations
from balancer.serving.config import ServeConfig
from balancer.serving.http.auth import LOOK_UP_THREADS, Access
from balancer.serving.http.health import Readiness
from balancer.serving.http.logs import LOGGER
from balancer.serving.http.middleware import RequestMiddleware
from balancer.serving.http.problems import add_error_handlers
from balancer.serving.http.route_table import RouteTable
from balancer.serving.http.routes.decisions import add_decisions
from balancer.serving.http.routes.models import add_models
from balancer.serving.http.routes.monitoring import add_monitoring
from balancer.serving.http.routes.operations import add_operations
from balancer.serving.http.routes.pages import add_pages
from balancer.serving.http.routes.scoring import add_scoring
from balancer.serving.http.routes.sessions import add_sessions
from balancer.serving.http.score_endpoint import PATH, ScoreEndpoint
from balancer.serving.http.telemetry import Telemetry, telemetry_of
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.models.registry import FOLLOW_SECONDS, Registry
from balancer.serving.operations.monitoring import WATCH_SECONDS, Monitoring
from balancer.serving.scoring.actions import Actions
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.monitoring import ScoreMonitor
from balancer.serving.scoring.queue import ScoringQueue
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.sessions.store import Sessions
from balancer.serving.storage.database import POOL, Database, UnavailableError

if TYPE_CHECKING:
    from balancer.serving.http.oidc import TokenVerifier

LOG = logging.getLogger(LOGGER)
_COLLECTED = 20_000, 50, 50
"""Thresholds of the garbage collector. What a worker remembers is hundreds of thousands of objects without
circles, and going through them in the middle of a request takes milliseconds."""
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1", "testserver")


def create_app(config: ServeConfig) -> FastAPI:
    """Build the application of one worker. The tables of the database must exist."""
    patience = config.timeout / 2
    database = Database(config.database_url, patience=patience, statement_seconds=patience, connections=POOL + LOOK_UP_THREADS)
    registry = Registry(database, config.run, config.models, config.precision)
    access = Access(database, config.rate, open_allowed=config.is_loopback, tokens=_token_verifier(config))
    scorer = Scorer(database, config.memory * 1_000_000, Actions(config.decline_above))
    queue = ScoringQueue(scorer, ScoreMonitor())
    endpoint = ScoreEndpoint(config, registry, queue)
    telemetry = telemetry_of()
    monitoring = Monitoring(database, lambda: [each for each in (registry.current, registry.challenger) if each is not None])
    readiness = Readiness(config.database_url, database, lambda: config.run is not None and registry.current is None)
    app = FastAPI(
        title="balancer",
        version=__version__,
        summary="Sampling weights for training on imbalanced data, and fraud scores of transactions in real time.",
        lifespan=_lifespan(database, registry, access, queue, monitoring, readiness, telemetry),
        docs_url=None,  # `add_pages`
        redoc_url=None,
    )
    app.add_middleware(
        RequestMiddleware,
        access=access,
        routes=lambda: RouteTable(app.routes),
        max_body=config.max_body,
        max_held=config.max_held or 4 * config.max_body,
        max_concurrent=config.max_concurrent,
        timeout=config.timeout,
        host_allowed=lambda host: _host_allowed(host, access, config),
        direct={PATH: endpoint},
        telemetry=telemetry,
    )
    app.state.registry = registry
    add_error_handlers(app)
    add_operations(app, readiness, registry, access)
    add_pages(app)
    add_models(app, database, registry, access)
    add_monitoring(app, monitoring, access)
    add_scoring(app, config, endpoint, Entities(database), registry, access)
    _add_audit(app, config, database, registry, access)
    add_sessions(app, Sessions(database), access)
    return app


def _add_audit(app: FastAPI, config: ServeConfig, database: Database, registry: Registry, access: Access) -> None:
    """Add the routes that read the audit, and that correct and reverse transactions."""

    def loaded(digest: str) -> LoadedModel | None:
        models = (each for each in (registry.current, registry.challenger) if each is not None)
        return next((each for each in models if digest == each.digest or digest in each.others), None)

    actions = Actions(config.decline_above)
    explanations, amender = Explanations(database, loaded), Amender(database, actions)
    add_decisions(app, Decisions(database), explanations, amender, access, lambda: registry.current)


def _token_verifier(config: ServeConfig) -> TokenVerifier | None:
    """What checks the tokens of an issuer; None where only keys are accepted."""
    if not config.oidc_issuer:
        return None
    from balancer.serving.http.oidc import TokenVerifier  # needs a library of its own

    verifier = TokenVerifier(config.oidc_issuer, config.oidc_audience, config.oidc_jwks, config.oidc_tenant_claim)
    verifier.keys.begin()
    return verifier


async def _host_allowed(host: str, access: Access, config: ServeConfig) -> bool:
    """Check a Host header. A service without keys accepts loopback names only.

    Otherwise a web page could make a browser on this machine send requests under another name (DNS
    rebinding).
    """
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or host.startswith("[") else host
    return not config.is_loopback or name in _LOOPBACK or not await access.is_open()


def _lifespan(
    database: Database,
    registry: Registry,
    access: Access,
    queue: ScoringQueue,
    monitoring: Monitoring,
    readiness: Readiness,
    telemetry: Telemetry | None,
) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = POOL
        try:
            await run_in_threadpool(registry.begin)
            _say_what_is_slow(registry)
            gc.collect()
            gc.freeze()  # the loaded modules stay; collecting them again and again would cost milliseconds
            gc.set_threshold(*_COLLECTED)
        except UnavailableError:
            # A worker may start while the database restarts. It loads the model later and is not ready until
            # then.
            LOG.exception("the database is unavailable; the model is loaded when it is back")
        tasks = [asyncio.create_task(_follow(registry)), asyncio.create_task(_watch(monitoring))]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await run_in_threadpool(queue.close)
        if telemetry is not None:
            await run_in_threadpool(telemetry.close)
        access.close()
        readiness.close()
        database.close()

    return lifespan


def _say_what_is_slow(registry: Registry) -> None:
    stages = None if registry.current is None else registry.current.detector.stages
    if stages is not None and stages.note is not None:
        LOG.warning(stages.note)


async def _follow(registry: Registry) -> None:
    """Load the models that other workers put in service."""
    away = False
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        try:
            await run_in_threadpool(registry.follow)
            if away:
                LOG.info("the database answers again")
            away = False
        except UnavailableError as error:
            if not away:
                LOG.error(
                    f"the database is unavailable, so what it says about models is not read: {error}; the loaded models stay in service"
                )
            away = True
        except Exception:  # whatever is wrong with the new model, the service must keep the one it has
            LOG.exception("the model in service could not be loaded; the previous one stays in service")


async def _watch(monitoring: Monitoring) -> None:
    """Show the latest day in the metrics."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        try:
            await run_in_threadpool(monitoring.set_gauges)
        except UnavailableError as error:
            LOG.error(f"the database is unavailable, so the metrics of the latest day keep their numbers: {error}")
        except Exception:  # the metrics of a day must not end the service
            LOG.exception("the numbers of the latest day could not be computed; the metrics keep those from before")
