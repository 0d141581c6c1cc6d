"""Load the transactions of a table into the database of a service, as if they had been sent one by one.

What is special: rows are scored by the engine of the service, in order of time, and a label is stored before
the first row that sees it. So the scores are those of `balancer score --streaming` on the table, and the
database is that of a service which has run all the time. Every transaction has an id, its own or one made
from its content, by which rows that are stored already are recognized: an import that was stopped is started
again.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sqlalchemy import Connection, select

from balancer.data.checked import CheckedTable, read_table
from balancer.data.checks import BadRows, RowCheck, check_number
from balancer.data.reading import Source, read_columns
from balancer.errors import InputError
from balancer.names import listed
from balancer.runs.results import SCHEMA_FILE
from balancer.runs.trained_run import read_schema
from balancer.serving.models.registry import LoadedModel, same_rows
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.parsing import parse_transaction
from balancer.serving.scoring.row import Row
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage import keys
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import entities, models, transactions
from balancer.tables.source import opened
from balancer.tables.values import form_of

IMPORT_KEY = "import"
"""The key in the decisions of imported rows."""
MOST_ROWS = 500
"""Rows that are scored in one transaction of the database."""
MOST_LABELS = 2_000
"""Labels that are stored in one transaction of the database."""
_ROWS_NAMED = 3
"""Rows that are named for each reason to drop some."""
_SAME_TIME = 1e-3
"""Seconds by which a time may differ where it is read in another way."""

Progress = Callable[[int, int], None]
"""Called with the number of rows that are done, and of all."""


@dataclass
class Imported:
    """What an import did."""

    rows: int = 0
    """Rows of the table, without those that were dropped."""
    scored: int = 0
    repeated: int = 0
    """Rows that were stored already."""
    labels: int = 0
    """Labels that were stored."""
    late: int = 0
    """Rows that are earlier than a stored one of their entity, and so were scored at its time."""
    alarms: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name, and the rows per second."""
        return asdict(self) | {"rows_per_second": round(self.rows / self.seconds, 1) if self.seconds else None}


@dataclass(frozen=True)
class History:
    """Rows to import, in order of time."""

    rows: Sequence[Row]
    labels: Sequence[str | None]
    """Per row, its class; None where it has no label."""
    known: NDArray[np.float64]
    """(N,) seconds from which a label is known."""
    late: NDArray[np.bool_]
    """(N,) whether a label was reported later than the label delay, and so must not be stored before."""
    dropped: dict[str, int]
    notes: tuple[str, ...]


def read_history(
    model: LoadedModel,
    source: Source,
    *,
    labels: Literal["table", "none"] = "table",
    bad_rows: BadRows = "error",
    tolerance: float = 0.0,
    now: float | None = None,
) -> History:
    """Read and check a table.

    Args:
        model: The model that scores it.
        source: The table, of any kind that `balancer` reads.
        labels: Whether its labels are stored.
        bad_rows: `error`, or `drop` to leave bad rows out and count them.
        tolerance: Seconds by which a row may be ahead of the clock.
        now: The clock, seconds since 1970; None: that of this machine.

    Raises:
        InputError: A column is missing or a row can't be used; the message names them.
    """
    schema = model.schema
    table, _ = read_table(source, schema.spec, schema=schema, classes=schema.classes, form=schema.values, bad_rows=bad_rows)
    moment, dropped, order = time.time() if now is None else now, Counter(table.dropped), np.argsort(table.time, kind="stable")
    found: list[tuple[int, Row]] = []
    raws = list(_raw_rows(model, source, table))
    refused: dict[str, list[int]] = {}
    for place in order.tolist():
        where = f"row {int(table.row[place]) + 1}"
        try:
            row = parse_transaction(raws[place], schema, where, moment, tolerance)
            if abs(row.time - table.time[place]) > _SAME_TIME:
                raise InputError(f"{where}: column {schema.spec.time!r} is read in another way in a request; write full dates and times")
        except InputError as error:
            if bad_rows == "error":
                raise
            refused.setdefault(_reason(error, where), []).append(int(table.row[place]) + 1)
            continue
        found.append((place, row))
    dropped.update({f"{reason} ({_first_rows(numbers)})": len(numbers) for reason, numbers in refused.items()})
    places = np.array([place for place, _ in found], dtype=np.int64)
    if not len(places):
        raise InputError(f"every row is bad and was dropped ({dict(dropped)}): check the roles of the columns")
    names: list[str | None] = [None] * len(places)
    if labels == "table":
        names = [None if code < 0 else schema.classes[code] for code in table.label[places].tolist()]
    usual = table.time[places] + schema.spec.label_delay
    known = usual if table.reports is None else np.fmax(usual, table.reports[places])
    return History([row for _, row in found], names, known, known > usual, dict(dropped), table.notes)


