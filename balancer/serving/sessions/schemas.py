"""JSON of balancing sessions, as pydantic models."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from balancer.serving.texts import stored_text

POLICIES = ("auto", "ppo", "bandit", "constant", "schedule", "rule", "random", "start")
"""Policies that a request may name. Folders are excluded: a request must not contain a path of the file
system."""
_TOLERANCE = 1e-6


def _number(value: object) -> object:
    """Refuse text and truth values, which pydantic converts to numbers."""
    if isinstance(value, str | bool):
        raise PydanticCustomError("int", "no number")
    return value


ClassName = Annotated[str, Field(min_length=1), stored_text(200)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=10**12)]
Epoch = Annotated[int, BeforeValidator(_number), Field(ge=1, le=100_000)]
Probability = Annotated[float, Field(strict=True, ge=-_TOLERANCE, le=1 + _TOLERANCE, allow_inf_nan=False)]


class StrictModel(BaseModel):
    """Rejects unknown keys, so that a misspelt key is not ignored."""

    model_config = ConfigDict(extra="forbid")


class SessionRequest(StrictModel):
    """A training whose sampling is to be balanced."""

    classes: dict[ClassName, Count] = Field(
        min_length=2,
        max_length=50,
        description="Number of training rows of each class.",
        examples=[{"legitimate": 9_900, "fraud": 100}],
    )
    reward_classes: dict[ClassName, Count] | None = Field(
        None, description="Number of held-out rows of each class that the weights are evaluated on. Default: as `classes`."
    )
    epochs: Epoch = Field(description="Number of epochs of the training.", examples=[10])
    policy: str = Field(
        "auto",
        max_length=200,
        description=f"Policy that sets the weights: {', '.join(POLICIES)}. Options follow a colon, as in constant:share=.2,hardness=1.",
    )
    num_samples: Count | None = Field(None, description="Rows drawn per epoch. Default: the number of training rows.")
    compensated: bool = Field(False, description="Whether the loss counts drawn rows by the importance exponents of the weights.")


class EpochScores(StrictModel):
    """Scores of rows, one per row."""

    labels: Annotated[list[ClassName], Field(fail_fast=True)] = Field(
        min_length=1, description="Class of each row.", examples=[["legitimate", "fraud", "legitimate"]]
    )
    scores: (
        Annotated[list[Probability], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[Probability], Field(fail_fast=True)]], Field(fail_fast=True)]
    ) = Field(
        description="For each row, the probability of each class, in the order of `classes` of the session. With two classes, one number "
        "is enough: the probability of the rarer class.",
        examples=[[0.1, 0.8, 0.3]],
    )


class EpochHistograms(StrictModel):
    """Histograms of the errors by class; their size does not depend on the number of rows."""

    edges: Annotated[list[Probability], Field(fail_fast=True)] = Field(
        min_length=2,
        max_length=10_001,
        description="Borders of the bins, increasing from 0 to 1.",
        examples=[[0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0]],
    )
    counts: dict[
        ClassName, Annotated[list[Annotated[float, Field(strict=True, ge=0, le=1e12, allow_inf_nan=False)]], Field(fail_fast=True)]
    ] = Field(
        description="For each class, the number of its rows per bin of the error. The error is 1 minus the probability of the class.",
        examples=[{"legitimate": [90, 5, 2, 1, 1, 1, 0, 0], "fraud": [1, 2, 2, 2, 1, 1, 1, 0]}],
    )


class EpochReport(StrictModel):
    """Results of the model after an epoch."""

    epoch: Epoch = Field(description="Number of the epoch, from 1.", examples=[1])
    reward: EpochScores | EpochHistograms = Field(description="Scores of held-out rows.")
    train: EpochScores | EpochHistograms | None = Field(
        None, description="Scores of training rows, which learned policies and hardness need. Default: as `reward`."
    )
    compensated: bool | None = Field(
        None, description="Whether the loss counts drawn rows by the importance exponents from now on. Default: as before."
    )


class Weights(BaseModel):
    """Sampling weights of the next epoch."""

    epoch: int = Field(description="Number of finished epochs.")
    weights: dict[str, float] = Field(description="Share of the draws of each class. The shares sum to 1.")
    hardness: float = Field(description="How strongly rows with a large error are preferred within a class. 0: not at all.")
    floor: float = Field(description="Share of the draws within a class that ignores hardness.")
    class_importance: float = Field(
        0.0, description="A drawn row counts in the loss by (prior / share) of its class to this power. 0: every row alike."
    )
    hardness_importance: float = Field(
        0.0, description="It also counts by its probability without hardness, divided by its probability, to this power."
    )
    half_life: float | None = Field(
        None, description="Age, as a fraction of the time span, at which a row is drawn half as often. null: age has no effect."
    )
    metrics: dict[str, float] = Field(description="Metrics of the last report: F1 at its best threshold, average precision.")


class Session(Weights):
    """The state of a session."""

    id: str
    created: float = Field(description="Seconds since 1970.")
    epochs: int
    policy: str
    classes: list[str] = Field(description="The classes, sorted by name. This is the order of the columns of scores.")
