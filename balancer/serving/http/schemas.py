"""JSON of requests and answers, as pydantic models with the descriptions of the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from balancer.serving.sessions.schemas import Session, StrictModel

Value = str | int | float | bool | None


class Problem(BaseModel):
    """An error and its remedy."""

    error: str = Field(examples=["transactions[0]: column 'amount' is missing; give a value"])


class ScoreRequest(StrictModel):
    """Transactions to score, with the columns of the table that the model was trained on."""

    transactions: list[dict[str, Value]] = Field(
        min_length=1,
        description="In any order; the transactions of an entity are scored in order of time. The column of the id (or `id`, where the table "
        "has none) makes a repeated request harmless.",
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
        0,
        ge=0,
        le=100,
        description="Number of earlier transactions with the most attention to list. They are read again from the database, which takes time.",
    )
    reasons: int = Field(
        0, ge=0, le=100, description="Number of fields to name that moved the score most, which takes some milliseconds a transaction."
    )
    on_error: Literal["refuse", "skip"] = Field(
        "refuse",
        description="refuse: a transaction that can't be used, or contradicts a stored one, refuses the request, and nothing is stored. "
        "skip: it gets `id` and `error` in its place, and the others are scored.",
    )


class Reason(BaseModel):
    """A field that moved a score."""

    field: str = Field(description="Its name, as in docs/fields.md; `(network)` is what no field of the network explains.")
    words: str = Field(examples=["7 transactions of this card in the last hour; usually 1"])
    value: str
    usual: str | None
    usual_of: str | None = Field(description="`entity`, or `training` for the training rows.")
    contribution: float = Field(description="Log-odds before calibration; below 0 it lowers the score.")


class Weighed(BaseModel):
    """An earlier transaction that the model attended to."""

    id: str
    time: float = Field(description="Seconds since 1970.")
    weight: float = Field(description="Share of the attention, mean over heads and layers.")


class Decision(BaseModel):
    """The answer to one transaction; repeated requests get the same answer."""

    id: str
    score: float = Field(description="Calibrated probability of fraud.", examples=[0.031])
    decision: bool = Field(description="Whether the score reaches the threshold.")
    class_: str = Field(
        alias="class", description="The most likely fraud class of an alarm, otherwise the legitimate class.", examples=["legitimate"]
    )
    threshold: float
    model: str = Field(description="Name of the run that scored the transaction.")
    late_by: float = Field(
        description="Seconds by which the transaction is earlier than the last one of its entity. It is scored as if it were at that time."
    )
    repeated: bool = Field(description="Whether the transaction was stored before. This is then the earlier answer.")
    weighed_most: list[Weighed] | None = None
    reasons: list[Reason] | None = None
    note: str | None = Field(None, description="Why no earlier transactions can be listed, or what the reasons leave out.")


class RowError(BaseModel):
    """With `on_error` skip: the answer to a transaction that can't be used."""

    id: str | None = Field(description="As far as it can be read.")
    error: str


class ScoreAnswer(BaseModel):
    """The answers, in the order of the request."""

    decisions: list[Decision | RowError]


class Label(StrictModel):
    """The label of a transaction."""

    id: Annotated[str, Field(min_length=1, max_length=1000)] | int = Field(description="Id of a transaction.", examples=["t-1001"])
    label: Annotated[str, Field(max_length=1000)] | bool | int | float | None = Field(
        description="A class of the model, as text or as the number or truth value of its column; null removes a label.", examples=["1", 1]
    )


class LabelRequest(StrictModel):
    """Labels that have become known."""

    labels: list[Label] = Field(min_length=1)


class LabelAnswer(BaseModel):
    """The result of a label request."""

    stored: int
    unknown: list[str] = Field(description="Ids of transactions that are not stored here; their labels are ignored.")


class Latest(BaseModel):
    """A stored transaction."""

    id: str
    time: float
    score: float
    label: str | None


class Entity(BaseModel):
    """The stored data of an entity."""

    entity: str
    transactions: int
    last_time: float | None
    latest: list[Latest]


class Alive(BaseModel):
    """The process answers."""

    status: str = Field(examples=["alive"])


class State(BaseModel):
    """The state of the service."""

    status: str = Field(examples=["ready"])
    model: str | None = None


class SessionPage(BaseModel):
    """A page of sessions, oldest first."""

    sessions: list[Session]
    next: str | None = Field(description="`after` for the next page; null on the last page.")
