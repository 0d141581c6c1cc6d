"""Routes for balancing sessions."""

from typing import Annotated

from fastapi import Depends, FastAPI, Query

from balancer.serving.http import schemas
from balancer.serving.http.auth import Access
from balancer.serving.http.bodies import JsonBody, body_of, decode_model
from balancer.serving.http.problems import problem_responses
from balancer.serving.http.texts import After, SessionId
from balancer.serving.sessions.schemas import EpochReport, Session, SessionRequest, Weights
from balancer.serving.sessions.store import Sessions
from balancer.serving.storage.keys import Key


def add_sessions(app: FastAPI, sessions: Sessions, access: Access) -> None:
    """Add /v1/sessions."""
    allowed = Depends(access.allow("sessions"))

    @app.post("/v1/sessions", tags=["sessions"], status_code=201, responses=problem_responses(), openapi_extra=body_of(SessionRequest))
    def begin(body: JsonBody, key: Key = allowed) -> Session:
        """Start a session. The answer has the weights of the first epoch. Scope: sessions."""
        return sessions.create(key.tenant, decode_model(SessionRequest, body))

    @app.get("/v1/sessions", tags=["sessions"], responses=problem_responses(404))
    def each(
        after: After = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        key: Key = allowed,
    ) -> schemas.SessionPage:
        """The sessions, oldest first. Scope: sessions."""
        found, following = sessions.list(key.tenant, after, limit)
        return schemas.SessionPage(sessions=found, next=following)

    @app.get("/v1/sessions/{session}", tags=["sessions"], responses=problem_responses(404))
    def one(session: SessionId, key: Key = allowed) -> Session:
        """The state of a session. Scope: sessions."""
        return sessions.get(key.tenant, session)

    @app.post("/v1/sessions/{session}/epochs", tags=["sessions"], responses=problem_responses(404, 409), openapi_extra=body_of(EpochReport))
    def report(session: SessionId, body: JsonBody, key: Key = allowed) -> Weights:
        """Report an epoch and get the weights of the next; a repeated report gets the same answer. Scope:
        sessions.
        """
        return sessions.report(key.tenant, session, decode_model(EpochReport, body))

    @app.delete("/v1/sessions/{session}", tags=["sessions"], status_code=204, responses=problem_responses(404))
    def end(session: SessionId, key: Key = allowed) -> None:
        """Delete a session. Scope: sessions."""
        sessions.delete(key.tenant, session)
