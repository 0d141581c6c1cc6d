"""Routes for the models in service: their states, and the comparison of champion and challenger."""

import math
from typing import Annotated

from fastapi import Depends, FastAPI, Query

from balancer.serving.errors import ConflictError
from balancer.serving.http import model_schemas as schemas
from balancer.serving.http.auth import Access
from balancer.serving.http.bodies import JsonBody, body_of, decode_model
from balancer.serving.http.problems import problem_responses
from balancer.serving.http.texts import Moment, span_of
from balancer.serving.models.comparison import Span, compare
from balancer.serving.models.registry import Registry
from balancer.serving.storage.database import Database
from balancer.serving.storage.keys import Key
from balancer.serving.texts import stored_text

Challenger = Annotated[str | None, stored_text(200), Query(description="Name of a registered model; without it the present challenger.")]


def add_models(app: FastAPI, database: Database, registry: Registry, access: Access) -> None:
    """Add /v1/models, /v1/models/rollback and /v1/models/comparison."""
    operator = Depends(access.allow("operator"))

    @app.get("/v1/models", tags=["models"], responses=problem_responses())
    def models(_: Key = operator) -> schemas.Models:
        """The models in service, and the runs that can replace them. Scope: operator."""
        serving = registry.serving
        activations = [schemas.Activation(by=each["key"], **each) for each in registry.activations()]
        states = [schemas.ModelState(since=each.changed, by=each.changed_by, **vars(each)) for each in registry.states()]
        return schemas.Models(
            in_service=None if serving.champion is None else serving.champion.name,
            challenger=None if serving.challenger is None else serving.challenger.name,
            canary_share=serving.canary_share,
            available=list(registry.names()),
            models=states,
            activations=activations,
        )

    @app.post("/v1/models", tags=["models"], responses=problem_responses(409), openapi_extra=body_of(schemas.ModelRequest))
    def change(body: JsonBody, key: Key = operator) -> schemas.Models:
        """Give a run a state, for all workers within seconds. The key is its approver. Scope: operator."""
        request = decode_model(schemas.ModelRequest, body)
        registry.put(request.name, request.state, share=request.share, key=key.id)
        return models(key)

    @app.post("/v1/models/rollback", tags=["models"], responses=problem_responses(409))
    def roll_back(key: Key = operator) -> schemas.Models:
        """Put the champion before the present one in service again. Scope: operator."""
        registry.roll_back(key=key.id)
        return models(key)

    @app.get("/v1/models/comparison", tags=["models"], responses=problem_responses(409))
    def comparison(challenger: Challenger = None, since: Moment = None, until: Moment = None, _: Key = operator) -> schemas.Comparison:
        """Champion against challenger, on the rows that both have scored. Scope: operator."""
        begin, end = span_of(since, until)
        champion, present = registry.current, registry.challenger
        if champion is None:
            raise ConflictError("no model is in service; put one in service before it is compared")
        other = registry.known(challenger) if challenger is not None else None if present is None else (present.name, present.digest)
        if other is None:
            raise ConflictError(
                "there is no challenger; put one in shadow by POST /v1/models, or name a registered model with ?challenger="
            )
        return schemas.Comparison.model_validate(
            compare(
                database,
                (champion.name, champion.digest),
                other,
                legitimate=champion.schema.classes[0],
                span=Span(-math.inf if begin is None else begin, math.inf if end is None else end),
            )
        )
