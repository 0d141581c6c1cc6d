"""The application: routes under /v1, their keys, and what goes wrong as {"error": ...}."""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from anyio import to_thread
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

from balancer import __version__
from balancer.errors import InputError
from balancer.serving import metrics
from balancer.serving.config import ServeConfig
from balancer.serving.errors import ConflictError, MissingError
from balancer.serving.http import schemas as wire
from balancer.serving.http.auth import Access
from balancer.serving.http.middleware import Frame
from balancer.serving.scoring.monitoring import Watch
from balancer.serving.scoring.registry import FOLLOW_SECONDS, LoadedModel, Registry
from balancer.serving.scoring.scorer import Scorer, read_row
from balancer.serving.sessions import EpochReport, Session, SessionRequest, Sessions, Weights
from balancer.serving.storage.database import POOL, Database, UnavailableError
from balancer.serving.storage.keys import Key

LOG = logging.getLogger("balancer.service")
EntityName = Annotated[str, Path(max_length=1000, description="The entity, as it stands in its column.")]
SessionId = Annotated[str, Path(max_length=100, description="The session's id.")]
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1", "testserver")
_TOLD = {
    401: "The key is missing, wrong or revoked.",
    403: "The key lacks the scope.",
    409: "It contradicts what is stored.",
    413: "More bytes or rows than this service takes.",
    422: "Something in the request can't be used; the error names it.",
    429: "Too many requests.",
    503: "No model is in service, or the database is away; send the same again.",
}


def _responses(*further: int) -> dict[int | str, dict[str, Any]]:
    return {
        code: {"model": wire.Problem, "description": _TOLD.get(code, "There is none.")}
        for code in (400, 401, 403, 413, 422, 429, 503, *further)
    }


def create_app(config: ServeConfig) -> FastAPI:
    """The application of one worker; the tables are there already."""
    database = Database(config.database, patience=config.timeout / 2)
    registry = Registry(database, config.run, config.models, config.precision)
    access = Access(database, config.rate, open_allowed=config.is_loopback)
    app = FastAPI(
        title="balancer",
        version=__version__,
        summary="How to sample imbalanced data while a model trains, and scores of transactions as they come.",
        lifespan=_lifespan(database, registry),
        docs_url="/docs",
        redoc_url=None,
    )
    app.add_middleware(
        Frame, max_body=config.max_body, timeout=config.timeout, host_allowed=lambda host: _host_allowed(host, access, config)
    )
    _handle_errors(app)
    _add_operations(app, database, registry, access)
    _add_scoring(app, config, Scorer(database), registry, access)
    _add_sessions(app, Sessions(database), access)
    return app


def _host_allowed(host: str, access: Access, config: ServeConfig) -> bool:
    """A browser may be led here under a foreign name; while there are no keys, only loopback names are answered."""
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or host.startswith("[") else host
    return not config.is_loopback or name in _LOOPBACK or not access.is_open


def _lifespan(database: Database, registry: Registry) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = POOL
        try:
            await run_in_threadpool(registry.begin)
            gc.collect()
            gc.freeze()  # what is loaded by now stays; looking through it again and again would cost milliseconds
        except UnavailableError:
            # A worker that is replaced while the database restarts; it begins when that is back, and is not ready until then.
            LOG.exception("the database is away; the model is loaded when it is back")
        follower = asyncio.create_task(_follow(registry))
        yield
        follower.cancel()
        with suppress(asyncio.CancelledError):
            await follower
        database.close()

    return lifespan


async def _follow(registry: Registry) -> None:
    """Take over what other workers put in service."""
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        try:
            await run_in_threadpool(registry.follow)
        except Exception:
            LOG.exception("the model in service could not be loaded; the one before stays")


