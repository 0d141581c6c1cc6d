"""Delete what is older than a given age and that no later score depends on (`needed`).

What is special: what remains scores exactly as before. Positions of rows and sums over them stay as they are,
because counts and sums of windows are differences. Of a deleted row, what a terminal or merchant still needs
(its last row, its labels since the last fraud) stays without the name of the entity: it is moved to an entity
without transactions, `NOBODY`. All of this happens in small transactions; a purge that was stopped is simply
started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Table, delete, func, insert, literal, select, text, tuple_, update

from balancer.data.spec import DAY
from balancer.errors import InputError
from balancer.serving.models import model_states
from balancer.serving.models.registry import LoadedModel
from balancer.serving.operations.needed import Context, NeededOfContext, first_kept, least_age
from balancer.serving.scoring.context_past import LABEL_LEVELS
from balancer.serving.scoring.spans import numbers
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import (
    challenger_scores,
    context_rows,
    context_spans,
    decisions,
    entities,
    labelled,
    labelled_days,
    transactions,
)

NOBODY = "\x01purged"
"""Name of the entity, one for each tenant, that owns what is left of deleted rows. Because of its first
character, no transaction can name it."""
ROWS_AT_ONCE = 200
"""Rows that one transaction deletes at most."""
_LONGEST_PAUSE = 0.05
"""Most seconds between two transactions on SQLite, so that the service gets its turn to write."""
_VALUES = 100_000
"""Context values that are remembered."""
_DAY = int(DAY)

Progress = Callable[[str, int, int], None]
"""Called with what is deleted, the number done, and the number of all."""

_EMPTY_ENTITIES = text(
    'DELETE FROM entities WHERE "rows" = 0 AND name <> :nobody AND NOT EXISTS (SELECT 1 FROM transactions WHERE entity = entities.id) '
    "AND NOT EXISTS (SELECT 1 FROM decisions WHERE entity = entities.id)"
)
"""An entity whose transactions were all reversed is kept as long as the audit of them."""
_OLD_SPANS = text(
    'DELETE FROM context_spans WHERE tenant = :tenant AND "column" = :column AND value = :value AND width = :width AND number < :number'
)
_OLD_HOURS = text(
    'DELETE FROM labelled_hours WHERE tenant = :tenant AND "column" = :column AND value = :value AND hour < :hour AND NOT EXISTS '
    '(SELECT 1 FROM labelled WHERE tenant = :tenant AND "column" = :column AND value = :value '
    "AND time >= 3600.0 * (labelled_hours.hour - 24) AND time < 3600.0 * (labelled_hours.hour + 25))"
)
"""Hours of the days of labels that stay are read with them."""


@dataclass
class Purged:
    """Numbers of rows that were deleted."""

    transactions: int = 0
    entities: int = 0
    decisions: int = 0
    challenger_scores: int = 0
    labels: int = 0
    context_rows: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return them by name."""
        return asdict(self)

    def add(self, other: Purged) -> None:
        """Add other numbers."""
        for name, number in asdict(other).items():
            setattr(self, name, getattr(self, name) + number)


