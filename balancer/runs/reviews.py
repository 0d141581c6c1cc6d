"""Labels that investigators gave to alarms: confirmed as fraud, or dismissed; kept in the run folder.

What is special: every decision is written at once and atomically, so it survives a reload or the end of the
app. The order of the decisions is kept, so that the last one can be undone. They leave the run as a table for
training or as requests for the service.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from balancer.errors import CorruptFileError, InputError
from balancer.files import read_json, write_json

REVIEWS_FILE = "reviews.json"
MOST_LABELS = 1_000
"""Most labels of one request that a service takes, unless it is configured otherwise."""
_LOCK = threading.Lock()
Id = str | int


@dataclass(frozen=True)
class Review:
    """The label that an investigator gave to a transaction."""

    id: Id
    label: str
    """Name of a class of the model."""
    reviewed: str
    """When, in UTC, as ISO 8601."""


@dataclass(frozen=True)
class Reviews:
    """All reviews of a run, earliest first; a transaction that was reviewed twice is in it twice."""

    decided: tuple[Review, ...] = ()

    @property
    def labels(self) -> dict[Id, str]:
        """The latest label of each transaction by its id."""
        return {each.id: each.label for each in self.decided}

    @property
    def latest(self) -> list[Review]:
        """The latest review of each transaction, in the order of their first ones."""
        return list({each.id: each for each in self.decided}.values())

    @classmethod
    def load(cls, folder: Path) -> Reviews:
        """Read the reviews of a run folder; none if nothing was reviewed.

        Raises:
            CorruptFileError: The file is damaged.
        """
        file = folder / REVIEWS_FILE
        if not file.is_file():
            return cls()
        content = read_json(file, what="it holds the labels that were given on the page Transactions")
        rows = content.get("reviews")
        keys = {"id", "label", "reviewed"}
        if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) == keys and _valid(row) for row in rows):
            raise CorruptFileError(f"{file} is damaged or not written by balancer: restore it, or move it away and review again")
        return cls(tuple(Review(**row) for row in rows))


def _valid(row: dict[str, Any]) -> bool:
    return isinstance(row["id"], str | int) and isinstance(row["label"], str) and isinstance(row["reviewed"], str)


def review(folder: Path, identity: Id, label: str, *, classes: Sequence[str], now: Callable[[], datetime] | None = None) -> Reviews:
    """Store the label of one transaction in a run folder.

    Args:
        folder: The run.
        identity: Id of the transaction.
        label: One of the classes.
        classes: The classes of the model.
        now: Returns the time; None: the clock of this machine.

    Returns:
        All reviews.

    Raises:
        InputError: The label is no class of the model, or the file can't be written.
    """
    if label not in classes:
        raise InputError(f"the label {label!r} is no class of the model: give one of {', '.join(classes)}")
    when = (now or (lambda: datetime.now(UTC)))().isoformat(timespec="seconds")
    return _changed(folder, lambda decided: (*decided, Review(identity, label, when)))


def undo(folder: Path) -> Reviews:
    """Take the last review back; the transaction then has the label of an earlier review, if there is one."""
    return _changed(folder, lambda decided: decided[:-1])


def _changed(folder: Path, change: Callable[[tuple[Review, ...]], tuple[Review, ...]]) -> Reviews:
    # Sessions of the app are threads of one process: each reads what the others wrote.
    with _LOCK:
        found = Reviews(change(Reviews.load(folder).decided))
        write_json(folder / REVIEWS_FILE, {"reviews": [asdict(each) for each in found.decided]})
    return found


def label_table(reviews: Reviews, times: pl.DataFrame, *, names: dict[str, str]) -> pl.DataFrame:
    """Tabulate the labels with the names of the columns of the table.

    Args:
        reviews: The reviews.
        times: Columns `id, time` of the transactions that may have been reviewed.
        names: Names of the columns `id`, `label` and, where the table has one, `time`.

    Returns:
        A row for each reviewed transaction, with id, label and time, and `reviewed`, when it was reviewed.
    """
    rows = [(str(each.id), each.label, each.reviewed) for each in reviews.latest]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(("_key", "label", "reviewed"), pl.String), orient="row")
    known = times.select("id", "time", _key=pl.col("id").cast(pl.String))
    frame = frame.join(known, on="_key", how="left", maintain_order="left")
    columns = [name for name in ("id", "label", "time") if name in names]
    return frame.select(*(pl.col(name).alias(names[name]) for name in columns), "reviewed")


def label_requests(reviews: Reviews, most: int = MOST_LABELS) -> Iterator[dict[str, Any]]:
    """Yield the bodies of `POST /v1/labels` that send all reviews to a service.

    Args:
        reviews: The reviews.
        most: Most labels of one request.
    """
    latest = [{"id": each.id, "label": each.label} for each in reviews.latest]
    for first in range(0, len(latest), most):
        yield {"labels": latest[first : first + most]}


def with_labels(table: pl.DataFrame, reviews: Reviews, *, identity: str | None, label: str) -> pl.DataFrame:
    """Put the reviewed labels into a table that the run was trained on, to train again.

    Args:
        table: The table.
        reviews: The reviews.
        identity: Its column of ids; None: the number of the row, from 0.
        label: Its column of labels. It keeps its type.

    Raises:
        InputError: The table lacks one of the columns, or a class is no value of the type of the labels.
    """
    for name in (identity, label):
        if name is not None and name not in table.columns:
            raise InputError(f"the table has no column {name!r} any more: restore the table that the run was trained on")
    given = {str(name): value for name, value in reviews.labels.items()}
    kind = table.schema[label]
    new = pl.Series("new", list(given.values()), dtype=pl.String)
    try:
        values = (new.str.to_lowercase() == "true") if kind == pl.Boolean else new.cast(kind)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"a class of the model is no value of the column {label!r}: take the labels as CSV instead") from error
    known = pl.DataFrame([pl.Series("_id", list(given), dtype=pl.String), values.alias("_label")])
    key = pl.int_range(pl.len()).cast(pl.String) if identity is None else pl.col(identity).cast(pl.String)
    joined = table.with_columns(key.alias("_id")).join(known, on="_id", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("_label", label).alias(label)).drop("_id", "_label")