def _reason(error: InputError, where: str) -> str:
    """Why a row is refused, without what is only true of this row, and without the remedy."""
    text = str(error).removeprefix(f"{where}: ").partition("; ")[0]
    return re.sub(r" is -?\d+ s ahead of", " is ahead of", text)


def _first_rows(numbers: Sequence[int]) -> str:
    numbers = sorted(numbers)
    shown = ", ".join(map(str, numbers[:_ROWS_NAMED]))
    return f"row {shown}" if len(numbers) == 1 else f"rows {shown}{', ...' if len(numbers) > _ROWS_NAMED else ''}"


def _raw_rows(model: LoadedModel, source: Source, table: CheckedTable) -> Iterator[dict[str, Any]]:
    """The checked rows as a request sends them, so that a row which is sent later is recognized."""
    schema = model.schema
    spec, joined = schema.spec, schema.parts
    assert spec.time is not None
    texts = [part for name in dict.fromkeys((spec.entity, *spec.categorical, *spec.context)) if name is not None for part in joined(name)]
    times = joined(spec.time)
    frame = read_columns(source, list(dict.fromkeys((*texts, *times, *spec.numeric))), spec.read)[table.row]
    read = opened(source, spec.read).read
    # In 64 bits, as numbers of a request are.
    wide = {name: check_number(frame[name], RowCheck(frame.height, "drop", "row"), optional=True, read=read) for name in spec.numeric}
    columns: dict[str, list[Any]] = {name: form_of(frame[name], schema.values).to_list() for name in texts}
    columns |= {name: _moments(frame[name]) for name in times}
    if spec.amount is not None and table.amount is not None:
        columns[spec.amount] = table.amount.tolist()
    columns |= {name: [None if math.isnan(value) else value for value in values.tolist()] for name, values in wide.items()}
    key = spec.id or "id"
    ids = None if table.ids is None else form_of(table.ids, schema.values).to_list()
    occurred: Counter[str] = Counter()
    for place in range(table.size):
        raw = {name: values[place] for name, values in columns.items()}
        if ids is not None:
            raw[key] = ids[place]
        else:
            content = json.dumps(
                [float(table.time[place]), {name: value for name, value in raw.items() if name not in times}], sort_keys=True
            )
            occurred[content] += 1
            raw[key] = "import-" + hashlib.sha256(f"{occurred[content]} {content}".encode()).hexdigest()[:32]
        yield raw


def _moments(values: pl.Series) -> list[Any]:
    return [each.isoformat() if isinstance(each, date | datetime) else each for each in values.to_list()]


def import_history(database: Database, tenant: str, model: LoadedModel, history: History, *, progress: Progress | None = None) -> Imported:
    """Score and store rows with their labels.

    Args:
        database: Where to.
        tenant: Whose transactions.
        model: The model that scores them.
        history: From `read_history`.
        progress: Called with how far the work is.

    Returns:
        The numbers of rows and labels.

    Raises:
        ConflictError: An id is stored already with other content.
    """
    done, begun, request = Imported(rows=len(history.rows)), time.perf_counter(), uuid.uuid4().hex
    scorer, every = Scorer(database), Entities(database)
    last_times = database.read(lambda connection: _last_times(connection, tenant))
    waiting: list[tuple[float, int]] = []

    def store_labels(until: float) -> None:
        while waiting and waiting[0][0] <= until:
            due: dict[str, str | None] = {}
            while waiting and waiting[0][0] <= until and len(due) < MOST_LABELS:
                place = heapq.heappop(waiting)[1]
                due[history.rows[place].id] = history.labels[place]
            stored = database.read(lambda connection, due=due: _labels(connection, tenant, list(due)))  # type: ignore[misc]
            due = {name: label for name, label in due.items() if stored.get(name) != label}
            if due:
                every.label(tenant, model.schema, due)
            done.labels += len(due)

    for first, end in _batches(history):
        rows = history.rows[first:end]
        store_labels(rows[0].time)
        stored = database.read(lambda connection, rows=rows: _digests(connection, tenant, [row.id for row in rows]))  # type: ignore[misc]
        if any(stored.get(row.id) != row.digest for row in rows):
            answers = scorer.score(tenant, model, rows, origin=Origin(IMPORT_KEY, request)).answers
            fresh = [(row, answer) for row, answer in zip(rows, answers, strict=True) if not answer["repeated"]]
            done.scored += len(fresh)
            done.alarms += sum(answer["decision"] for _, answer in fresh)
            done.late += sum(row.time < last_times.get(row.entity, -math.inf) for row, _ in fresh)
        for place in range(first, end):
            if history.labels[place] is not None:
                heapq.heappush(waiting, (float(history.known[place]) if history.late[place] else -math.inf, place))
        if progress is not None:
            progress(end, len(history.rows))
    store_labels(math.inf)
    done.repeated, done.seconds = done.rows - done.scored, time.perf_counter() - begun
    return done


