"""The JSON of requests and answers, as pydantic models: what OpenAPI shows, with examples."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from balancer.serving.sessions import Session

Value = str | int | float | bool | None


class Strict(BaseModel):
    """Unknown keys are refused: a misspelt one would be overlooked."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """What was wrong, and what to do."""

    error: str = Field(examples=["transactions[0]: column 'amount' is missing; give a value"])


class ScoreRequest(Strict):
    """Transactions to judge, by the columns of the table that the model was trained on."""

    transactions: list[dict[str, Value]] = Field(
        min_length=1,
        description="In any order; those of one entity are judged in order of time. The column of the id (or `id`, where the table has none) makes a "
        "repetition harmless.",
        examples=[
            [
                {
                    "transaction_id": "t-1001",
                    "card_id": "card-17",
                    "time": "2026-05-31T13:45:00",
                    "amount": 19.99,
                    "merchant_id": "m-4",
                    "merchant_category": "grocery",
                    "channel": "chip",
                    "region": "r-2",
                    "distance_km": 1.5,
                }
            ]
        ],
    )
    explain: int = Field(
        0, ge=0, le=100, description="How many earlier transactions that weighed most to name; they are looked up again, which takes time."
    )


class Weighed(BaseModel):
    """An earlier transaction that the model looked at."""

    id: str
    time: float = Field(description="Seconds since 1970.")
    weight: float = Field(description="Share of the attention, mean over heads and layers.")


class Decision(BaseModel):
    """The answer to one transaction; the same each time it is asked for."""

    id: str
    score: float = Field(description="Calibrated probability of fraud.", examples=[0.031])
    decision: bool = Field(description="Whether the score reaches the threshold.")
    class_: str = Field(
        alias="class", description="The likeliest kind of fraud of an alarm, else the legitimate class.", examples=["legitimate"]
    )
    threshold: float
    model: str = Field(description="Name of the run that judged.")
    late_by: float = Field(description="Seconds by which it came after a later one of its entity; it was judged as if it happened then.")
    repeated: bool = Field(description="Whether it was stored before: this is the answer of then.")
    weighed_most: list[Weighed] | None = None


class ScoreAnswer(BaseModel):
    """The answers, in the order of the request."""

    decisions: list[Decision]


class Label(Strict):
    """What a transaction turned out to be."""

    id: str = Field(min_length=1, max_length=1000)
    label: str | None = Field(max_length=1000, description="A class of the model, or null to take a label back.", examples=["1"])


class LabelRequest(Strict):
    """Labels that have become known."""

    labels: list[Label] = Field(min_length=1)


class LabelAnswer(BaseModel):
    """What became of them."""

    stored: int
    unknown: list[str] = Field(description="Ids that no transaction here has; their labels are not kept.")


class Latest(BaseModel):
    """A stored transaction."""

    id: str
    time: float
    score: float
    label: str | None


class Entity(BaseModel):
    """What is stored of an entity."""

    entity: str
    transactions: int
    last_time: float | None
    latest: list[Latest]


class ModelRequest(Strict):
    """A run to put in service."""

    name: str = Field(min_length=1, max_length=200, description="One of those that GET /v1/models lists.", examples=["2026-06"])


class Activation(BaseModel):
    """When a model was put in service."""

    generation: int
    name: str
    activated: float


class Models(BaseModel):
    """What is in service, and what could be."""

    in_service: str | None
    available: list[str]
    activations: list[Activation]


class State(BaseModel):
    """Whether the service can work."""

    status: str = Field(examples=["ready"])
    model: str | None = None


class SessionPage(BaseModel):
    """Some sessions, oldest first."""

    sessions: list[Session]
    next: str | None = Field(description="Give it as `after` for the next page; null on the last.")
