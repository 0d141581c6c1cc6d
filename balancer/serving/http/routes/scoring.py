"""Routes for transactions, labels and entities."""

from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response

from balancer.serving import metrics
from balancer.serving.config import ServeConfig
from balancer.serving.http import schemas
from balancer.serving.http.auth import Access
from balancer.serving.http.bodies import JsonBody, body_of
from balancer.serving.http.decoding import decode_labels
from balancer.serving.http.problems import problem_responses
from balancer.serving.http.score_endpoint import PATH, ScoreEndpoint
from balancer.serving.http.texts import EntityName
from balancer.serving.models.registry import LoadedModel, Registry
from balancer.serving.scoring.entities import Entities
from balancer.serving.storage.keys import Key


def add_scoring(app: FastAPI, config: ServeConfig, endpoint: ScoreEndpoint, entities: Entities, registry: Registry, access: Access) -> None:
    """Add /v1/score, /v1/labels and /v1/entities."""
    may_score, admin = Depends(access.allow("score")), Depends(access.allow("admin"))

    def in_service() -> LoadedModel:
        current = registry.current
        if current is None:
            raise HTTPException(503, "no model is in service; start balancer serve with --run, or put a model in service")
        return current

    @app.post(
        PATH,
        tags=["scoring"],
        response_model=schemas.ScoreAnswer,
        responses=problem_responses(409),
        openapi_extra=body_of(schemas.ScoreRequest),
    )
    async def score(http: Request, key: Key = may_score) -> Response:
        """Score transactions with their history and store them, all or none. Scope: score."""
        return Response(await endpoint.answer(await http.body(), key, http.state.request), media_type="application/json")

    @app.post("/v1/labels", tags=["scoring"], responses=problem_responses(), openapi_extra=body_of(schemas.LabelRequest))
    def label(body: JsonBody, key: Key = may_score) -> schemas.LabelAnswer:
        """Store the labels of transactions. They count in the context risk from now on. Scope: score."""
        labels = decode_labels(body, config.max_rows).labels
        unknown = entities.label(key.tenant, in_service().schema, labels)
        metrics.LABELS.inc(len(labels) - len(unknown))
        return schemas.LabelAnswer(stored=len(labels) - len(unknown), unknown=unknown)

    @app.get("/v1/entities/{entity:path}", tags=["scoring"], responses=problem_responses(404))
    def entity(entity: EntityName, limit: Annotated[int, Query(ge=1, le=1000)] = 20, key: Key = may_score) -> schemas.Entity:
        """The stored data of an entity, its latest transactions first. Scope: score."""
        return schemas.Entity.model_validate(entities.get(key.tenant, entity, limit))

    @app.delete("/v1/entities/{entity:path}", tags=["scoring"], status_code=204, responses=problem_responses(404))
    def forget(entity: EntityName, key: Key = admin) -> None:
        """Delete an entity with its transactions and their contribution to context risks. Scope: admin."""
        entities.delete(key.tenant, entity)
