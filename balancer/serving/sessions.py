"""Balancing sessions: a training loop in any language tells how its model does and is told how to sample.

What is special: a session is its request and the state after its last epoch, both JSON in the database, so any worker answers and a restart changes
nothing. An epoch's report is known by its number: sent twice it is answered twice and counted once.

Requests and answers list classes sorted by name. The controller inside has the commonest class first.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, delete, func, insert, select, update

from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.sampling.controller import SamplingController
from balancer.sampling.observation import ScoredRows
from balancer.sampling.policies import load_policy
from balancer.sampling.weights import Floats, SamplingWeights, class_prior
from balancer.serving.errors import ConflictError, MissingError
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import session_epochs, sessions

POLICIES = ("auto", "bandit", "constant", "schedule", "rule", "random", "start")
"""Named ones only: the folder of a policy would be a path from a request to the file system."""
_POLICY = re.compile(r"[a-z]+(:[a-z0-9_=.,+-]*)?")
_TOLERANCE = 1e-6
SORTED = "sorted"
"""Order of the classes in requests and answers. A session that version 0.1 began has none: commonest class first."""

ClassName = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Probability = Annotated[float, Field(ge=-_TOLERANCE, le=1 + _TOLERANCE, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SessionRequest(_Strict):
    """A training to balance."""

    classes: dict[ClassName, Count] = Field(
        min_length=2, max_length=50, description="Training rows of each class.", examples=[{"legitimate": 9_900, "fraud": 100}]
    )
    reward_classes: dict[ClassName, Count] | None = Field(
        None, description="Rows of each class that weights are judged on; as `classes` where left out."
    )
    epochs: int = Field(ge=1, le=100_000, examples=[10])
    policy: str = Field("auto", max_length=200, description=f"Who sets the weights: {', '.join(POLICIES)}; constant:share=.2,hardness=1.")
    num_samples: Count | None = Field(None, description="Rows drawn in an epoch; as many as there are where left out.")


class EpochScores(_Strict):
    """Scores of rows, row by row."""

    labels: list[ClassName] = Field(min_length=1, description="Class of each row.", examples=[["legitimate", "fraud", "legitimate"]])
    scores: list[Probability] | list[list[Probability]] = Field(
        description="Per row the probability of each class, in the order of the session's `classes`; with two classes also one number, "
        "the probability of the rarer class.",
        examples=[[0.1, 0.8, 0.3]],
    )


class EpochHistograms(_Strict):
    """How far off a model is, by class: smaller than rows of scores, whatever their number."""

    edges: list[Probability] = Field(
        min_length=2,
        max_length=10_001,
        description="Borders of the bins, rising from 0 to 1.",
        examples=[[0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0]],
    )
    counts: dict[ClassName, list[Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]]] = Field(
        description="Per class, how many of its rows have an error (1 less the probability of their own class) in each bin.",
        examples=[{"legitimate": [90, 5, 2, 1, 1, 1, 0, 0], "fraud": [1, 2, 2, 2, 1, 1, 1, 0]}],
    )


class EpochReport(_Strict):
    """How the model did in an epoch."""

    epoch: int = Field(ge=1, le=100_000, description="1 for the first.", examples=[1])
    reward: EpochScores | EpochHistograms = Field(description="On held-out rows.")
    train: EpochScores | EpochHistograms | None = Field(
        None, description="On training rows; learned policies and hardness need them. As `reward` where left out."
    )


class Weights(BaseModel):
    """How to sample the next epoch."""

    epoch: int = Field(description="Epochs that are done.")
    weights: dict[str, float] = Field(description="Share of the draws of each class; they sum to 1.")
    hardness: float = Field(description="How much hard rows are preferred within a class; 0: not at all.")
    floor: float = Field(description="Share of the draws within a class that stays even.")
    metrics: dict[str, float] = Field(description="Of the last report: F1 at its best threshold, average precision.")


class Session(Weights):
    """A session as it stands."""

    id: str
    created: float = Field(description="Seconds since 1970.")
    epochs: int
    policy: str
    classes: list[str] = Field(description="The classes, sorted by name: the order of the columns of scores.")


class Sessions:
    """The sessions of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, tenant: str, request: SessionRequest) -> Session:
        """Begin; InputError where the request can't be balanced."""
        content = request.model_dump() | {"class_order": SORTED}
        controller = _controller(content)
        row: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "number": time.time_ns(),
            "tenant": tenant,
            "created": time.time(),
            "request": content,
            "first": _weights(controller, content).model_dump(),
            "state": controller.state_dict(),
            "epoch": 0,
        }

        def work(connection: Connection) -> None:
            latest = connection.execute(select(func.max(sessions.c.number))).scalar() or 0
            connection.execute(insert(sessions).values(row | {"number": max(row["number"], latest + 1)}))

        self._database.write(work)
        return _session(row, row["first"])

    def get(self, tenant: str, session: str) -> Session:
        """A session as it stands; MissingError where it is unknown to the tenant."""
        return self._database.read(lambda connection: _shown(connection, _row(connection, tenant, session)))

    def list(self, tenant: str, after: str | None, limit: int) -> tuple[list[Session], str | None]:
        """At most `limit` sessions created after the session `after`, and what to give as `after` for more."""

        def work(connection: Connection) -> tuple[list[Session], str | None]:
            chosen = select(sessions).where(sessions.c.tenant == tenant)
            if after is not None:
                chosen = chosen.where(sessions.c.number > _row(connection, tenant, after)["number"])
            found = connection.execute(chosen.order_by(sessions.c.number).limit(limit + 1)).mappings().all()
            page = [_shown(connection, dict(row)) for row in found[:limit]]
            return page, page[-1].id if len(found) > limit else None

        return self._database.read(work)

    def delete(self, tenant: str, session: str) -> None:
        """Forget a session; MissingError where it is unknown to the tenant."""

        def work(connection: Connection) -> None:
            _row(connection, tenant, session)
            connection.execute(delete(sessions).where(sessions.c.id == session))

        self._database.write(work)

    def report(self, tenant: str, session: str, report: EpochReport) -> Weights:
        """Take in an epoch and give the weights of the next; the same report again gives the same answer.

        Raises:
            ConflictError: The epoch was reported with other content, comes out of turn, or is beyond the last.
            InputError: Scores or histograms can't be used.
        """
        digest = hashlib.sha256(report.model_dump_json().encode()).hexdigest()

        def work(connection: Connection) -> Weights:
            row = _row(connection, tenant, session, for_update=True)
            done = row["epoch"]
            if report.epoch <= done:
                here = (session_epochs.c.session == session) & (session_epochs.c.epoch == report.epoch)
                told = connection.execute(select(session_epochs).where(here)).one()
                if told.digest != digest:
                    raise ConflictError(f"epoch {report.epoch} was reported before with other scores; epoch {done + 1} is next")
                return Weights(**told.answer)
            if report.epoch > row["request"]["epochs"]:
                raise ConflictError(f"the session has {row['request']['epochs']} epochs, there is no epoch {report.epoch}")
            if report.epoch > done + 1:
                raise ConflictError(f"epoch {done + 1} is next, not {report.epoch}: report them in turn")
            controller = _controller(row["request"])
            controller.load_state_dict(row["state"])
            reward = _scored(report.reward, row["request"], controller.prior, "reward")
            train = reward if report.train is None else _scored(report.train, row["request"], controller.prior, "train")
            controller.update(train, reward)
            answer = _weights(controller, row["request"])
            kept = {"session": session, "epoch": report.epoch, "digest": digest, "answer": answer.model_dump()}
            connection.execute(insert(session_epochs).values(kept))
            changed = {"epoch": report.epoch, "state": controller.state_dict()}
            connection.execute(update(sessions).where(sessions.c.id == session).values(changed))
            return answer

        return self._database.write(work)


