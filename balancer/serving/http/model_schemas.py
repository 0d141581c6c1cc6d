"""JSON of the routes for models, as pydantic models with the descriptions of the OpenAPI document."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from balancer.serving.models.model_states import State
from balancer.serving.sessions.schemas import StrictModel
from balancer.serving.texts import stored_text

INTERVAL = "95 % interval, low and high; null where there are no rows."


class ModelRequest(StrictModel):
    """A run and the state that it should have."""

    name: Annotated[str, stored_text(200)] = Field(
        min_length=1, description="One of the names that GET /v1/models lists.", examples=["2026-06"]
    )
    state: State = Field(
        "champion",
        description="champion: it decides. shadow: it scores every transaction and decides none. canary: it decides for a share of the "
        "entities. candidate: it is registered and does not score. retired: it ends as challenger or candidate.",
    )
    share: float | None = Field(None, description="With the state canary: share of the entities for which it decides.", examples=[0.05])


class Activation(BaseModel):
    """When a model was put in service."""

    generation: int
    name: str
    activated: float = Field(description="Seconds since 1970.")
    digest: str = Field(description="SHA-256 of the files of the model.")
    by: str | None = Field(description="Id of the key that approved it; null: the command line.")
    rolled_back: bool = Field(description="Whether this was a return to the champion before.")


class ModelState(BaseModel):
    """A registered model."""

    name: str
    digest: str = Field(description="SHA-256 of the files of the model.")
    state: State
    share: float = Field(description="Share of the entities for which a canary decides; else 0.")
    registered: float = Field(description="Seconds since 1970 at which it was first approved.")
    since: float = Field(description="Seconds since 1970 at which it got its state.")
    by: str | None = Field(description="Id of the key that approved it; null: the command line, or a version that did not store it.")


class Models(BaseModel):
    """The models in service, and the available ones."""

    in_service: str | None = Field(description="Name of the champion.")
    challenger: str | None = Field(description="Name of the model that scores beside it.")
    canary_share: float = Field(description="Share of the entities for which the challenger decides.")
    available: list[str] = Field(description="Runs that can be put in service.")
    models: list[ModelState] = Field(description="Registered models, last changed first.")
    activations: list[Activation] = Field(description="The last hundred, latest first.")


class Measured(BaseModel):
    """A metric and its uncertainty."""

    value: float | None
    interval: tuple[float, float] | None = Field(description=INTERVAL)


class ModelMetrics(BaseModel):
    """What one of the two models does with the rows that both have scored."""

    name: str
    digest: str
    alarms: int
    alert_rate: Measured
    average_precision: Measured = Field(description="On the labelled rows.")
    precision: Measured = Field(description="Of its alarms on labelled rows: share that are frauds.")
    recall: Measured = Field(description="Of the labelled frauds: share with an alarm.")
    false_alarms_per_10k: Measured = Field(description="Alarms per 10,000 legitimate rows.")


class Comparison(BaseModel):
    """Champion against challenger, on the rows that both have scored."""

    rows: int = Field(description="Rows that both have scored, of all tenants.")
    agreement: Measured = Field(description="Share of the rows with the same decision.")
    labelled: int = Field(description="Of these, rows with a label, at most the latest 200,000.")
    frauds: int
    champion: ModelMetrics
    challenger: ModelMetrics
    average_precision_difference: Measured = Field(description="Challenger minus champion, on the same rows.")
