"""Routes for the audit: what was decided and why, and how a stored transaction is corrected or reversed."""

import time
from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse

from balancer.serving.audit.amend import Amender
from balancer.serving.audit.decisions import Decisions, Wanted
from balancer.serving.audit.explanations import Explanations
from balancer.serving.http import audit_schemas as schemas
from balancer.serving.http.auth import Access
from balancer.serving.http.bodies import JsonBody, body_of, decode_object
from balancer.serving.http.problems import problem_responses
from balancer.serving.http.texts import After, Moment, TransactionId, span_of
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.scoring.origin import Origin
from balancer.serving.storage.keys import Key


def add_decisions(
    app: FastAPI,
    decisions: Decisions,
    explanations: Explanations,
    amender: Amender,
    access: Access,
    current: Callable[[], LoadedModel | None],
) -> None:
    """Add /v1/decisions and /v1/transactions."""
    may_score, admin = Depends(access.allow("score")), Depends(access.allow("admin"))

    def in_service() -> LoadedModel:
        found = current()
        if found is None:
            raise HTTPException(503, "no model is in service; start balancer serve with --run, or put a model in service")
        return found

    @app.get("/v1/decisions", tags=["audit"], responses=problem_responses(), response_model=schemas.AuditPage)
    def page(
        after: After = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        since: Moment = None,
        until: Moment = None,
        action: Annotated[Literal["approve", "review", "decline"] | None, Query()] = None,
        key: Key = may_score,
    ) -> JSONResponse:
        """What was decided, in the order in which the requests arrived. Scope: score."""
        wanted = Wanted(*span_of(since, until), action)
        rows, following = decisions.page(key.tenant, wanted, after, limit)
        return JSONResponse({"decisions": rows, "next": following})

    @app.get("/v1/decisions/{transaction:path}", tags=["audit"], responses=problem_responses(404), response_model=schemas.Audit)
    def one(
        transaction: TransactionId,
        reasons: Annotated[int, Query(ge=0, le=100, description="Most fields that moved the score.")] = 0,
        transactions: Annotated[int, Query(ge=0, le=100, description="Most earlier transactions that weighed.")] = 0,
        by: Annotated[
            Literal["service"] | None,
            Query(description="`service`: explain with the model in service if that which decided is not loaded."),
        ] = None,
        key: Key = may_score,
    ) -> JSONResponse:
        """Everything that was decided about a transaction, and on request why. Scope: score."""
        found = decisions.get(key.tenant, transaction)
        if reasons or transactions:
            instead = in_service() if by == "service" else None
            found |= explanations.of(key.tenant, found, reasons, transactions, instead)
        return JSONResponse(found)

    @app.patch(
        "/v1/transactions/{transaction:path}",
        tags=["audit"],
        responses=problem_responses(404),
        response_model=schemas.Amended,
        openapi_extra=body_of(schemas.Corrections),
    )
    def amend(transaction: TransactionId, body: JsonBody, http: Request, key: Key = admin) -> JSONResponse:
        """Correct values of a stored transaction, and score it again. Earlier decisions stay in the audit.
        Scope: admin.
        """
        return JSONResponse(amender.amend(key.tenant, in_service(), transaction, decode_object(body), _origin(http, key)))

    @app.delete("/v1/transactions/{transaction:path}", tags=["audit"], status_code=204, responses=problem_responses(404))
    def reverse(transaction: TransactionId, http: Request, key: Key = admin) -> None:
        """Take a stored transaction back: it no longer counts anywhere, and the audit keeps what was decided.
        Scope: admin.
        """
        amender.reverse(key.tenant, in_service(), transaction, _origin(http, key))


def _origin(http: Request, key: Key) -> Origin:
    return Origin(key.id, http.state.request, time.time())