def _row(connection: Connection, tenant: str, session: str, *, for_update: bool = False) -> dict[str, Any]:
    chosen = select(sessions).where(sessions.c.tenant == tenant, sessions.c.id == session)
    found = connection.execute(chosen.with_for_update() if for_update else chosen).mappings().first()
    if found is None:
        raise MissingError("there is no such session")
    return dict(found)


def _shown(connection: Connection, row: dict[str, Any]) -> Session:
    if row["epoch"] == 0:
        return _session(row, row["first"])
    here = (session_epochs.c.session == row["id"]) & (session_epochs.c.epoch == row["epoch"])
    return _session(row, connection.execute(select(session_epochs.c.answer).where(here)).scalar_one())


def _session(row: dict[str, Any], weights: dict[str, Any]) -> Session:
    request = row["request"]
    told = {"epochs": request["epochs"], "policy": request["policy"], "classes": _shown_classes(request)}
    return Session(id=row["id"], created=row["created"], **told, **weights)


def _classes(request: dict[str, Any]) -> list[str]:
    """The classes as the controller has them: commonest first, equally common ones by name."""
    return sorted(request["classes"], key=lambda name: (-request["classes"][name], name))


def _shown_classes(request: dict[str, Any]) -> list[str]:
    """The classes as requests and answers have them."""
    return sorted(request["classes"]) if request.get("class_order") == SORTED else _classes(request)


