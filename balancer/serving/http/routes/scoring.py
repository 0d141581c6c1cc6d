"""Routes for transactions, labels and entities."""

import time
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse

from balancer.errors import InputError
from balancer.serving import metrics
from balancer.serving.config import ServeConfig
from balancer.serving.http import schemas
from balancer.serving.http.auth import Access
from balancer.serving.http.problems import problem_responses
from balancer.serving.http.texts import EntityName
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.monitoring import ScoreMonitor
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.parsing import parse_transaction
from balancer.serving.scoring.registry import LoadedModel, Registry
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage.keys import Key


def add_scoring(app: FastAPI, config: ServeConfig, scorer: Scorer, entities: Entities, registry: Registry, access: Access) -> None:
    """Add /v1/score, /v1/labels and /v1/entities."""
    may_score, admin = Depends(access.allow("score")), Depends(access.allow("admin"))
    monitor = ScoreMonitor()

    def in_service() -> LoadedModel:
        current = registry.current
        if current is None:
            raise HTTPException(503, "no model is in service; start balancer serve with --run, or put a model in service")
        return current

    def check_count(rows: list[Any]) -> None:
        if len(rows) > config.max_rows:
            raise HTTPException(413, f"{len(rows)} rows in one request, but at most {config.max_rows} are allowed; send less per request")

    @app.post("/v1/score", tags=["scoring"], response_model=schemas.ScoreAnswer, responses=problem_responses(409))
    def score(request: schemas.ScoreRequest, http: Request, key: Key = may_score) -> JSONResponse:
        """Score transactions with their history and store them, all or none. Scope: score."""
        check_count(request.transactions)
        model, now = in_service(), time.time()
        rows = [
            parse_transaction(raw, model.schema, f"transactions[{place}]", now, config.tolerance)
            for place, raw in enumerate(request.transactions)
        ]
        scored = scorer.score(key.tenant, model, rows, explain=request.explain, origin=Origin(key.id, http.state.request, now))
        monitor.add(model, scored)
        return JSONResponse({"decisions": scored.answers})  # as stored, without a model in between; a test checks the form

    @app.post("/v1/labels", tags=["scoring"], responses=problem_responses())
    def label(request: schemas.LabelRequest, key: Key = may_score) -> schemas.LabelAnswer:
        """Store the labels of transactions. They count in the context risk from now on. Scope: score."""
        check_count(request.labels)
        labels = {each.id: each.label for each in request.labels}
        if len(labels) < len(request.labels):
            raise InputError("labels: an id occurs twice; give each id once")
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
