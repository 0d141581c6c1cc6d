"""JSON of the audit, of reasons and of corrections, as pydantic models."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from balancer.serving.http.schemas import Reason, Value, Weighed

Corrections = Annotated[
    dict[str, Value],
    Field(
        min_length=1,
        description="The right values by column: the amount, numeric, categorical and context columns.",
        examples=[{"amount": 19.99}],
    ),
]


class AuditRow(BaseModel):
    """A row of the audit. It is never changed."""

    id: str
    entity: str
    kind: str = Field(description="`scored`, `amended` (scored again after a correction) or `reversed`.")
    received: str | None = Field(description="When the request arrived (UTC); null for transactions that older versions stored.")
    received_seconds: float | None = Field(description="The same in seconds since 1970.")
    key: str | None = Field(description="Id of the key, or subject of the token; empty without keys.")
    request: str | None = Field(description="Id of the request, as in the header X-Request-Id and in the log.")
    model: str
    digest: str | None = Field(description="SHA-256 of the files of the model.")
    score: float
    threshold: float
    decision: bool
    class_: str = Field(alias="class")
    action: str = Field(description="`approve`, `review` or `decline`.")


class Challenger(BaseModel):
    """The score by a model that did not decide."""

    model: str | None
    digest: str
    received: str
    received_seconds: float
    score: float
    threshold: float
    decision: bool


class Audit(AuditRow):
    """Everything that was decided about a transaction: its latest decision, and all rows of the audit.

    After a correction the latest decision is the one with the corrected values.
    """

    time: float | None = Field(description="When it counts in the history of its entity, in seconds since 1970.")
    late_by: float | None
    label: str | None
    labelled: str | None = Field(description="When the label arrived (UTC).")
    labelled_seconds: float | None
    reversed: bool = Field(description="Whether the transaction was taken back.")
    challengers: list[Challenger]
    amendments: list[AuditRow]
    decisions: list[AuditRow]
    reasons: list[Reason] | None = None
    weighed_most: list[Weighed] | None = None
    explained_by: str | None = None
    note: str | None = None


class AuditPage(BaseModel):
    """A page of the audit, in the order in which requests arrived."""

    decisions: list[AuditRow]
    next: str | None = Field(description="`after` for the next page; null on the last page.")


class Amended(BaseModel):
    """A corrected transaction, with its new score."""

    id: str
    changed: list[str] = Field(description="Columns whose value is another now.")
    model: str
    digest: str | None
    score: float
    threshold: float
    decision: bool
    class_: str = Field(alias="class")
    action: str
