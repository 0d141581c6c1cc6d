"""Score the rows of a batch in one transaction: what is remembered, fields, scores, and what is written.

The order of the work:

1. Read what is not remembered or has changed of the entities and context values, which are locked.
2. Gather the statistics before each row, one row after the other.
3. Compute the fields of all rows at once, and the scores of each model.
4. Write rows, statistics and decisions, one statement a table.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from balancer.data.context_features import has_activity_fields
from balancer.data.past import QUANTITIES, Float, fixed, quantities, signed_log
from balancer.data.score_memory import RECENT, WINDOWS, clipped, probability
from balancer.inference.decision import decide
from balancer.serving import tracing
from balancer.serving.models.registry import LoadedModel
from balancer.serving.scoring.context_memory import ContextMemory, RowActivity, RowLabels
from balancer.serving.scoring.context_past import activity_by_sums
from balancer.serving.scoring.context_risk import labels_by_sums
from balancer.serving.scoring.entity_memory import EntityMemory, ModelMemory, score_before
from balancer.serving.scoring.facts import ContextFacts, EntityFacts, numeric_fields
from balancer.serving.scoring.locks import Locked, create, lock_values
from balancer.serving.scoring.memory import Memory
from balancer.serving.scoring.model_memory import (
    Scores,
    catch_up,
    first_logit,
    full_input,
    open_memory,
    score_fields,
    scored_again,
    stored_rows,
)
from balancer.serving.scoring.row import Row, value_key
from balancer.serving.storage.driver import Driver

_SUM_BEFORE = "SELECT sum_score FROM transactions WHERE entity = :entity AND position = :position"


def active_columns(model: LoadedModel) -> list[str]:
    """List the context columns by whose values rows are kept, because fields need them."""
    return [column for column in model.base.spec.context if has_activity_fields(column, model.base.numeric_fields)]


def context_values(model: LoadedModel, row: Row) -> list[tuple[str, str]]:
    """List the context columns and values of a row, without nulls."""
    return [(column, value) for column in model.base.spec.context if (value := row.texts[column]) is not None]


@dataclass
class Scored:
    """The scores of the rows of a batch by one model."""

    model: LoadedModel
    values: NDArray[np.float32]
    """(n, C) full input."""
    fields: NDArray[np.float32] | None
    """(n, S) score fields; None without trees."""
    before: list[int]
    """Sum of the first stage's probabilities before each row."""
    score: NDArray[np.floating]
    """(n,) calibrated."""
    alarm: NDArray[np.bool_]
    winner: NDArray[np.integer]
    """(n,) class."""


class Earlier(NamedTuple):
    """The rows of an entity before a row."""

    names: list[str]
    """Their ids."""
    times: list[float]
    """Effective times in seconds."""
    values: NDArray[np.float32]
    """(m, C) full input."""
    read: int
    """How many of them, the last ones, the network reads."""


