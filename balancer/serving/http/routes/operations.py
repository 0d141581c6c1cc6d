"""Routes for operating the service: health and metrics."""

from fastapi import Depends, FastAPI, HTTPException, Response

from balancer.serving import metrics
from balancer.serving.http import schemas
from balancer.serving.http.auth import Access
from balancer.serving.http.health import Readiness
from balancer.serving.http.problems import problem_responses
from balancer.serving.models.registry import Registry
from balancer.serving.storage.keys import Key


def add_operations(app: FastAPI, readiness: Readiness, registry: Registry, access: Access) -> None:
    """Add /healthz, /readyz and /metrics."""
    operator = Depends(access.allow("operator"))

    @app.get("/healthz", tags=["operations"])
    async def alive() -> schemas.Alive:
        """Whether the process answers; this needs neither the database nor a thread."""
        return schemas.Alive(status="alive")

    @app.get("/readyz", tags=["operations"], responses={503: {"model": schemas.Problem}})
    async def ready() -> schemas.State:
        """Whether the database answers and can write, and the model is loaded; answered within seconds."""
        problem = await readiness.problem()
        if problem is not None:
            raise HTTPException(503, problem, {"Retry-After": "1"})
        current = registry.current
        return schemas.State(status="ready", model=None if current is None else current.name)

    @app.get("/metrics", tags=["operations"], responses=problem_responses(), response_class=Response)
    def prometheus(_: Key = operator) -> Response:
        """Metrics of all workers for Prometheus. Scope: operator."""
        return Response(metrics.render_metrics(), media_type="text/plain; version=0.0.4")
