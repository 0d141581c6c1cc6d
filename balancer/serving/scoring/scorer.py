"""Score transactions one by one and store them with their answers, requests in one database transaction.

Order, late, repeated and contradicting transactions:

- The effective time of a transaction is not before the last one of its entity. One that arrives late is
    scored as if it were at that time (`late_by` is the difference), because later transactions have already
    been scored. Within a request, transactions are first sorted by time.
- A transaction whose id is already stored gets the earlier answer (`repeated`) and does not count again. With
    other content it is refused, and the whole request with it.
- A transaction whose time is in the future, by the clock of the service, is refused: all later ones of its
    entity would be late.

Requests that wait are scored together (:meth:`Scorer.score_many`), with the same answers as one after the
other.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from balancer.devices import torch_threads
from balancer.serving.errors import ConflictError
from balancer.serving.models.registry import LoadedModel
from balancer.serving.reasons.reasons import NETWORK_LEFT_OUT, explain, leaves_out
from balancer.serving.scoring.actions import Actions
from balancer.serving.scoring.batch import Batch, Earlier, Scored, active_columns, context_values
from balancer.serving.scoring.entity_memory import EntityMemory
from balancer.serving.scoring.locks import Locked, lock
from balancer.serving.scoring.memory import DEFAULT_BYTES, Memory
from balancer.serving.scoring.model_memory import SNAPSHOT_ROWS, snapshot
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.row import Row
from balancer.serving.scoring.writes import as_json, write_batch
from balancer.serving.storage.database import Database
from balancer.serving.storage.driver import Driver, each_of

Answer = dict[str, Any]
NO_NETWORK = "the scores of this model come from boosted trees alone, so there is no attention to list"
USUAL_ROWS = 50
"""Earlier rows from which the usual values of an entity are taken."""
_STORED = "SELECT id, digest, answer FROM transactions WHERE tenant = :tenant AND id = ANY(:ids)"
_POSTGRES_STORED = each_of("ids", "SELECT id, digest, answer FROM transactions WHERE tenant = :tenant AND id = given.element LIMIT 1")


class ScoringResult(NamedTuple):
    """The answers to the transactions of a request."""

    answers: list[Answer]
    """One answer per transaction, in the order of the request."""
    values: dict[str, np.ndarray]
    """(C,) input of the model by id, of transactions that were not stored before."""


@dataclass(frozen=True)
class Models:
    """The models that score a batch."""

    champion: LoadedModel
    challenger: LoadedModel | None = None
    share: float = 0.0
    """Share of the entities whose transactions the challenger decides."""

    def challenger_decides(self, entity: str) -> bool:
        """Whether the challenger decides: always the same for an entity, while the share is the same."""
        if self.challenger is None or self.share <= 0:
            return False
        digest = hashlib.blake2b(entity.encode(), digest_size=8, person=b"canary").digest()
        return int.from_bytes(digest, "little") < self.share * 2**64


@dataclass(frozen=True)
class Job:
    """A request to score."""

    rows: Sequence[Row]
    explain: int = 0
    origin: Origin = field(default_factory=Origin)
    reasons: int = 0
    """Number of fields to name that moved a score most."""
    skip: bool = False
    """Whether a transaction that contradicts stored ones only gets an error, and the others are scored."""


class Scorer:
    """Scores transactions with the history in a database.

    Args:
        database: Where the transactions are stored.
        limit: About how many bytes it may remember of entities and context values.
        actions: What is to be done with a score.
    """

    def __init__(self, database: Database, limit: int = DEFAULT_BYTES, actions: Actions | None = None) -> None:
        self._database, self._actions = database, actions or Actions()
        self._memory = Memory(limit)
        self._lock = threading.Lock()

    def score(
        self,
        tenant: str,
        model: LoadedModel,
        rows: Sequence[Row],
        *,
        explain: int = 0,
        origin: Origin | None = None,
        challenger: LoadedModel | None = None,
        canary_share: float = 0.0,
    ) -> ScoringResult:
        """Score and store transactions, all of them or none.

        Args:
            tenant: Whose transactions.
            model: The model in service.
            rows: Transactions from `parse_transaction`.
            explain: Number of earlier transactions with the most attention to list.
            origin: Where the request came from; None: from this process.
            challenger: Another model that scores them too.
            canary_share: Share of the entities whose transactions the challenger decides.

        Raises:
            ConflictError: If an id is already stored with other content, or occurs twice with different
                content.
        """
        job = Job(rows, explain, origin or Origin())
        result = self.score_many(tenant, Models(model, challenger, canary_share), [job])[0]
        if isinstance(result, ConflictError):
            raise result
        return result

    def score_many(self, tenant: str, models: Models, jobs: Sequence[Job]) -> list[ScoringResult | ConflictError]:
        """Score and store the transactions of some requests in order; each request wholly or not at all.

        Args:
            tenant: Whose transactions.
            models: The models.
            jobs: The requests.

        Returns:
            The answers of each request, or why its transactions contradict stored ones.
        """
        if models.challenger is not None and models.challenger.digest == models.champion.digest:
            models = Models(models.champion)
        # What is remembered is used by one batch at a time, as is the database's lock of its writer.
        with self._lock, torch_threads(1):  # as `balancer score --streaming` does: the same bits
            attempts: list[Batch] = []
            before = 0

            def work(connection: Connection) -> list[ScoringResult | ConflictError]:
                nonlocal before
                before = len(attempts)
                for failed in attempts:
                    self._memory.forget(failed.names)
                return self._score(connection, tenant, models, jobs, attempts)

            try:
                results = self._database.write(work)
            except BaseException:
                for failed in attempts:
                    self._memory.forget(failed.names)
                raise
            for batch in attempts[before:]:
                batch.remember()
            return results

    def _score(
        self, connection: Connection, tenant: str, models: Models, jobs: Sequence[Job], opened: list[Batch]
    ) -> list[ScoringResult | ConflictError]:
        locked = lock_rows(Driver(connection), tenant, models.champion, [row for job in jobs for row in job.rows], self._memory)
        known = {name: (digest, msgspec.json.decode(answer) if isinstance(answer, str) else answer) for name, digest, answer in locked.rows}
        errors: dict[int, dict[int, ConflictError]] = {}
        fresh: list[tuple[int, Row]] = []
        digests = {name: digest for name, (digest, _) in known.items()}
        for number, job in enumerate(jobs):
            errors[number] = conflicts = _conflicts(job.rows, digests)
            if conflicts and not job.skip:
                continue
            good = [row for place, row in enumerate(job.rows) if place not in conflicts]
            for row in sorted(good, key=lambda each: each.sent_time):
                if row.id not in digests:
                    digests[row.id] = row.digest
                    fresh.append((number, row))
        answers, values = {name: answer for name, (_, answer) in known.items()}, {}
        # What an earlier attempt has stored, although its answer to the commit was lost, was sent once.
        repeated = set(answers) - {row.id for earlier in opened for row in earlier.rows}
        if fresh:
            batch = Batch(connection, self._memory, tenant, [row for _, row in fresh], models.champion, models.challenger)
            opened.append(batch)
            batch.open(locked)
            made, scored = self._answers(batch, models, [jobs[number] for number, _ in fresh])
            for (_, row), answer, each in zip(fresh, made, scored.values, strict=True):
                answers[row.id], values[row.id] = answer, each
        results: list[ScoringResult | ConflictError] = []
        for number, job in enumerate(jobs):
            conflicts = errors[number]
            if conflicts and not job.skip:
                results.append(next(iter(conflicts.values())))
                continue
            in_order: list[Answer] = []
            for place, row in enumerate(job.rows):
                if place in conflicts:
                    in_order.append({"id": row.id, "error": str(conflicts[place])})
                    continue
                in_order.append(answers[row.id] | {"repeated": row.id in repeated})
                repeated.add(row.id)
            results.append(ScoringResult(in_order, {row.id: values[row.id] for row in job.rows if row.id in values}))
        return results

    def _answers(self, batch: Batch, models: Models, jobs: Sequence[Job]) -> tuple[list[Answer], Scored]:
        """Score the rows of a batch and write them; `jobs` (n) has the request of each row."""
        batch.gather()
        champion = batch.scored(models.champion)
        challenger = None if models.challenger is None else batch.scored(models.challenger)
        answers, decided, challenged = [], [], []
        for place, (row, job) in enumerate(zip(batch.rows, jobs, strict=True)):
            by_challenger = challenger is not None and models.challenger_decides(row.entity)
            by, other = (challenger, champion) if by_challenger else (champion, challenger)
            assert by is not None
            answer = _decision(by, place) | {"id": row.id, "late_by": row.time - row.sent_time}
            if job.explain or job.reasons:
                answer |= _explained(batch, place, by, job)
            answers.append(answer)
            entity = batch.entities[row.entity].id
            decided.append(self._audited(batch.tenant, entity, answer, by.model, job.origin))
            if other is not None:
                second = _decision(other, place)
                head = (batch.tenant, row.id, other.model.digest, entity, job.origin.received)
                challenged.append((*head, second["score"], second["threshold"], second["decision"]))
        self._write(batch, champion, answers, decided, challenged)
        return answers, champion

    def _audited(self, tenant: str, entity: int, answer: Answer, model: LoadedModel, origin: Origin) -> tuple[Any, ...]:
        """The row of `decisions` for an answer."""
        action = self._actions.of(answer["score"], alarm=answer["decision"])
        said = (answer["score"], answer["threshold"], answer["decision"], answer["class"], action)
        return (entity, tenant, answer["id"], "scored", origin.received, origin.key, origin.request, model.name, model.digest, *said)

    def _write(
        self, batch: Batch, scored: Scored, answers: Sequence[Answer], decided: list[tuple[Any, ...]], challenged: list[tuple[Any, ...]]
    ) -> None:
        stored = []
        contexts = []
        active = set(active_columns(batch.model))
        for place, row in enumerate(batch.rows):
            entity, position = batch.entities[row.entity].id, batch.positions[place]
            scores = None if scored.fields is None else scored.fields[place].tobytes()
            head = (entity, position, batch.tenant, row.id, row.digest, row.time, row.sent_time, *batch.sums[place])
            fields = batch.numeric[place].tobytes()
            stored.append((*head, fields, scores, scored.before[place], as_json(row.texts), as_json(answers[place]), row.amount))
            _, _, level, square = batch.added[place]
            contexts += [
                (column, value, row.time, entity, position, level, square)
                for column, value in row.texts.items()
                if column in active and value is not None
            ]
        states = []
        for entity_memory in batch.entities.values():
            _keep_scores(entity_memory, scored)
            kept = entity_memory.models[scored.model.digest]
            if entity_memory.rows - kept.snapshot >= SNAPSHOT_ROWS and (content := snapshot(kept)) is not None:
                states.append((entity_memory.id, scored.model.digest, entity_memory.rows, content))
                kept.snapshot = entity_memory.rows
        write_batch(batch.driver, batch.tenant, list(batch.entities.values()), stored, decided, challenged, contexts, states)


def lock_rows(driver: Driver, tenant: str, model: LoadedModel, rows: Sequence[Row], memory: Memory | None = None) -> Locked:
    """Lock what the rows change, and read the digests and answers of those that are stored already.

    Args:
        driver: A transaction that writes.
        tenant: Whose rows.
        model: The model whose fields the rows have.
        rows: The rows.
        memory: What the worker remembers. If it knows all entities, they exist, and all is locked at once.
    """
    names = sorted({row.entity for row in rows})
    values = None
    if memory is not None and all(memory.entity(tenant, name) is not None for name in names):
        values = sorted({pair for row in rows for pair in context_values(model, row)})
    ids = list({row.id for row in rows})
    stored = _STORED if driver.is_sqlite else _POSTGRES_STORED
    return lock(driver, tenant, names, values, active_columns(model), (stored, {"tenant": tenant, "ids": ids}))


def _keep_scores(entity: EntityMemory, scored: Scored) -> None:
    """Note the score memory of the model that is stored with the entity."""
    kept = entity.models[scored.model.digest]
    entity.first_stage, entity.sum_score = scored.model.first_stage, kept.total
    entity.last_logits = None if scored.model.first_stage is None else np.array(kept.logits, np.float32).tobytes()


def _conflicts(rows: Sequence[Row], digests: Mapping[str, str]) -> dict[int, ConflictError]:
    """Which transactions contradict stored ones or earlier ones of the request, by their places."""
    here: dict[str, str] = {}
    found = {}
    for place, row in enumerate(rows):
        if here.setdefault(row.id, row.digest) != row.digest:
            found[place] = ConflictError(f"the id {row.id!r} occurs twice in the request with different content")
        elif digests.get(row.id, row.digest) != row.digest:
            found[place] = ConflictError(f"the id {row.id!r} is already stored with other content; give every transaction its own id")
    return found


def _decision(scored: Scored, place: int) -> Answer:
    """The columns that `balancer score` writes, for a row of a batch."""
    model = scored.model
    return {
        "score": float(scored.score[place]),
        "decision": bool(scored.alarm[place]),
        "class": model.schema.classes[int(scored.winner[place])],
        "threshold": float(model.decision.threshold),
        "model": model.name,
    }


def _explained(batch: Batch, place: int, scored: Scored, job: Job) -> Answer:
    """What a request wants to know about the score of a row of a batch."""
    model, row = scored.model, batch.rows[place]
    earlier = batch.earlier(place, scored, USUAL_ROWS if job.reasons else 0)
    found: Answer = {}
    if job.explain and model.stream is None:
        found |= {"weighed_most": [], "note": NO_NETWORK}
    elif job.explain:
        found["weighed_most"] = _most_attention(model, earlier, scored.values[place], job.explain)
    if job.reasons:
        found["reasons"] = explain(
            model,
            scored.values[place],
            time=row.time,
            entity=row.entity,
            texts=row.texts,
            earlier=earlier.values,
            read=earlier.read,
            count=job.reasons,
        )
        if leaves_out(model, earlier.read):
            found["note"] = NETWORK_LEFT_OUT
    return found


def _most_attention(model: LoadedModel, earlier: Earlier, values: NDArray[np.float32], count: int) -> list[Answer]:
    """The earlier rows with the most attention of the row with the input `values` (C,)."""
    if not earlier.read or model.stream is None:
        return []
    begin = len(earlier.names) - earlier.read
    weight = model.stream.attended(np.concatenate((earlier.values[begin:], values[None])))[:-1]
    top = np.argsort(-weight, kind="stable")[:count] + begin
    return [{"id": earlier.names[one], "time": earlier.times[one], "weight": float(weight[one - begin])} for one in top]