def purge(
    database: Database,
    models: Sequence[LoadedModel],
    older_than: float,
    now: float,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Purged:
    """Delete what is older than `older_than` seconds and not needed any more.

    Args:
        database: The database; the service may be running.
        models: The models that may score its transactions.
        older_than: Age in seconds.
        now: Seconds since 1970.
        dry_run: Only count.
        progress: Called with how far the work is.

    Returns:
        What was, or would be, deleted.

    Raises:
        InputError: The age is so short that scores would change.
    """
    least = least_age(models)
    if older_than < least:
        raise InputError(
            f"--older-than is {older_than / DAY:g} days, but fields of new transactions depend on the last {least / DAY:g} days: "
            f"give {least / DAY:g}d or more"
        )
    return _Purge(database, models, now - older_than, dry_run, progress or (lambda *_: None)).run()


def models_that_score(connection: Connection) -> list[tuple[str, str]]:
    """List name and digest of the models which score now, or may soon."""
    found = model_states.in_service(connection)
    champion = [] if found is None else [(found.name, found.digest)]
    return champion + [(each.name, each.digest) for each in model_states.listed(connection) if each.state != "retired"]


def check_models(database: Database, models: Sequence[LoadedModel]) -> None:
    """Check that the models which score now, or may soon, are among those that say which rows are needed.

    Raises:
        InputError: One is not.
    """
    given = {digest for model in models for digest in (model.digest, *model.others)}
    for name, digest in database.read(models_that_score):
        if digest not in given:
            raise InputError(
                f"the model {name!r} of the service is not among the given runs, and which rows it needs follows from its run: "
                "name its folder with --run, or give --models as for balancer serve"
            )


class _Purge:
    def __init__(self, database: Database, models: Sequence[LoadedModel], horizon: float, dry_run: bool, progress: Progress) -> None:
        self._database, self._models, self._horizon = database, models, horizon
        self._dry_run, self._progress = dry_run, progress
        self._needed = lru_cache(maxsize=_VALUES)(self._read_needed)
        self._connection: Connection | None = None
        self._run = database.read if dry_run else database.write

    def run(self) -> Purged:
        purged = Purged()
        columns = entities.c
        old = (columns.first_time <= self._horizon, columns.name != NOBODY)
        total = self._database.read(
            lambda connection: connection.execute(select(func.count()).select_from(entities).where(*old)).scalar_one()
        )
        done = 0
        for page in self._pages(entities, (columns.id,), *old):
            for (entity,) in page:
                purged.add(self._entity(entity))
                done += 1
                self._progress("entities", done, total)
        purged.decisions += self._old(decisions, (decisions.c.number,))
        purged.challenger_scores += self._old(challenger_scores, tuple(challenger_scores.primary_key.columns))
        if not self._dry_run:
            self._sums()
            self._left()
            self._database.write(lambda connection: connection.execute(_EMPTY_ENTITIES, {"nobody": NOBODY}))
            self._database.erased()
        return purged

    def _pages(self, table: Table, key: tuple[Any, ...], *where: Any, size: int = 500) -> Iterator[Sequence[Any]]:
        """Read keys in their order, some at once, without holding a transaction."""
        after: Any = None
        while True:
            chosen = select(*key).where(*where).distinct().order_by(*key).limit(size)
            if after is not None:
                chosen = chosen.where(tuple_(*key) > tuple_(*(literal(each, column.type) for each, column in zip(after, key, strict=True))))
            page = self._database.read(lambda connection, chosen=chosen: connection.execute(chosen).all())  # type: ignore[misc]
            if not page:
                return
            yield page
            after = page[-1]

    def _entity(self, entity: int) -> Purged:
        """Delete the old rows of an entity, and the entity if none are left."""
        purged, going_on = Purged(), True
        after = -1
        while going_on:
            begun = time.perf_counter()
            part, last, going_on = self._run(lambda connection, after=after: self._part(connection, entity, after))  # type: ignore[misc]
            purged.add(part)
            if self._database.is_sqlite and part.transactions and not self._dry_run:
                time.sleep(min(_LONGEST_PAUSE, time.perf_counter() - begun))
            after = last if self._dry_run else -1
        return purged

    def _part(self, connection: Connection, number: int, after: int) -> tuple[Purged, int, bool]:
        """Delete some rows of an entity.

        Returns:
            What was deleted, the last position, and whether there is more to delete.
        """
        chosen = select(entities).where(entities.c.id == number)
        found = connection.execute(chosen if self._dry_run else chosen.with_for_update()).mappings().first()
        if found is None:
            return Purged(), after, False  # erased meanwhile
        self._connection = connection
        columns = transactions.c
        kept = first_kept(connection, dict(found), self._models, self._horizon)
        rows = connection.execute(
            select(columns.position, columns.id, columns.time, columns.texts, columns.label)
            .where(columns.entity == number, columns.position < kept, columns.position > after)
            .order_by(columns.position)
            .limit(ROWS_AT_ONCE)
        ).all()
        purged = Purged(transactions=len(rows))
        more = len(rows) == ROWS_AT_ONCE
        gone = kept >= found["rows"] and not more
        if rows:
            last = rows[-1].position
            ids = select(columns.id).where(columns.entity == number, columns.position > after, columns.position <= last)
            for table, name in ((decisions, "decisions"), (challenger_scores, "challenger_scores")):
                of_rows = (table.c.entity == number, table.c.transaction.in_(ids))
                # Older ones are counted and deleted with all others that are old.
                counted = connection.execute(
                    select(func.count()).select_from(table).where(*of_rows, table.c.received > self._horizon)
                    if self._dry_run
                    else delete(table).where(*of_rows)
                )
                setattr(purged, name, counted.scalar_one() if self._dry_run else counted.rowcount)
            purged.labels = self._contexts(connection, labelled, found, after, last)
            purged.context_rows = self._contexts(connection, context_rows, found, after, last)
            if not self._dry_run:
                connection.execute(delete(transactions).where(columns.entity == number, columns.position <= last))
                connection.execute(update(entities).where(entities.c.id == number).values(version=entities.c.version + 1))
            after = last
        if gone:
            purged.entities = 1
            if not self._dry_run:
                connection.execute(delete(entities).where(entities.c.id == number))
        return purged, after, more

    def _contexts(self, connection: Connection, table: Table, entity: Any, after: int, last: int) -> int:
        """Delete the rows or labels of context values of an entity; those that are needed become nobody's.

        Returns:
            The number that was deleted.
        """
        columns = table.c
        keys = list(table.primary_key.columns)
        found = connection.execute(
            select(*keys).where(columns.entity == entity["id"], columns.position > after, columns.position <= last)
        ).all()
        kept: list[Any] = []
        deleted: list[Any] = []
        for row in found:
            (kept if self._is_needed(table, row) else deleted).append(row)
        if not self._dry_run:
            _delete_each(connection, table, deleted)
            if kept:
                self._give_to_nobody(connection, table, entity["tenant"], kept)
        return len(deleted)

    def _is_needed(self, table: Table, row: Any) -> bool:
        needed = self._needed(Context(row.tenant, row.column, row.value))
        return needed.needs_label(row.time) if table is labelled else needed.needs_row(row.time)

    def _read_needed(self, context: Context) -> NeededOfContext:
        assert self._connection is not None
        return NeededOfContext.read(self._connection, context, self._horizon)

    def _give_to_nobody(self, connection: Connection, table: Table, tenant: str, rows: Sequence[Any]) -> None:
        """Move rows to the entity of what is left; a number of their own keeps their keys apart."""
        chosen = select(entities.c.id, entities.c.sum_cos).where(entities.c.tenant == tenant, entities.c.name == NOBODY)
        nobody = connection.execute(chosen.with_for_update()).first()
        if nobody is None:
            sums = {f"sum_{name}": 0 for name in ("cos", "sin", "level", "square", "amount")}
            connection.execute(insert(entities).values(tenant=tenant, name=NOBODY, rows=0, **sums))
            nobody = connection.execute(chosen.with_for_update()).one()
        for number, row in enumerate(rows, start=nobody.sum_cos):
            connection.execute(update(table).where(*_is(table, row)).values(entity=nobody.id, position=number))
        # The entity has no rows and no sums, so one of its columns counts what was moved.
        connection.execute(update(entities).where(entities.c.id == nobody.id).values(sum_cos=nobody.sum_cos + len(rows)))

    def _old(self, table: Table, key: tuple[Any, ...]) -> int:
        """Delete the rows of a table that were received before the horizon."""
        old = table.c.received <= self._horizon
        if self._dry_run:
            return self._database.read(
                lambda connection: connection.execute(select(func.count()).select_from(table).where(old)).scalar_one()
            )
        number = 0
        for page in self._pages(table, key, old, size=ROWS_AT_ONCE):

            def work(connection: Connection, page: Sequence[Any] = page) -> int:
                return connection.execute(delete(table).where(tuple_(*key).in_([tuple(row) for row in page]))).rowcount

            number += self._database.write(work)
            self._progress(table.name.replace("_", " "), number, number)
        return number

    def _sums(self) -> None:
        """Delete sums by minutes, hours and days that no window reads."""
        keys = (context_spans.c.tenant, context_spans.c.column, context_spans.c.value)
        widths = (60, 3600, _DAY)
        for page in self._pages(context_spans, keys, context_spans.c.width == 0):
            values = [
                {"tenant": row.tenant, "column": row.column, "value": row.value, "width": width, "number": int(self._horizon // width)}
                for row in page
                for width in widths
            ]
            self._database.write(lambda connection, values=values: connection.execute(_OLD_SPANS, values))  # type: ignore[misc]
        days = labelled_days.c
        hour = numbers(LABEL_LEVELS, self._horizon)[0]
        for page in self._pages(labelled_days, (days.tenant, days.column, days.value)):
            values = [{"tenant": row.tenant, "column": row.column, "value": row.value, "hour": hour} for row in page]
            self._database.write(lambda connection, values=values: connection.execute(_OLD_HOURS, values))  # type: ignore[misc]

    def _left(self) -> None:
        """Delete what earlier purges left of rows, where newer ones have taken its place."""
        owners = select(entities.c.id).where(entities.c.name == NOBODY)
        for table in (labelled, context_rows):
            for page in self._pages(table, tuple(table.primary_key.columns), table.c.entity.in_(owners), size=ROWS_AT_ONCE):

                def work(connection: Connection, table: Table = table, page: Sequence[Any] = page) -> None:
                    self._connection = connection
                    _delete_each(connection, table, [row for row in page if not self._is_needed(table, row)])

                self._database.write(work)


def _is(table: Table, row: Any) -> list[Any]:
    return [column == row._mapping[column.name] for column in table.primary_key.columns]


def _delete_each(connection: Connection, table: Table, rows: Sequence[Any]) -> None:
    for row in rows:
        connection.execute(delete(table).where(*_is(table, row)))
