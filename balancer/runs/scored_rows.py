"""What is kept of scored rows to compare them with those of training; parts of a table are added up."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.dataset import Dataset
from balancer.data.schema import Schema
from balancer.errors import CorruptFileError
from balancer.evaluation.alert_rate import DAY
from balancer.files import atomic_path
from balancer.tables.keys import join_columns
from balancer.tables.values import form_of

EXAMPLES = 3
MOST_VALUES = 1000
"""Most unseen values of a column that are counted each by itself, those with most rows."""


@dataclass(frozen=True)
class Unseen:
    """Rows of a categorical column with values that have no code of their own."""

    rows: int
    values: Mapping[str, int]
    """Rows by value."""

    def examples(self) -> list[str]:
        """The most frequent values."""
        return sorted(self.values, key=lambda value: (-self.values[value], value))[:EXAMPLES]


@dataclass(frozen=True)
class ScoredRows:
    """Figures of n scored rows, and the fields of s of them."""

    rows: int
    alarms: int
    days: frozenset[int]
    """Days since 1970 with a row."""
    span: tuple[float, float]
    """First and last time, in seconds since 1970."""
    values: NDArray[Any]
    """(s, C) fields of rows at equal distances."""
    score: NDArray[Any]
    """(s,) their calibrated scores."""
    unseen: Mapping[str, Unseen]
    """By column; only columns with unseen values."""

    @classmethod
    def of(cls, dataset: Dataset, frame: pl.DataFrame, schema: Schema, every: int = 1) -> ScoredRows:
        """Take the figures of scored rows.

        Args:
            dataset: The table with the fields of the rows.
            frame: The n rows of the input with all their columns and the columns of the scores, in the order
                of `Dataset.scored_rows`.
            schema: Of the run.
            every: Distance of the rows whose fields are kept.
        """
        rows = dataset.scored_rows()
        time = dataset.store.time[rows]
        return cls(
            len(rows),
            int(frame["decision"].sum()),
            frozenset(np.unique(np.floor(time / DAY)).astype(int).tolist()),
            (float(time.min()), float(time.max())) if len(time) else (0.0, 0.0),
            dataset.store.values[rows[::every]],
            frame["score"].to_numpy()[::every],
            unseen_values(frame, schema),
        )

    @classmethod
    def joined(cls, parts: Sequence[ScoredRows]) -> ScoredRows:
        """Add up the parts of a table; at least one."""
        filled = [part for part in parts if part.rows] or list(parts[:1])
        unseen: dict[str, Unseen] = {}
        for column in dict.fromkeys(column for part in filled for column in part.unseen):
            each = [part.unseen[column] for part in filled if column in part.unseen]
            values = sum((Counter(one.values) for one in each), Counter[str]())
            unseen[column] = Unseen(sum(one.rows for one in each), values)
        return cls(
            sum(part.rows for part in filled),
            sum(part.alarms for part in filled),
            frozenset().union(*(part.days for part in filled)),
            (min(part.span[0] for part in filled), max(part.span[1] for part in filled)),
            np.concatenate([part.values for part in filled]),
            np.concatenate([part.score for part in filled]),
            unseen,
        )

    def write(self, path: Path) -> None:
        """Write a .npz file.

        Raises:
            UnwritableFileError: The folder can't be written.
        """
        unseen = {column: [each.rows, dict(each.values)] for column, each in self.unseen.items()}
        content = {"rows": self.rows, "alarms": self.alarms, "days": sorted(self.days), "span": self.span, "unseen": unseen}
        with atomic_path(path) as temporary:
            np.savez(temporary, values=self.values, score=self.score, content=np.array(json.dumps(content)))

    @classmethod
    def read(cls, path: Path) -> ScoredRows:
        """Read what `write` wrote.

        Raises:
            CorruptFileError: It can't be read.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                content = json.loads(str(stored["content"]))
                unseen = {column: Unseen(rows, values) for column, (rows, values) in content["unseen"].items()}
                first, last = content["span"]
                days = frozenset(content["days"])
                return cls(content["rows"], content["alarms"], days, (first, last), stored["values"], stored["score"], unseen)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise CorruptFileError(f"{path} can't be read ({type(error).__name__}): delete it, and score again") from error


def unseen_values(frame: pl.DataFrame, schema: Schema) -> dict[str, Unseen]:
    """Values of categorical fields without a code of their own: training did not have them, or rarely.

    Args:
        frame: n rows of a table.
        schema: Of the run.
    """
    found: dict[str, Unseen] = {}
    for field, column in schema.categorical_columns.items():
        text = join_columns([form_of(frame[part], schema.values) for part in schema.parts(column)], column)
        counts = text.drop_nulls().value_counts(name="rows")
        counts = counts.filter(~pl.col(column).is_in(schema.vocabularies[field])).sort("rows", column, descending=[True, False])
        if counts.height:
            kept = counts.head(MOST_VALUES)
            found[column] = Unseen(int(counts["rows"].sum()), dict(zip(kept[column], kept["rows"], strict=True)))
    return found