def _handle_errors(app: FastAPI) -> None:
    def problem(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": error}, status, headers)

    @app.exception_handler(InputError)
    def bad_input(_: Request, error: InputError) -> JSONResponse:
        status = 409 if isinstance(error, ConflictError) else 404 if isinstance(error, MissingError) else 422
        return problem(status, str(error))

    @app.exception_handler(UnavailableError)
    def away(_: Request, error: UnavailableError) -> JSONResponse:
        return problem(503, f"{error}; send the same again", {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
        return problem(422, f"{place}: {first['msg']}")

    @app.exception_handler(StarletteHTTPException)
    def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), dict(error.headers or {}))


def _add_operations(app: FastAPI, database: Database, registry: Registry, access: Access) -> None:
    admin = Depends(access.allow("admin"))

    @app.get("/healthz", tags=["operations"])
    def alive() -> wire.State:
        """Whether the process answers."""
        return wire.State(status="alive")

    @app.get("/readyz", tags=["operations"], responses={503: {"model": wire.Problem}})
    def ready() -> wire.State:
        """Whether the database answers and the model is loaded."""
        if not database.ready():
            raise HTTPException(503, "the database has other tables than this version's")
        current = registry.current
        return wire.State(status="ready", model=None if current is None else current.name)

    @app.get("/metrics", tags=["operations"], responses=_responses(), response_class=Response)
    def told(_: Key = admin) -> Response:
        """Metrics for Prometheus, of all workers. Scope: admin."""
        return Response(metrics.rendered(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", tags=["models"], responses=_responses())
    def models(_: Key = admin) -> wire.Models:
        """The model in service, and the runs that could take its place. Scope: admin."""
        current = registry.current
        done = [wire.Activation(**{key: each[key] for key in ("generation", "name", "activated")}) for each in registry.activations()]
        return wire.Models(in_service=None if current is None else current.name, available=list(registry.names()), activations=done)

    @app.post("/v1/models", tags=["models"], responses=_responses())
    def swap(request: wire.ModelRequest, key: Key = admin) -> wire.Models:
        """Put another run in service. Requests that have begun end with the old one; other workers follow within seconds. Scope: admin."""
        registry.activate(request.name)
        return models(key)


def _add_scoring(app: FastAPI, config: ServeConfig, scorer: Scorer, registry: Registry, access: Access) -> None:
    may_score, admin = Depends(access.allow("score")), Depends(access.allow("admin"))
    watch = Watch()

    def in_service() -> LoadedModel:
        current = registry.current
        if current is None:
            raise HTTPException(503, "no model is in service: start balancer serve with --run, or put one in service")
        return current

    def few(rows: list[Any]) -> None:
        if len(rows) > config.max_rows:
            raise HTTPException(413, f"{len(rows)} rows in one request, at most {config.max_rows} are taken; send less at once")

    @app.post("/v1/score", tags=["scoring"], response_model=wire.ScoreAnswer, responses=_responses(409))
    def score(request: wire.ScoreRequest, key: Key = may_score) -> JSONResponse:
        """Judge transactions, each by its entity's history, and add them to it: all of them, or none. Scope: score."""
        few(request.transactions)
        model, now = in_service(), time.time()
        rows = [
            read_row(raw, model.schema, f"transactions[{place}]", now, config.tolerance) for place, raw in enumerate(request.transactions)
        ]
        judged = scorer.score(key.tenant, model, rows, explain=request.explain)
        watch.saw(model, judged)
        return JSONResponse({"decisions": judged.answers})  # as it is stored; a test holds it to the model

    @app.post("/v1/labels", tags=["scoring"], responses=_responses())
    def label(request: wire.LabelRequest, key: Key = may_score) -> wire.LabelAnswer:
        """Say what transactions turned out to be. They count in the risk of their context from now on. Scope: score."""
        few(request.labels)
        named = {each.id: each.label for each in request.labels}
        if len(named) < len(request.labels):
            raise InputError("labels: an id stands there twice; give each once")
        unknown = scorer.label(key.tenant, in_service().schema, named)
        metrics.LABELS.inc(len(named) - len(unknown))
        return wire.LabelAnswer(stored=len(named) - len(unknown), unknown=unknown)

    @app.get("/v1/entities/{entity:path}", tags=["scoring"], responses=_responses(404))
    def entity(entity: EntityName, limit: Annotated[int, Query(ge=1, le=1000)] = 20, key: Key = may_score) -> wire.Entity:
        """What is stored of an entity, its latest transactions first. Scope: score."""
        return wire.Entity.model_validate(scorer.entity(key.tenant, entity, limit))

    @app.delete("/v1/entities/{entity:path}", tags=["scoring"], status_code=204, responses=_responses(404))
    def forget(entity: EntityName, key: Key = admin) -> None:
        """Erase an entity, its transactions and what they added to risks. Scope: admin."""
        scorer.forget(key.tenant, entity)


def _add_sessions(app: FastAPI, sessions: Sessions, access: Access) -> None:
    may_steer = Depends(access.allow("sessions"))

    @app.post("/v1/sessions", tags=["sessions"], status_code=201, responses=_responses())
    def begin(request: SessionRequest, key: Key = may_steer) -> Session:
        """Begin to balance a training; the answer holds the weights of its first epoch. Scope: sessions."""
        return sessions.create(key.tenant, request)

    @app.get("/v1/sessions", tags=["sessions"], responses=_responses(404))
    def each(
        after: Annotated[str | None, Query(max_length=100, description="`next` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        key: Key = may_steer,
    ) -> wire.SessionPage:
        """The sessions, oldest first. Scope: sessions."""
        found, following = sessions.list(key.tenant, after, limit)
        return wire.SessionPage(sessions=found, next=following)

    @app.get("/v1/sessions/{session}", tags=["sessions"], responses=_responses(404))
    def one(session: SessionId, key: Key = may_steer) -> Session:
        """A session as it stands. Scope: sessions."""
        return sessions.get(key.tenant, session)

    @app.post("/v1/sessions/{session}/epochs", tags=["sessions"], responses=_responses(404, 409))
    def report(session: SessionId, request: EpochReport, key: Key = may_steer) -> Weights:
        """Tell how the model did in an epoch; the answer holds the weights of the next. The same epoch again gives the same answer. Scope: sessions."""
        return sessions.report(key.tenant, session, request)

    @app.delete("/v1/sessions/{session}", tags=["sessions"], status_code=204, responses=_responses(404))
    def end(session: SessionId, key: Key = may_steer) -> None:
        """Forget a session. Scope: sessions."""
        sessions.delete(key.tenant, session)