def _controller(request: dict[str, Any]) -> SamplingController:
    classes, policy = _classes(request), request["policy"]
    if not _POLICY.fullmatch(policy) or policy.partition(":")[0] not in POLICIES:
        raise InputError(f"policy: {policy!r} is none that a service has; {nearest(policy, POLICIES)}")
    train = np.array([request["classes"][name] for name in classes])
    given = request["reward_classes"] or request["classes"]
    unknown = sorted(set(given) - set(classes))
    if unknown:
        raise InputError(f"reward_classes: unknown class {unknown[0]!r}; {nearest(unknown[0], classes)}")
    return SamplingController(
        class_prior(train),
        load_policy(policy, num_classes=len(classes)),
        epochs=request["epochs"],
        batch_budget=request["epochs"] * (request["num_samples"] or int(train.sum())),
        train_counts=train,
        reward_counts=np.array([given.get(name, 0) for name in classes]),
    )


def _weights(controller: SamplingController, request: dict[str, Any]) -> Weights:
    now: SamplingWeights = controller.weights
    share = dict(zip(_classes(request), now.share.tolist(), strict=True))
    shown = {name: share[name] for name in _shown_classes(request)}
    return Weights(epoch=controller.epoch, weights=shown, hardness=now.hardness, floor=now.floor, metrics=controller.metrics)


def _scored(told: EpochScores | EpochHistograms, request: dict[str, Any], prior: Floats, what: str) -> ScoredRows:
    classes = _classes(request)
    if isinstance(told, EpochScores):
        rows = _from_scores(told, classes, _shown_classes(request), what)
    else:
        rows = _from_histograms(told, classes, prior, what)
    held = set(np.unique(rows.label).tolist())
    if what == "reward" and not (0 in held and len(held) > 1):
        raise InputError(f"{what}: nothing can be measured by rows of one class; give {classes[0]!r} and at least one other")
    return rows


def _from_scores(told: EpochScores, classes: list[str], shown: list[str], what: str) -> ScoredRows:
    code = {name: number for number, name in enumerate(classes)}
    unknown = next((name for name in told.labels if name not in code), None)
    if unknown is not None:
        raise InputError(f"{what}.labels: unknown class {unknown!r}; {nearest(unknown, classes)}")
    label = np.array([code[name] for name in told.labels], dtype=np.int64)
    wide = isinstance(told.scores[0], list) if told.scores else True
    columns = {len(each) if isinstance(each, list) else 1 for each in told.scores}
    if len(told.scores) != len(label) or columns != {len(classes) if wide else 1} or (not wide and len(classes) > 2):
        raise InputError(f"{what}.scores: give one list of {len(classes)} probabilities for each of the {len(label)} labels")
    given: NDArray[np.float64] = np.clip(np.array(told.scores, dtype=np.float64), 0.0, 1.0)
    columns_of = [shown.index(name) for name in classes]
    return ScoredRows(label, given[:, columns_of] if wide else np.stack([1.0 - given, given], axis=1))


def _from_histograms(told: EpochHistograms, classes: list[str], prior: Floats, what: str) -> ScoredRows:
    """A row for each class and bin that counts: the error is the bin's middle, and the other classes share it by their prior."""
    edges = np.clip(np.array(told.edges, dtype=np.float64), 0.0, 1.0)
    if edges[0] != 0 or edges[-1] != 1 or (np.diff(edges) <= 0).any():
        raise InputError(f"{what}.edges: they must rise from 0 to 1")
    middle = (edges[1:] + edges[:-1]) / 2
    labels, scores, weights = [], [], []
    for name, counts in told.counts.items():
        if name not in classes:
            raise InputError(f"{what}.counts: unknown class {name!r}; {nearest(name, classes)}")
        if len(counts) != len(middle):
            raise InputError(f"{what}.counts of {name!r}: {len(counts)} counts for {len(middle)} bins; give one for each")
        own, given = classes.index(name), np.array(counts)
        some = given > 0
        others = prior.copy()
        others[own] = 0.0
        score = middle[some, None] * (others / others.sum())
        score[:, own] = 1.0 - middle[some]
        labels.append(np.full(int(some.sum()), own))
        scores.append(score)
        weights.append(given[some])
    if not sum(map(len, labels)):
        raise InputError(f"{what}.counts: there is no row; count at least one")
    return ScoredRows(np.concatenate(labels), np.concatenate(scores), np.concatenate(weights))
