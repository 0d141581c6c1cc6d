"""Write the audit, and the fields of stored transactions, to Parquet files.

What is special: rows are read a page at a time, each page in a transaction of its own, so the service goes on
and the memory stays small. Rows that are stored meanwhile may or may not be in the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sqlalchemy import RowMapping, Select, and_, select, tuple_

from balancer.errors import InputError
from balancer.files import atomic_path
from balancer.serving.audit.decisions import Wanted
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.storage.current_score import current_score
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import decisions, entities, transactions

PAGE = 10_000
"""Rows that are read at once."""
Progress = Callable[[int], None]
"""Called with the number of rows that are written."""
_MOMENT = pl.Datetime("us", "UTC")
_AUDIT: Mapping[str, Any] = {
    **dict.fromkeys(("tenant", "id", "entity", "kind"), pl.String),
    "received": _MOMENT,
    **dict.fromkeys(("key", "request", "model", "digest"), pl.String),
    "score": pl.Float64,
    "threshold": pl.Float64,
    "decision": pl.Boolean,
    "class": pl.String,
    "action": pl.String,
    "time": _MOMENT,
    "label": pl.String,
    "labelled": _MOMENT,
}
"""Columns of the audit: those of `decisions`, and time and label of the transaction if it is still stored."""
_ABOUT: Mapping[str, Any] = {
    **dict.fromkeys(("tenant", "id", "entity"), pl.String),
    "position": pl.Int64,
    "time": _MOMENT,
    "amount": pl.Float64,
    "score": pl.Float64,
    "label": pl.String,
    "labelled": _MOMENT,
}
"""Columns of fields that say which transaction it is."""
_MOMENTS = ("received", "time", "labelled")


def export_decisions(
    database: Database, tenant: str | None, since: float | None, until: float | None, path: Path, progress: Progress = lambda _: None
) -> int:
    """Write the rows of the audit in the order in which they were received.

    Args:
        database: Where they are stored.
        tenant: Whose rows; None: of all tenants.
        since: Seconds since 1970 from which on they were received; None: from the beginning.
        until: Seconds since 1970 before which they were received; None: to the end.
        path: The Parquet file; it is replaced if it exists.
        progress: Called after each page.

    Returns:
        The number of rows.

    Raises:
        InputError: If the file can't be written, or `since` is after `until`.
    """
    _check_span(since, until)
    columns, kept = decisions.c, transactions.c
    chosen = Wanted(since, until).of(tenant)

    def pages() -> Iterator[pl.DataFrame]:
        last: tuple[float, int] | None = None
        while True:
            page = (
                (chosen if last is None else chosen.where(tuple_(columns.received, columns.number) > tuple_(*last))).limit(PAGE).subquery()
            )
            held = and_(kept.tenant == page.c.tenant, kept.id == page.c.transaction)
            whole = select(page, kept.time, kept.label, kept.labelled).select_from(page.outerjoin(transactions, held))
            rows = _read(database, whole.order_by(page.c.received, page.c.number))
            if not rows:
                return
            last = rows[-1]["received"], rows[-1]["number"]
            yield _frame([dict(row) | {"id": row["transaction"], "entity": row["name"]} for row in rows], _AUDIT)

    return _write(pages(), _AUDIT, path, progress)


def export_features(
    database: Database,
    model: LoadedModel,
    tenant: str | None,
    since: float | None,
    until: float | None,
    path: Path,
    progress: Progress = lambda _: None,
) -> int:
    """Write the fields of stored transactions as they are stored, by entity and in its order.

    Categorical and context columns have their values. Score fields are null where other trees gave them. The
    score is that of the latest decision: after a correction it fits the corrected fields.

    Args:
        database: Where the transactions are stored.
        model: A model that reads them; it names the fields.
        tenant: Whose transactions; None: of all tenants.
        since: Seconds since 1970, the first time of a transaction; None: from the beginning.
        until: Seconds since 1970, before which their times are; None: to the end.
        path: The Parquet file; it is replaced if it exists.
        progress: Called after each page.

    Returns:
        The number of rows.

    Raises:
        InputError: If the file can't be written, `since` is after `until`, or the transactions have other
            fields than the model.
    """
    _check_span(since, until)
    columns = transactions.c
    names = ("entity", "position", "tenant", "id", "time", "amount", "fields", "scores", "texts", "answer", "label", "labelled")
    wanted = [
        *([columns.tenant == tenant] if tenant is not None else []),
        *([columns.time >= since] if since is not None else []),
        *([columns.time < until] if until is not None else []),
    ]
    further = (entities.c.name, entities.c.first_stage, current_score().label("score"))
    chosen = select(*(columns[name] for name in names), *further).join(entities).where(*wanted)
    chosen = chosen.order_by(columns.entity, columns.position)
    schema = _feature_schema(model)

    def pages() -> Iterator[pl.DataFrame]:
        last: tuple[int, int] | None = None
        while True:
            page = chosen if last is None else chosen.where(tuple_(columns.entity, columns.position) > tuple_(*last))
            rows = _read(database, page.limit(PAGE))
            if not rows:
                return
            last = rows[-1]["entity"], rows[-1]["position"]
            yield _features(rows, model, schema)

    return _write(pages(), schema, path, progress)


def _check_span(since: float | None, until: float | None) -> None:
    if since is not None and until is not None and since > until:
        raise InputError("--since is after --until, so there is nothing to write; exchange them")


def _read(database: Database, page: Select[Any]) -> Sequence[RowMapping]:
    return database.read(lambda connection: connection.execute(page).mappings().all())


def _feature_schema(model: LoadedModel) -> dict[str, Any]:
    """The columns of exported fields and their types; a field named like another column gets a prefix."""
    texts = dict.fromkeys((*model.schema.spec.categorical, *model.schema.spec.context), pl.String)
    found: dict[str, Any] = dict(_ABOUT)
    for name, dtype in (texts | dict.fromkeys(model.schema.numeric_fields, pl.Float32)).items():
        found[_column(name)] = dtype
    return found


def _column(name: str) -> str:
    return f"field:{name}" if name in _ABOUT else name


def _features(rows: Sequence[RowMapping], model: LoadedModel, schema: Mapping[str, Any]) -> pl.DataFrame:
    names, first = model.schema.numeric_fields, len(model.schema.score_fields)
    values = np.full((len(rows), len(names)), np.nan, np.float32)
    scored = np.zeros(len(rows), np.bool_)
    for place, row in enumerate(rows):
        fields = np.frombuffer(row["fields"], np.float32)
        if len(fields) != len(names) - first:
            raise InputError(f"the transaction {row['id']!r} has other fields than {model.name!r}: name a run that was in service with it")
        values[place, first:] = fields
        scored[place] = first > 0 and row["scores"] is not None and row["first_stage"] == model.first_stage
        if scored[place]:
            values[place, :first] = np.frombuffer(row["scores"], np.float32)
    scores = [row["answer"]["score"] if row["score"] is None else row["score"] for row in rows]
    about = _frame([dict(row) | {"entity": row["name"], "score": score} for row, score in zip(rows, scores, strict=True)], _ABOUT)
    texts = {
        _column(name): [row["texts"].get(name) for row in rows]
        for name in dict.fromkeys((*model.schema.spec.categorical, *model.schema.spec.context))
    }
    numbers = {_column(name): pl.Series(values[:, place]) for place, name in enumerate(names)}
    hidden = pl.Series(~scored)
    for name in names[:first]:
        numbers[_column(name)] = numbers[_column(name)].set(hidden, None)
    return about.with_columns(**{name: pl.Series(found, dtype=pl.String) for name, found in texts.items()}, **numbers).select(list(schema))


def _frame(rows: list[dict[str, Any]], schema: Mapping[str, Any]) -> pl.DataFrame:
    """A table of rows; seconds since 1970 become moments."""
    found = {}
    for name, dtype in schema.items():
        values = [row[name] for row in rows]
        if name in _MOMENTS:
            values = [None if each is None else round(each * 1e6) for each in values]
            found[name] = pl.Series(name, values, dtype=pl.Int64).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        else:
            found[name] = pl.Series(name, values, dtype=dtype)
    return pl.DataFrame(found)


def _write(pages: Iterator[pl.DataFrame], schema: Mapping[str, Any], path: Path, progress: Progress) -> int:
    """Write pages to one file, and return the number of rows."""
    if path.suffix.lower() != ".parquet":
        raise InputError(f"{path} must end in .parquet")
    count = 0
    with atomic_path(path, private=True) as temporary, tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        parts: list[Path] = []
        for page in pages:
            parts.append(Path(folder) / f"{len(parts)}.parquet")
            page.write_parquet(parts[-1])
            count += page.height
            progress(count)
        if parts:
            pl.scan_parquet(parts, glob=False).sink_parquet(temporary)
        else:
            pl.DataFrame(schema=dict(schema)).write_parquet(temporary)
    return count
