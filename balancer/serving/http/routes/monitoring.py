"""The route of the early warning."""

from typing import Annotated

from fastapi import Depends, FastAPI, Query
from pydantic import BaseModel, Field

from balancer.serving.http.auth import Access
from balancer.serving.http.problems import problem_responses
from balancer.serving.operations.monitoring import Monitoring
from balancer.serving.storage.keys import Key


class Estimate(BaseModel):
    """A number with its interval of 95 %."""

    value: float | None = Field(description="null where it is not defined, as a precision without alarms.")
    interval: tuple[float, float] | None = Field(description="Low and high.")


class Largest(BaseModel):
    """The field that has changed most."""

    field: str
    index: float = Field(description="Population stability index; above .25 the field has changed.")


class Day(BaseModel):
    """The decisions of one day and one model; imported transactions are left out."""

    day: str = Field(description="Date (UTC) on which the transactions were received.")
    model: str
    digest: str
    transactions: int = Field(description="An estimate where not all decisions were read.")
    rows_read: int
    alarms: int
    alert_rate: float
    mean_score: float
    expected_frauds: Estimate = Field(description="Sum of the calibrated scores.")
    estimated_precision: Estimate = Field(description="Mean calibrated score of the alarms.")
    labelled: int = Field(description="Decisions that were read and have a label.")
    labelled_alarms: int
    true_precision: Estimate = Field(description="Share of frauds among the alarms with a label.")
    drift: dict[str, float] | None = Field(description="Population stability index by field; null without enough decisions.")
    largest_drift: Largest | None
    fields_changed: list[str] = Field(description="Fields above .25 and above what chance explains, largest first.")


class Days(BaseModel):
    """Latest day first."""

    days: list[Day]
    notes: list[str] = Field(description="What is estimated or left out.")


def add_monitoring(app: FastAPI, monitoring: Monitoring, access: Access) -> None:
    """Add /v1/monitoring."""
    operator = Depends(access.allow("operator"))

    @app.get("/v1/monitoring", tags=["operations"], responses=problem_responses())
    def by_day(days: Annotated[int, Query(ge=1, le=92)] = 30, _: Key = operator) -> Days:
        """Alert rate, estimated precision and drift by day and model, of all tenants. Scope: operator."""
        return Days.model_validate(monitoring.by_day(days))
