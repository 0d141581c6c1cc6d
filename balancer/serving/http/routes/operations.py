"""Routes for operating the service: health, metrics, the model in service."""

from fastapi import Depends, FastAPI, HTTPException, Response

from balancer.serving import metrics
from balancer.serving.http import schemas
from balancer.serving.http.auth import Access
from balancer.serving.http.problems import problem_responses
from balancer.serving.scoring.registry import Registry
from balancer.serving.storage.database import Database
from balancer.serving.storage.keys import Key


def add_operations(app: FastAPI, database: Database, registry: Registry, access: Access) -> None:
    """Add /healthz, /readyz, /metrics and /v1/models."""
    operator = Depends(access.allow("operator"))

    @app.get("/healthz", tags=["operations"])
    def alive() -> schemas.State:
        """Whether the process answers."""
        return schemas.State(status="alive")

    @app.get("/readyz", tags=["operations"], responses={503: {"model": schemas.Problem}})
    def ready() -> schemas.State:
        """Whether the database answers and the model is loaded."""
        if not database.ready():
            raise HTTPException(503, "the tables of the database are not of this version; restart balancer serve")
        current = registry.current
        return schemas.State(status="ready", model=None if current is None else current.name)

    @app.get("/metrics", tags=["operations"], responses=problem_responses(), response_class=Response)
    def prometheus(_: Key = operator) -> Response:
        """Metrics of all workers for Prometheus. Scope: operator."""
        return Response(metrics.render_metrics(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", tags=["models"], responses=problem_responses())
    def models(_: Key = operator) -> schemas.Models:
        """The model in service, and the runs that can replace it. Scope: operator."""
        current = registry.current
        activations = [
            schemas.Activation(**{key: each[key] for key in ("generation", "name", "activated")}) for each in registry.activations()
        ]
        return schemas.Models(
            in_service=None if current is None else current.name, available=list(registry.names()), activations=activations
        )

    @app.post("/v1/models", tags=["models"], responses=problem_responses())
    def swap(request: schemas.ModelRequest, key: Key = operator) -> schemas.Models:
        """Put another run in service, for all workers within seconds. Scope: operator."""
        registry.activate(request.name)
        return models(key)