@dataclass
class Batch:
    """New rows of one tenant, in the order in which they count.

    Args:
        connection: A transaction that writes.
        memory: What the worker remembers.
        tenant: Whose rows.
        rows: The rows; :meth:`open` gives them their effective times.
        model: The model whose scores are stored with the rows.
    """

    connection: Connection
    memory: Memory
    tenant: str
    rows: list[Row]
    model: LoadedModel
    challenger: LoadedModel | None = None
    driver: Driver = field(init=False)
    entities: dict[str, EntityMemory] = field(init=False)
    contexts: dict[tuple[str, str], ContextMemory] = field(init=False)
    positions: list[int] = field(init=False, default_factory=list)
    sums: list[tuple[int, int, int, int, float]] = field(init=False, default_factory=list)
    numeric: NDArray[np.float32] = field(init=False)
    added: list[tuple[int, int, int, int]] = field(init=False)
    facts: EntityFacts | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.driver = Driver(self.connection)

    @property
    def names(self) -> list[tuple[str, ...]]:
        """Names in `Memory` of all that the batch changes."""
        found: list[tuple[str, ...]] = [(self.tenant, row.entity) for row in self.rows]
        found += [(self.tenant, column, value) for row in self.rows for column, value in context_values(self.model, row)]
        return list(dict.fromkeys(found))

    def open(self, locked: Locked) -> None:
        """Read what is not remembered or has changed, and give the rows their effective times.

        Args:
            locked: The entities, and perhaps the context values, of at least these rows.
        """
        wanted = {row.entity for row in self.rows}
        entities = [each for each in locked.entities if each[1] in wanted]
        new = wanted - {each[1] for each in entities}
        if new:
            entities += create(self.driver, self.tenant, sorted(new))
        models = [self.model] if self.challenger is None else [self.model, self.challenger]
        self.entities = {name: self._entity(number, name, rows, version, models) for number, name, rows, version in entities}
        last = {name: entity.last_time for name, entity in self.entities.items() if entity.rows}
        for place, row in enumerate(self.rows):
            time = max(row.time, last.get(row.entity, row.time))
            last[row.entity] = time
            if time != row.time:
                self.rows[place] = replace(row, time=time)
        values = sorted({pair for row in self.rows for pair in context_values(self.model, row)})
        versions = locked.versions
        if versions is None:
            versions = lock_values(self.driver, self.tenant, values, active_columns(self.model))
        self._open_contexts(versions)

    def _entity(self, number: int, name: str, rows: int, version: int, models: Sequence[LoadedModel]) -> EntityMemory:
        entity = self.memory.entity(self.tenant, name)
        if entity is not None and (entity.id, entity.version) == (number, version) and entity.rows < rows:
            before, scores = entity.rows, entity.catch_up(self.driver)
            kept = entity.models.get(self.model.digest)
            is_whole = (
                kept is not None and kept.stream is self.model.stream and catch_up(self.driver, entity, self.model, kept, before, scores)
            )
            # The memory of a challenger is read again, because its scores are stored nowhere.
            entity.models = {self.model.digest: kept} if is_whole and kept is not None else {}
            entity.read_scores = None
        elif entity is None or (entity.id, entity.version, entity.rows) != (number, version, rows):
            entity = EntityMemory.read(self.driver, number, name, version) if rows else EntityMemory(number, name, version)
        known = {model.digest: (model.stream, model is self.model) for model in models}
        entity.models = {digest: kept for digest, kept in entity.models.items() if known.get(digest) == (kept.stream, kept.decides)}
        champion = entity.models.get(self.model.digest)
        if champion is not None and entity.rows and entity.first_stage != self.model.first_stage:
            del entity.models[self.model.digest]
        if known.keys() - entity.models.keys() and entity.read_scores is None:
            others = entity.models
            entity = EntityMemory.read(self.driver, number, name, version)
            entity.models = others
        for model in models:
            if model.digest not in entity.models:
                entity.models[model.digest] = open_memory(self.driver, entity, model, decides=model is self.model)
        return entity

    def _open_contexts(self, versions: Mapping[tuple[str, str], tuple[int, int]]) -> None:
        moments: dict[tuple[str, str], float] = {}
        for row in self.rows:
            for key in context_values(self.model, row):
                moments[key] = min(row.time, moments.get(key, row.time))
        active = set(active_columns(self.model))
        self.contexts = {}
        for (column, value), moment in moments.items():
            rows, labels = versions[column, value]
            found = self.memory.context(self.tenant, column, value)
            if found is None or found.rows_version != rows:
                found = ContextMemory(self.driver, self.tenant, column, value, (rows, labels), moment)
            elif found.labels_version != labels:
                found.read_labels(self.driver, labels)
            if column in active:
                found.rows_version = rows + 1  # which the lock has written
            self.contexts[column, value] = found

    def gather(self) -> None:
        """Gather what was before each row, add the rows to what is remembered, and compute their fields."""
        schema, spec = self.model.base, self.model.base.spec
        time = np.array([row.time for row in self.rows])
        amount = None if spec.amount is None else np.array([row.amount for row in self.rows], np.float64)
        level = None if amount is None else signed_log(amount)
        scaled = {name: fixed(values).tolist() for name, values in quantities(time, level).items()}
        none = [0] * len(self.rows)
        self.added = list(zip(*(scaled.get(name, none) for name in QUANTITIES), strict=True))
        levels = [0.0] * len(self.rows) if level is None else level.tolist()
        self.facts = None if spec.entity is None else EntityFacts(schema, time, amount)
        contexts = ContextFacts(spec.context, time, amount)
        latest: dict[str, int] = {}
        active = active_columns(self.model)
        for place, row in enumerate(self.rows):
            entity = self.entities[row.entity]
            if self.facts is not None:
                self.facts.gather(self.driver, entity, row, latest.get(row.entity))
            self._gather_context(row, contexts)
            self.positions.append(entity.rows)
            self.sums.append(entity.sums)
            added = self.added[place]
            entity.add(row.time, row.amount, levels[place], added, [(column, value_key(text)) for column, text in row.texts.items()])
            for column, value in context_values(self.model, row):
                if column in active:
                    self.contexts[column, value].add(row.time, added[2], added[3])
            latest[row.entity] = place
        if self.facts is not None:
            self.facts.close()
        self.numeric = numeric_fields(schema, self.rows, self.facts, contexts, time, amount)
        for name, place in latest.items():
            self.entities[name].last_fields = self.numeric[place].copy()

    def _gather_context(self, row: Row, into: ContextFacts) -> None:
        delay = self.model.base.spec.label_delay
        for column in self.model.base.spec.context:
            value = row.texts[column]
            if value is None:
                into.labels_of[column].append(RowLabels())
                into.activity_of[column].append(RowActivity())
                continue
            kept = self.contexts[column, value]
            if kept.labels is not None:
                labels = kept.labels.at(row.time, delay)
            else:
                labels = labels_by_sums(self.connection, self.tenant, column, value, row.time, delay)
            into.labels_of[column].append(labels)
            activity = kept.activity(row.time)
            if activity is None:
                activity = activity_by_sums(self.connection, self.tenant, column, value, row.time, kept.unwritten)
            into.activity_of[column].append(activity)

    def scored(self, model: LoadedModel) -> Scored:
        """Score the rows by a model, and add them to its memories."""
        base = model.base_input(self.numeric, [row.texts for row in self.rows])
        memories = {name: entity.models[model.digest] for name, entity in self.entities.items()}
        values, fields, before = base, None, [0] * len(self.rows)
        if model.first_stage is not None:
            logit = first_logit(model, base, np.array([row.time for row in self.rows]), [row.entity for row in self.rows])
            past, before = self._scores_before(memories, logit)
            fields = score_fields(model, past, logit)
            values = np.concatenate((fields, base), axis=1)
        begun = time.perf_counter()
        network = None if model.stream is None else self._network(model, memories, values)
        tracing.record("step", time.perf_counter() - begun)
        score, alarm, winner = decide(model.detector.combine(network, values), model.decision)
        return Scored(model, values, fields, before, score, alarm, winner)

    def _scores_before(self, memories: Mapping[str, ModelMemory], logit: Float) -> tuple[Scores, list[int]]:
        """The score memory before each row; the rows are added to the memories."""
        kept = clipped(logit)
        added = fixed(probability(kept)).tolist()
        seen, before = [], []
        logits = np.zeros((len(self.rows), RECENT))
        counts: dict[str, list[int]] = {name: [] for name in WINDOWS}
        sums: dict[str, list[int]] = {name: [] for name in WINDOWS}
        for place, row in enumerate(self.rows):
            memory, position = memories[row.entity], self.positions[place]
            seen.append(position)
            before.append(memory.total)
            recent = memory.logits
            for back in range(1, min(RECENT, len(recent)) + 1):
                logits[place, back - 1] = recent[-back]
            for name in WINDOWS if self.facts is not None else ():
                first = self.facts.firsts[name][place].position  # type: ignore[union-attr]
                counts[name].append(position - first)
                sums[name].append(memory.total - self._sum_before(memory, row.entity, first))
            memory.before.append(memory.total)
            memory.total += added[place]
            memory.logits = [*recent[1 - RECENT :], float(kept[place])]
        arrays = ({name: np.array(rows, np.int64) for name, rows in each.items()} for each in (counts, sums))
        return Scores(np.array(seen), logits, *arrays), before

    def _sum_before(self, memory: ModelMemory, entity: str, position: int) -> int:
        found = score_before(memory, position)
        if found is None:
            found = int(self.driver.rows(_SUM_BEFORE, {"entity": self.entities[entity].id, "position": position})[0][0])
        return found

    def _network(self, model: LoadedModel, memories: Mapping[str, ModelMemory], values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities (n, K) by the network; rows of different entities are read together."""
        assert model.stream is not None
        found = np.empty((len(self.rows), len(model.schema.classes)), np.float32)
        waiting = list(range(len(self.rows)))
        while waiting:
            taken: dict[str, int] = {}
            later = []
            for place in waiting:
                name = self.rows[place].entity
                if name in taken:
                    later.append(place)
                else:
                    taken[name] = place
            places = list(taken.values())
            states = [memories[name].state for name in taken]
            found[places], after = model.stream.advance_many(values[places], [state for state in states if state is not None])
            for name, state in zip(taken, after, strict=True):
                memories[name].state = state
            waiting = later
        return found

    def earlier(self, place: int, scored: Scored, rows: int) -> Earlier:
        """Read the rows before a row of the batch: at least `rows`, and those that the network reads."""
        row, position, stream = self.rows[place], self.positions[place], scored.model.stream
        needed = position if stream is None else stream.first_needed(position)
        begin = max(0, min(needed, position - rows))
        here = [each for each in range(place) if self.rows[each].entity == row.entity and self.positions[each] >= begin]
        stored = [each for each in stored_rows(self.driver, self.entities[row.entity].id, begin) if each.position < position]
        fields = None
        if stored and scored.model is not self.model and scored.model.first_stage is not None:
            fields = scored_again(self.driver, self.entities[row.entity], scored.model)[-len(stored) :]
        values = np.concatenate((full_input(scored.model, stored, fields), scored.values[here]))
        names = [each.id for each in stored] + [self.rows[each].id for each in here]
        times = [each.time for each in stored] + [self.rows[each].time for each in here]
        return Earlier(names, times, values, position - needed)

    def remember(self) -> None:
        """Keep what is remembered, which is in the database now."""
        for name, entity in self.entities.items():
            entity.written()
            self.memory.keep((self.tenant, name), entity)
        for (column, value), context in self.contexts.items():
            context.written()
            self.memory.keep((self.tenant, column, value), context)