def _batches(history: History) -> Iterator[tuple[int, int]]:
    """First and end of the rows that are scored together: no label becomes known from one row to another.

    A label that is stored early is not seen early, so only labels of the same batch, and those that were
    reported late, end a batch.
    """
    first, due = 0, math.inf
    late: list[float] = []  # when labels that were reported late become known
    for place, row in enumerate(history.rows):
        if place > first and (place - first == MOST_ROWS or row.time >= min(due, late[0] if late else math.inf)):
            yield first, place
            first, due = place, math.inf
        while late and late[0] <= history.rows[first].time:
            heapq.heappop(late)
        if history.labels[place] is not None:
            known = float(history.known[place])
            due = min(due, known)
            if history.late[place]:
                heapq.heappush(late, known)
    if first < len(history.rows):
        yield first, len(history.rows)


def _last_times(connection: Connection, tenant: str) -> dict[str, float]:
    """Last times of the entities that are stored; of a new database, none."""
    columns = entities.c
    found = connection.execute(select(columns.name, columns.last_time).where(columns.tenant == tenant, columns.last_time.is_not(None)))
    return {row[0]: row[1] for row in found}


def _digests(connection: Connection, tenant: str, ids: list[str]) -> dict[str, str]:
    columns = transactions.c
    found = connection.execute(select(columns.id, columns.digest).where(columns.tenant == tenant, columns.id.in_(ids)))
    return {row[0]: row[1] for row in found}


def _labels(connection: Connection, tenant: str, ids: list[str]) -> dict[str, str | None]:
    columns = transactions.c
    found = connection.execute(select(columns.id, columns.label).where(columns.tenant == tenant, columns.id.in_(ids)))
    return {row[0]: row[1] for row in found}


def note_on_model(database: Database, model: LoadedModel) -> str | None:
    """Compare a model with the one in service.

    Returns:
        A note if another one is in service.

    Raises:
        InputError: That one can be found and reads other columns, so the rows would be of no use to it.
    """
    chosen = select(models).order_by(models.c.generation.desc()).limit(1)
    latest = database.read(lambda connection: connection.execute(chosen).mappings().first())
    if latest is None or latest["digest"] == model.digest or latest["digest"] in model.others:
        return None
    folder = model.folder.resolve().parent / latest["name"]
    if (folder / SCHEMA_FILE).is_file() and (why := same_rows(read_schema(folder), model.schema)):
        raise InputError(f"--run {model.name} reads other columns than {latest['name']!r}, which is in service: {why}; give that run")
    if latest["name"] == model.name:
        return (
            f"the files of --run {model.name} differ from those of the model in service with the same name (digests {model.digest[:12]} and "
            f"{str(latest['digest'])[:12]}): its states are computed from the stored rows at the next transaction"
        )
    return f"{latest['name']!r} is in service, not {model.name!r}: its states are computed from the stored rows at the next transaction"


def tenant_of(database: Database, given: str | None) -> str:
    """Return the tenant whose rows are imported.

    Raises:
        InputError: None is named although the service has keys, or the name can't be one.
    """
    if given is not None:
        if not keys.TENANT.fullmatch(given):
            raise InputError(f"--tenant {given!r}: give 1 to 100 letters, digits, dots, dashes or underscores")
        return given
    known = sorted({key.tenant for key in keys.list_keys(database)})
    if known:
        raise InputError(f"--tenant is missing: the service has keys of {listed(known)}; name the tenant of the rows")
    return keys.OPEN_TENANT
