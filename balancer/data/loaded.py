"""`Dataset`: a table as arrays, ready for training or scoring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.context_features import CONTEXT_FIELDS
from balancer.data.reading import Source, read_input
from balancer.data.schema import Schema
from balancer.data.score_memory import TableScores, clipped, memory_fields
from balancer.data.split import Split
from balancer.data.store import TransactionStore
from balancer.errors import InputError


@dataclass(eq=False)
class Dataset:
    """A table ready for training or scoring. Arrays of N rows are in the order of the store."""

    store: TransactionStore
    schema: Schema
    split: NDArray[np.int8]
    """(N,) `Split` of each row. When scoring: Split.TEST for the input, Split.GAP for the past rows."""
    ids: pl.Series
    """(N,) the id column, or else row numbers of the input, from 0."""
    entities: list[str]
    """Entity names by entity code; empty where the table has no entity."""
    fingerprint: str
    """Hex digest of the content of the used columns and of the spec."""
    dropped: dict[str, int]
    """Number of rows left out by `bad_rows="drop"`, by reason."""
    notes: list[str]
    """Notes for the user: columns left out, values filled."""
    source: Source
    """Where the rows came from."""
    cautions: list[str] = field(default_factory=list)
    """What looks wrong with the labels: warnings for the user."""
    frame: Callable[[], pl.DataFrame] | None = None
    """Reads the input where it is no table but a store; None: `source` is read."""

    def rows(self, split: Split) -> NDArray[np.int64]:
        """Return the (n,) labelled store rows of a split, in time order."""
        rows = np.flatnonzero((self.split == split) & (self.store.label >= 0))
        return rows[np.lexsort((self.store.row[rows], self.store.time[rows]))]

    def scored_rows(self) -> NDArray[np.int64]:
        """Return the (n,) store rows of the input (without past rows), labelled or not, in input order."""
        rows = np.flatnonzero(self.store.row >= 0)
        return rows[np.argsort(self.store.row[rows], kind="stable")]

    def without_score_fields(self) -> Dataset:
        """The same rows without the score fields; the values are a view, not a copy."""
        schema, number = self.schema.without_score_fields(), len(self.schema.score_fields)
        if not number:
            return self
        store = replace(self.store, values=self.store.values[:, number:], num_numeric=self.store.num_numeric - number)
        return replace(self, store=store, schema=schema)

    def without_context_past(self) -> Dataset:
        """The same rows without the fields of known labels and activity, as earlier versions had them."""
        added = {f"{column}_{name}" for column in self.schema.spec.context for name in CONTEXT_FIELDS}
        kept = (name for name in self.schema.numeric_fields if name not in added or name in self.schema.spec.numeric)
        return self.with_numeric_fields(tuple(kept))

    def with_numeric_fields(self, names: tuple[str, ...]) -> Dataset:
        """The same rows with these numeric fields only, as a run of an older version had them.

        Args:
            names: Some of the schema's numeric fields, in its order.

        Raises:
            InputError: A field does not exist.
        """
        schema = self.schema
        if names == schema.numeric_fields:
            return self
        column_of = {name: column for column, name in enumerate(schema.numeric_fields)}
        unknown = next((name for name in names if name not in column_of), None)
        if unknown is not None:
            raise InputError(f"this version of balancer has no field {unknown!r}: use the version that wrote the run")
        columns = [*(column_of[name] for name in names), *range(len(column_of), self.store.values.shape[1])]
        store = replace(self.store, values=np.take(self.store.values, columns, axis=1), num_numeric=len(names))
        return replace(self, store=store, schema=replace(schema, numeric_fields=names))

    def fill_score_fields(self, logit: NDArray[np.floating]) -> None:
        """Compute the score fields in place.

        Args:
            logit: (N,) log-odds of fraud that the first stage gives to each store row.
        """
        store, names = self.store, self.schema.score_fields
        store.values[:, 0] = clipped(logit)
        if len(names) > 1:
            timed = self.schema.spec.time is not None
            for column, (_, values) in enumerate(memory_fields(TableScores(store.start, store.time, logit), timed=timed), start=1):
                store.values[:, column] = values

    def input_frame(self) -> pl.DataFrame:
        """Read the input rows with all columns, without dropped rows: row i belongs to `scored_rows()[i]`."""
        rows = self.scored_rows()
        if self.frame is not None:
            return self.frame()[rows]
        return read_input(self.source, self.schema.spec.read)[self.store.row[rows]]
